"""The demo's own parts: its data, its steps, what it counts as a broken promise, and what it prints and saves."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from onetrip import demo, embedded
from onetrip.demo import comparison, script
from onetrip.demo.comparison import Comparison, Way
from onetrip.demo.screen import Screen
from onetrip.demo.served import Served
from onetrip.demo.simulated import Cost
from onetrip.errors import Unavailable
from onetrip.model import DisplayData, FileChange, LimitHit, Mechanism, ProgramError, SessionState, Support, ToolCall, Usage

FOLDER = Path(demo.__file__).parent
USED = Usage(wall_ms=1000, cpu_ms=900, peak_memory_bytes=500 * 2**20, output_bytes=10)
BACK = SessionState(survived=True, rolled_back=True, checkpoint=True)
STEPS = 23
COMPARED = Comparison(
    [
        Way("classic loop", Cost(8, 7, 1000, 9000, 700, 14.0, 0.7), [1.75, 0.1] * 7 + [1.75]),
        Way("parallel calls", Cost(4, 7, 1000, 4000, 700, 8.0, 0.3), [2.0, 0.1] * 3 + [2.0]),
        Way("one program", Cost(2, 7, 900, 2000, 500, 5.0, 0.35), [3.5, 0.35, 1.5]),
    ],
    tuple(
        ToolCall(f"call_{number}", tool, {"island": "Torgersen"}, "ok", number // 3 * 100.0, 100.0)
        for number, tool in enumerate(["list_islands", *["get_station"] * 3, *["get_forecast"] * 3], 2)
    ),
)
PICTURE = DisplayData({"image/png": "iVBORw0KGgo="})


def good(result):
    """What each step gives when everything is as promised, in order."""
    made = {"path": "means.csv", "size": 100, "change": "created"}
    chart = {"path": "penguins.png", "size": 90_000, "change": "created"}
    traceback = 'File "<cell 6>", line 3, in describe'
    fields = [
        {"stdout": "344 penguins, 11 with something missing\n"},
        {"files": (FileChange(**made),)},
        {"stdout": "all together  -0.23: longer\nGentoo        +0.65\n"},
        {"files": (FileChange(**chart),), "displays": (PICTURE,)},
        {"value": {"right": 327, "of": 333}},
        {"status": "failed", "error": ProgramError("KeyError", "'body_mass_kg'", traceback, 5)},
        {"text": "(333, True)"},
        {"status": "limit_exceeded", "limit": LimitHit("wall", 1.0, "s")},
        {"text": "(True, 333)"},
        {"status": "limit_exceeded", "limit": LimitHit("memory", 512, "MB"), "error": ProgramError("MemoryError", "")},
        {"text": "(300000000, 333)"},
        {"status": "failed", "error": ProgramError("ProcessDied", ""), "session": BACK},
        {"text": "(333, True)"},
        {"status": "limit_exceeded", "limit": LimitHit("wall", 1.0, "s"), "session": BACK},
        {"text": "(333, True)"},
        {"files": (FileChange("penguins.png", 0, "deleted"),)},
        {"text": "(333, 3, True)"},
        {"value": 0.39},
        {"value": 0.65},
        {"text": "(146, 146)"},
        {"text": "(119, 119)"},
        {"text": "(333, 344)"},
        {"value": 0, "stdout": "become root  PermissionError\n"},
    ]
    return [result(**{"usage": USED, **one}) for one in fields]


class Session:
    """Gives prepared results, in the place of a real session, its branches and its engine."""

    def __init__(self, results, refusal=None):
        self.results, self.asked, self.files = list(results), [], self
        self.refusal, self.moves = refusal, []

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        return None

    def start(self):
        return None

    def support(self):
        return Support("jail", "strict", (Mechanism("seccomp", True, "reduced", "filter"),))

    def session(self, **asked):
        self.asked.append(asked)
        return self

    def run(self, code, *, inputs=None, timeout_s=None):
        return self.one_shot if inputs is None else self.results.pop(0)

    def undo(self, cells):
        self._move(f"undo {cells}")

    def fork(self, *, count):
        self._move(f"fork {count}")
        return [self] * count

    def _move(self, what):
        if self.refusal:
            raise self.refusal
        self.moves.append(what)

    def read(self, path):
        assert path == "penguins.png"
        return b"the picture"


@pytest.fixture
def run_demo(monkeypatch, tmp_path, capsys, result):
    """Runs the demo on prepared results; gives status, stdout, stderr."""

    def run(results, *, refusal=None, compared=None, **options):
        fake = run.session = Session(results, refusal)
        fake.one_shot = result(value=6)
        monkeypatch.setattr(embedded, "local", lambda: fake)
        over_http = Served([(step, result()) for step in script.steps({})[: script.ANALYSIS]], adopted=1)
        monkeypatch.setattr(demo.served, "run", lambda _steps, _screen: over_http)
        monkeypatch.setattr(demo.comparison, "run", lambda _ot: compared or COMPARED)
        monkeypatch.chdir(tmp_path)
        status = demo.main(**options)
        return status, *capsys.readouterr()

    return run


def test_the_data_is_the_file_that_its_source_is_stated_for():
    stated = re.search(r"SHA-256: `([0-9a-f]{64})`", (FOLDER / "data" / "README.md").read_text("utf-8"))
    assert stated[1] == hashlib.sha256(script.data()).hexdigest()
    assert len(script.data().splitlines()) == script.PENGUINS + 1
    assert "CC0" in (FOLDER / "data" / "README.md").read_text("utf-8")


def test_every_cell_of_the_programs_is_a_step_and_compiles():
    steps = script.steps({})
    titles = [
        title
        for name in ("analysis.py", "trouble.py", "going_back.py")
        for title in re.findall(r"^# %% (.+)$", (FOLDER / "programs" / name).read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(step.title for step in steps if not step.is_after) == sorted(titles)
    for step in steps:
        compile(step.code, step.title, "exec")


def test_results_as_promised_have_no_problems(result):
    assert [step.problems(got) for step, got in zip(script.steps({}), good(result), strict=True)] == [[]] * STEPS


def test_every_step_notices_a_result_that_is_not_as_promised(result):
    lost = result(status="lost", session=SessionState(survived=False, note="gone"), usage=Usage())
    nothing = result(usage=Usage())
    for step in script.steps({}):
        assert step.problems(lost), step.title
        assert step.problems(nothing), step.title


def test_a_limit_that_did_not_stop_the_loop_is_a_problem(result):
    loop = next(step for step in script.steps({}) if step.timeout_s)
    other = result(status="limit_exceeded", limit=LimitHit("cpu", 1.0, "s"), usage=USED)
    assert loop.problems(other) == [
        "the wall limit should have ended it, but it is “limit_exceeded” (LimitHit(name='cpu', limit=1.0, unit='s'))"
    ]
    uncounted = result(status="limit_exceeded", limit=LimitHit("wall", 1.0, "s"), usage=Usage(cpu_ms=2))
    assert loop.problems(uncounted) == ["not counted: cpu_ms is 2 (at least 50)"]


def test_the_report_is_plain_text_on_stdout_and_progress_is_on_stderr(run_demo, result, tmp_path):
    status, out, err = run_demo(good(result))
    assert status == 0
    assert "\x1b" not in out + err
    assert f"[1/{STEPS}] Read the data" in err
    assert f"[1/{STEPS}]" not in out
    assert (
        out.splitlines()[-1] == f"all {STEPS} steps behaved as promised, in one session and its branches, and 5 again over HTTP"
    )
    assert run_demo.session.moves == ["undo 1", "fork 2"]
    assert f"chart: {tmp_path}/demo-output/penguins.png" in out
    assert (tmp_path / "demo-output" / "penguins.png").read_bytes() == b"the picture"


def test_json_is_the_only_thing_on_stdout(run_demo, result, tmp_path):
    status, out, _ = run_demo(good(result), as_json=True)
    report = json.loads(out)
    assert status == 0
    assert (report["ok"], report["problems"]) == (True, [])
    assert report["chart"] == f"{tmp_path}/demo-output/penguins.png"
    assert [step["ok"] for step in report["steps"]] == [True] * STEPS
    assert report["steps"][7]["result"]["limit"] == {"name": "wall", "limit": 1.0, "unit": "s"}


def test_a_step_that_breaks_its_promise_makes_the_status_1_and_is_named(run_demo, result):
    results = good(result)
    results[-1] = result(value=1, usage=USED)  # a way out was found
    status, out, _ = run_demo(results)
    assert status == 1
    assert out.splitlines()[-1] == "NOT AS PROMISED: Ways out: the value should be 0, but is 1"


def test_an_undo_or_a_fork_that_is_refused_is_a_problem(run_demo, result):
    status, out, _ = run_demo(good(result), refusal=Unavailable("not now"))
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("NOT AS PROMISED")] == [
        f"NOT AS PROMISED: {title}: not now"
        for title in (
            "session.undo(), and what was deleted is there again",
            "Branch 1: Adelie",
            "Branch 2: Gentoo",
            "branch 1 has its own data and file",
            "branch 2 has its own data and file",
        )
    ]


def test_a_cell_that_should_have_been_taken_back_and_was_not_is_a_problem(result):
    end = next(step for step in script.steps({}) if step.title == "The process ends")
    kept = result(status="failed", error=ProgramError("ProcessDied", ""), session=SessionState(survived=True, note="why"))
    assert end.problems(kept) == ["it should have been taken back (why)"]


def test_a_memory_hog_is_told_or_taken_back(result):
    hog = next(step for step in script.steps({}) if step.title == "A memory hog")
    hit = {"status": "limit_exceeded", "limit": LimitHit("memory", 512, "MB"), "usage": USED}
    assert hog.problems(result(**hit, session=BACK)) == []
    assert hog.problems(result(**hit)) == ["it should have seen a MemoryError, or been taken back: None"]


def test_a_session_that_is_lost_ends_the_demo_and_the_other_steps_count_as_failed(run_demo, result):
    results = good(result)[:7]
    results.append(result(status="lost", session=SessionState(survived=False, note="gone"), usage=USED))
    status, out, _ = run_demo(results, as_json=True)
    report = json.loads(out)
    assert status == 1
    assert len(report["steps"]) == 8
    assert report["problems"][-1] == "Ways out: it was not run"


def test_a_wrong_answer_of_a_one_shot_is_a_problem(run_demo, result, monkeypatch):
    monkeypatch.setattr(demo, "_timed", lambda _ot: (1.0, False))
    status, out, _ = run_demo(good(result))
    assert (status, out.splitlines()[-1]) == (1, "NOT AS PROMISED: a one-shot gave a wrong answer")


def test_the_chart_goes_to_a_temporary_folder_where_the_current_one_cannot_be_written(run_demo, result, tmp_path, monkeypatch):
    (tmp_path / "demo-output").write_text("a file, not a folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, _ = run_demo(good(result), as_json=True)
    chart = Path(json.loads(out)["chart"])
    assert status == 0
    assert chart.parent.parent == tmp_path
    assert chart.parent.name.startswith("onetrip-demo-")
    assert chart.read_bytes() == b"the picture"


def test_the_bait_can_be_reached_from_the_host_itself():
    with demo._bait() as bait:  # else the cell that looks for a way out would prove nothing
        assert len(Path(bait["host_file"]).read_text()) == 16
        assert os.stat(bait["host_file"]).st_mode & 0o444 == 0o444
        assert bait["host_pid"] == os.getpid()
        with demo.socket.create_connection(("127.0.0.1", bait["host_port"]), 5):
            pass
    assert not Path(bait["host_file"]).exists()


def test_no_line_of_the_report_that_we_lay_out_is_wider_than_80_columns(capsys, result):
    screen = Screen(quiet=False, total=STEPS)
    steps = script.steps({})
    screen.summary([(step, got, []) for step, got in zip(steps, good(result), strict=True)], None, [1.0, 2.0, 3.0])
    screen.compared(COMPARED)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and "each in a sandbox" not in line and "behaved" not in line] == []


@pytest.mark.spec("TOL-32")
def test_the_comparison_is_the_last_thing_before_the_verdict_and_says_that_its_model_is_simulated(run_demo, result):
    _, out, _ = run_demo(good(result))
    head, _, tail = out.partition("7 tool calls: a loop of calls, and one program (simulated model)\n")
    assert head
    lines = tail.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert "SIMULATED is the model: 1.5 s to its first token, then 80 tokens a second" in tail
    assert "classic loop              8           7    9.0 kB     0.7 kB  14.7 s" in tail
    assert lines[-3].startswith("get_forecast ")
    assert "The program was 2.7 × as fast as the loop, 1.6 × as fast as parallel calls" in lines


def test_the_comparison_is_in_the_json_and_says_that_its_model_is_simulated(run_demo, result):
    _, out, _ = run_demo(good(result), as_json=True)
    compared = json.loads(out)["comparison"]
    assert compared["simulated_model"] is True
    assert compared["assumptions"]["latency_s"] == 1.5
    assert [(way["name"], way["inferences"], way["time_s"]) for way in compared["ways"]] == [
        ("classic loop", 8, 14.7),
        ("parallel calls", 4, 8.3),
        ("one program", 2, 5.35),
    ]
    assert len(compared["calls"]) == 7


def test_a_comparison_that_could_not_be_made_is_a_problem(run_demo, result):
    status, out, _ = run_demo(good(result), compared=Comparison(problems=["seven tool calls: no"]))
    assert (status, out.splitlines()[-1]) == (1, "NOT AS PROMISED: seven tool calls: no")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"status": "failed"}, "the program should have completed, but is “failed”"),
        ({"value": {"island": "Dream"}, "tool_calls": COMPARED.calls}, "the answer should be"),
        ({"value": comparison.ANSWER, "tool_calls": COMPARED.calls[1:]}, "7 calls should have been made, but 6 were, 6 of them"),
    ],
)
def test_a_program_of_the_comparison_that_does_something_else_is_a_problem(given, problem, result):
    class Other:
        def run(self, _code, **_options):
            return result(**given)

    compared = comparison.run(Other())
    assert compared.ways == []
    assert [problem in found for found in compared.problems] == [True]


def test_a_refusal_is_a_problem_of_the_comparison():
    class Refusing:
        def run(self, _code, **_options):
            raise Unavailable("not now")

    assert comparison.run(Refusing()).problems == ["seven tool calls: not now"]
