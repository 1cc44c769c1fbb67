"""`onetrip run` with several programs: cells of one session, in order, up to the first that fails."""

import base64
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from onetrip.cli import main
from onetrip.cli.seam import Seam
from onetrip.model import DisplayData, Displayed, Done, FileChange, LimitHit, ProgramError, SessionState

SUMMARY = "completed · 12.3 ms wall, 4.5 ms cpu, 64 MB peak · jail, strict\n"


def run(fake, *arguments):
    return CliRunner().invoke(main, ["run", *arguments], obj=Seam(fake), catch_exceptions=False)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Three programs in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(f"{name}.py").write_text(f"code {name}")
    return ["a.py", "b.py", "c.py"]


@pytest.mark.spec("CLI-04", "CLI-13")
def test_several_programs_are_cells_of_one_session_and_only_the_last_ends_as_a_program_does(programs, Fake, result):
    fake = Fake(Done(result()))

    done = run(fake, *programs, "--input", "n=1")

    assert fake.cells == [("code a", {"n": 1}, False), ("code b", {"n": 1}, False), ("code c", {"n": 1}, True)]
    assert [(asked["checkpoints"], asked["on_error"]) for asked in fake.asked] == [(1, "keep")]
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "".join(f"{name}: {SUMMARY}" for name in programs)


FAILED = {"status": "failed", "error": ProgramError("E", "why")}
BACK = SessionState(survived=True, rolled_back=True, checkpoint=True)


@pytest.mark.spec("CLI-02", "CLI-04", "CLI-13")
def test_the_first_program_that_fails_is_the_last_and_gives_the_status(programs, Fake, result):
    limit = {"status": "limit_exceeded", "limit": LimitHit("wall", 1, "s"), "session": BACK}
    fake = Fake(runs=[[Done(result())], [Done(result(**limit))]])

    done = run(fake, *programs)

    assert ([code for code, _, _ in fake.cells], done.exit_code) == (["code a", "code b"], 3)
    assert done.stderr == (
        f"a.py: {SUMMARY}error: the wall limit of 1 s ended the run\n"
        "hint: Raise it with --wall-s, or look for a loop that does not end.\n"
        "rolled back: variables and files are as they were before\n"
        f"b.py: {SUMMARY.replace('completed', 'limit exceeded')}not run: c.py\n"
    )


@pytest.mark.spec("CLI-02", "CLI-04", "CLI-13")
def test_told_to_keep_going_it_runs_the_others_too_and_the_first_failure_is_the_status(programs, Fake, result):
    note = "files that are not as they were: big.bin (too large)"
    fake = Fake(
        runs=[
            [Done(result(**FAILED, session=SessionState(survived=True, rolled_back=True, note=note)))],
            [Done(result(status="limit_exceeded", limit=LimitHit("cpu", 1, "s")))],
            [Done(result(text="1"))],
        ]
    )

    done = run(fake, *programs, "--keep-going", "--on-error", "rollback")

    assert ([code for code, _, _ in fake.cells], done.exit_code, done.stdout) == (["code a", "code b", "code c"], 1, "1\n")
    assert f"E: why\nrolled back: variables and files are as they were before\n{note}\na.py: failed · " in done.stderr
    assert "not run" not in done.stderr
    assert fake.asked[0]["on_error"] == "rollback"


@pytest.mark.spec("CLI-07")
@pytest.mark.parametrize(
    "changes", [{"status": "interrupted"}, {"status": "lost", "session": SessionState(survived=False, note="gone")}]
)
def test_nothing_more_runs_after_an_interrupt_or_without_a_session(programs, changes, Fake, result):
    fake = Fake(Done(result(**changes)))
    done = run(fake, *programs, "--keep-going")
    assert len(fake.cells) == 1
    assert done.stderr.endswith("not run: b.py, c.py\n")


@pytest.mark.spec("CLI-03")
def test_json_of_several_programs_is_the_list_of_those_that_ran(programs, Fake, result):
    wanted = [result(text="1"), result(**FAILED, session=BACK)]
    fake = Fake(runs=[[Done(one)] for one in wanted])

    done = run(fake, *programs, "--json")

    assert (done.exit_code, done.stderr) == (1, "")
    assert json.loads(done.stdout) == json.loads(msgspec.json.encode(wanted))


@pytest.mark.spec("CLI-05")
def test_save_keeps_what_the_programs_left_together(programs, tmp_path, Fake, result):
    picture = DisplayData({"image/png": base64.b64encode(b"PNG").decode()})
    made = (FileChange("kept", 1, "created"), FileChange("gone", 1, "created"))
    fake = Fake(
        runs=[
            [Displayed(picture), Done(result(files=made))],
            [Displayed(picture), Done(result(files=(FileChange("gone", 0, "deleted"), FileChange("kept", 2, "modified"))))],
        ],
        files={"kept": b"22"},
    )
    done = run(fake, "a.py", "b.py", "--save", "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == {
        "display-1.png": b"PNG",
        "display-2.png": b"PNG",
        "kept": b"22",
    }
    assert done.stderr.endswith("saved saved/display-1.png\nsaved saved/display-2.png\nsaved saved/kept\n")
