"""The bench's own arithmetic, its peers, and what it writes: figures are only worth something if these hold."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from onetrip.bench import branches, figures, measure, others, peers, proctree, report, undo
from onetrip.bench.conditions import Conditions
from onetrip.bench.figures import Figure
from onetrip.environments import Environment, Interpreter
from onetrip.errors import BadRequest, Unavailable

CONDITIONS = Conditions(
    onetrip="0.1.0", when="2026-11-21 09:00", kernel="Linux 6.18", machine="a processor", cpus=2, memory_mb=25_000, python="3.11.2",
    packages="numpy 2.4.6", user="root", isolation="jail, strict: seccomp", load_before=0.1, load_after=1.5,
)  # fmt: skip


@pytest.fixture
def environment(tmp_path):
    """Nothing but this interpreter: no package is needed to see that the peers do what they say."""
    (tmp_path / "site-packages").mkdir()
    python = Interpreter(
        executable=sys.executable,
        version="3",
        base_prefix="",
        stdlib="",
        platstdlib="",
        purelib="",
        enable_shared=False,
        libdir="",
        multiarch="",
    )
    return Environment(name="e", build_id="b", python=python, packages=(), nodes=(), built_at="", path=str(tmp_path))


# ---------------------------------------------------------------------------------------------------- figures


def test_a_percentile_is_a_value_that_was_measured():
    assert [figures.percentile([5.0, 1.0, 4.0, 2.0], share) for share in (0.01, 0.5, 0.75, 0.99, 1.0)] == [
        1.0,
        2.0,
        4.0,
        5.0,
        5.0,
    ]


def test_the_99th_percentile_of_100_samples_is_the_second_worst():
    assert figures.percentile([float(i) for i in range(100)], 0.99) == 98.0


def test_no_samples_give_no_figure():
    assert figures.of_samples("k", "t", "ms", []) is None
    with pytest.raises(ValueError, match="no samples"):
        figures.percentile([], 0.5)


def test_the_bad_side_of_a_rate_is_the_low_one():
    assert figures.of_samples("k", "t", "MB/s", [10.0, 90.0, 80.0]) == Figure("k", "t", "MB/s", 80.0, 3, 10.0)
    assert figures.of_samples("k", "t", "ms", [10.0, 90.0, 80.0]) == Figure("k", "t", "ms", 80.0, 3, 90.0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("warm_async", 0.3, "met"),
        ("warm_async", 0.45, "missed by 1.50 ×"),
        ("rate_ratio", 0.6, "met"),
        ("rate_ratio", 0.2, "missed by 3.00 ×"),
        ("print_once", 49.9, "missed by 1.00 ×"),
        ("undo_ratio", 1.3, "met"),
        ("fork_many", 750.0, "missed by 1.50 ×"),
        ("rewrite_ratio", 9.0, ""),
        ("fork", 9.0, ""),
    ],
)
def test_the_verdict_says_by_how_much_a_target_was_missed(key, value, said):
    assert figures.verdict(Figure(key, "t", "ms", value, 1)) == said


def test_a_rate_of_nothing_misses_its_target_without_an_error():
    assert figures.verdict(Figure("rate_ratio", "t", "×", 0.0, 1)) == "missed by inf ×"


def test_a_ratio_needs_both_of_its_figures():
    over, under = Figure("a", "a", "ms", 6.0, 10), Figure("b", "b", "ms", 3.0, 4)
    assert figures.ratio("r", "a : b", over, under) == Figure("r", "a : b", "×", 2.0, 4)
    assert figures.ratio("r", "a : b", over, None) is None
    assert figures.ratio("r", "a : b", over, Figure("b", "b", "ms", 0.0, 4)) is None


def test_the_targets_are_those_of_the_issues():
    assert {target.key: (target.bound, target.at_most) for target in figures.TARGETS} == {
        "oneshot_async": (1.5, True), "oneshot_sync": (1.5, True), "oneshot_empty": (5.0, True), "warm_async": (0.3, True),
        "warm_sync": (0.3, True), "cpu_ratio": (1.5, True), "rate_ratio": (0.6, False), "undo_ratio": (1.3, True),
        "http_warm": (1.0, True), "http_warm_ratio": (3.0, True), "http_oneshot": (5.0, True), "http_rate_ratio": (0.5, False),
        "http_up": (200.0, False), "http_down": (200.0, False), "http_sessions": (8.0, True), "http_sessions_undo": (8.0, True),
        "fork_frame": (10.0, True), "fork_many": (500.0, True), "memory": (6.0, True), "branch_memory": (3.0, True),
        "print_once": (50.0, False), "print_lines": (50.0, False),
        "tool_call": (0.15, True), "tool_call_sync": (0.15, True), "tool_parallel": (100.0, True),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- undo and branches


def test_the_cost_of_undo_is_the_ratio_of_two_medians_of_the_same_run():
    samples = defaultdict(
        list, warm_think=[1.0, 2.0, 9.0], warm_undo=[3.0, 3.0], rewrite=[100.0], rewrite_undo=[700.0], undo=[4.0]
    )
    found = {figure.key: figure for figure in undo.figures(samples, 500) if figure is not None}
    assert list(found) == ["warm_think", "warm_undo", "undo_ratio", "undo", "rewrite", "rewrite_undo", "rewrite_ratio"]
    assert (found["undo_ratio"].value, found["undo_ratio"].n, found["undo_ratio"].unit) == (1.5, 2, "×")
    assert found["rewrite_ratio"] == Figure("rewrite_ratio", "a cell rewrites 500 MB, undo : no undo", "×", 7.0, 1)


def test_the_memory_of_a_branch_is_a_mean_of_all_that_lived_at_once():
    samples = defaultdict(list, fork_frame=[8.0], fork_many=[400.0], branch_memory=[2.5], branch_tables=[0.25])
    fork, many, memory = branches.figures(samples, 100, 20)
    assert (fork.value, many.title, many.value) == (8.0, "100 branches of a session, last of all first results", 400.0)
    assert (memory.value, memory.n, memory.p99, memory.unit) == (2.5, 20, None, "MB")
    assert memory.note == "mean of n; pandas imported; page tables besides: 0.25 MB"


def test_what_was_not_measured_has_no_figure():
    assert set(undo.figures(defaultdict(list), 500)) == set(branches.figures(defaultdict(list), 100, 20)) == {None}


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (PermissionError(13, "Permission denied"), "the kernel does not let us look: Permission denied"),
        (Unavailable("no checkpoint: no Landlock here"), "no checkpoint: no Landlock here"),
    ],
)
def test_a_measure_that_this_machine_does_not_have_is_named_with_the_reason(raised, said):
    taken = measure.Taken()
    for error in (raised, Unavailable("and so on")):
        with taken.unless_broken("branches"):
            raise error
    assert taken.broken == {"branches": said}


def test_a_mistake_of_ours_does_not_pass_for_something_that_cannot_be_measured():
    with pytest.raises(AttributeError), measure.Taken().unless_broken("branches"):
        raise AttributeError("fork")


# ---------------------------------------------------------------------------------------------------- peers


def test_the_fork_server_forks_runs_and_counts(environment):
    with peers.ForkServer(environment, ("json",), "import json\njson.dumps(1)") as server:
        wall, cpu = server.latency(5)
        server.ask_rate(0.05)
        rate = server.read_rate()
        speeds = [server.print_mb_s(how, 100_000) for how in ("once", "lines")]
        assert server.latency(1)[0]  # what was printed did not get between the answers
    assert (len(wall), min(wall) > 0, cpu > 0, rate > 1, min(speeds) > 0) == (5, True, True, True, True)
    assert not os.path.exists(f"/proc/{server.pid}")


def test_a_fork_server_whose_import_fails_is_an_error_and_leaves_no_process(environment, capfd):
    with pytest.raises(EOFError, match="ended with status 1"):
        peers.ForkServer(environment, ("no_such_module",), "1")
    assert "no_such_module" in capfd.readouterr().err


def test_the_fork_servers_environment_holds_the_thread_counts_only(environment):
    with peers.ForkServer(environment, (), "1") as server:
        variables = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert dict(pair.split(b"=") for pair in variables.split(b"\0") if pair) == {
        b"OMP_NUM_THREADS": b"1",
        b"OPENBLAS_NUM_THREADS": b"1",
    }


async def echo_times(echo):
    return await echo.asynchronous(4, 100)


def test_the_echo_answers_both_kinds_of_callers_and_ends(environment):
    import asyncio

    with peers.Echo(environment) as echo:
        times = echo.blocking(3, 100) + asyncio.run(echo_times(echo)) + echo.blocking(2, 100)
    assert (len(times), min(times) > 0) == (9, True)
    assert not os.path.exists(f"/proc/{echo.pid}")


# ---------------------------------------------------------------------------------------------------- CPU of a tree

BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"


def test_cpu_counts_children_that_live_and_that_were_reaped():
    source = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n{BURN}print('burnt', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"burnt\n"
        assert 0.39 <= proctree.cpu_s(process.pid) < 1.5  # less one tick: process_time is finer than what /proc shows
        ours = proctree.cpu_s(os.getpid())
        assert ours - proctree.cpu_s(os.getpid(), without={process.pid}) > 0.38
        assert process.pid in proctree.pids(os.getpid())
        process.stdin.close()


def test_private_memory_counts_what_no_other_process_maps():
    source = "import sys\nkept = bytearray(b'x') * 20_000_000\nprint('kept', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"kept\n"
        memory, tables = proctree.private_bytes(process.pid)
        process.stdin.close()
    assert 20_000_000 < memory < 40_000_000
    assert 0 < tables < 2_000_000


def test_a_process_that_is_gone_is_an_os_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(OSError):
        proctree.private_bytes(process.pid)


# ---------------------------------------------------------------------------------------------------- alternatives


def test_what_is_not_installed_is_named_with_the_reason(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ONETRIP_HOME", str(tmp_path))
    with others.found(environment) as (there, missing):
        assert [other.name for other in there] == ["python -c"]
    assert [(one.name, one.reason) for one in missing] == [
        ("bwrap + python", "`bwrap` is not installed (Debian, Ubuntu: apt install bubblewrap)"),
        ("docker", "`docker` is not installed"),
        (
            "Jupyter kernel",
            "no environment for it (make one: onetrip env build bench-jupyter "
            + " ".join(f"--package {package}" for package in ("ipykernel", "jupyter_client", "numpy", "pandas"))
            + ")",
        ),
    ]


def test_an_engine_that_does_not_answer_is_named_with_what_it_said(environment, monkeypatch, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ONETRIP_HOME", str(tmp_path))
    with others.found(environment) as (_, missing):
        pass
    assert [one.reason for one in missing if one.name == "docker"] == ["Cannot connect to the daemon"]


def test_plain_python_runs_with_the_environments_packages(environment):
    Path(environment.site_packages, "numpy.py").write_text("")
    Path(environment.site_packages, "pandas.py").write_text("")
    with others.found(environment) as (there, _):
        plain = there[0]
        assert {task: len(measure()) for task, measure in plain.measures.items()} == {"fresh": 1, "pandas": 1}


def test_an_alternative_that_fails_is_an_error_and_no_fast_sample(environment):
    with others.found(environment) as (there, _), pytest.raises(ChildProcessError, match="numpy"):
        there[0].measures["pandas"]()


# ---------------------------------------------------------------------------------------------------- report

FIGURES = (Figure("warm_async", "warm cell `x += 1`", "ms", 0.25, 100, 0.5, "a|b"), Figure("rate_ratio", "rates", "×", 0.3, 5))
ROWS = (
    report.Row("Onetrip, undo", "the same", {"warm": report.Cell(0.75, 1.5, 100)}),
    report.Row("Onetrip", "jailed", {"warm": report.Cell(0.25, 0.5, 100)}),
    report.Row("Jupyter kernel", "not isolated", {"warm": report.Cell(5.0, 9.0, 20)}),
)
SKIPPED = (others.Skipped("docker", "`docker` is not installed"),)


def test_markdown_has_figures_targets_the_comparison_and_the_conditions():
    lines = report.as_markdown(FIGURES, ROWS, SKIPPED, CONDITIONS).splitlines()
    assert lines[2] == "| warm cell `x += 1` | 0.25 | 0.50 | ms | 100 | ≤ 0.3 ms | met | a\\|b |"
    assert lines[3] == "| rates | 0.30 |  | × | 5 | ≥ 0.6 × | missed by 2.00 × |  |"
    assert "| Jupyter kernel | – | – | – | 5.00 (9.00, 20) | – | not isolated |" in lines
    assert "Not measured: docker: `docker` is not installed." in lines
    assert any("Linux 6.18" in line and "2 CPUs" in line for line in lines)


def test_a_run_without_others_has_no_table_of_others():
    own = report.rows(defaultdict(list, warm_async=[0.3], warm_undo_back=[2.0, 4.0]), [])
    assert [(row.name, dict(row.tasks)) for row in own] == [
        ("Onetrip", {"warm": report.Cell(0.3, 0.3, 1)}),
        ("Onetrip, undo", {"warm": report.Cell(2.0, 4.0, 2)}),
    ]
    assert "pick instead" not in report.as_markdown(FIGURES, own, SKIPPED, CONDITIONS)


def test_json_holds_the_same_numbers_unrounded():
    data = json.loads(report.as_json(FIGURES, ROWS, SKIPPED, CONDITIONS))
    assert data["measures"][0] == {
        "key": "warm_async", "title": "warm cell `x += 1`", "unit": "ms", "value": 0.25, "n": 100, "p99": 0.5, "note": "a|b",
        "target": 0.3, "at_most": True, "verdict": "met",
    }  # fmt: skip
    assert data["beside"][2]["tasks"] == {"warm": {"p50": 5.0, "p99": 9.0, "n": 20}}
    assert data["skipped"] == [{"name": "docker", "reason": "`docker` is not installed"}]
    assert data["conditions"]["load_after"] == 1.5


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.write_between_markers(file, "new")
    report.write_between_markers(file, "newer")
    assert file.read_text() == f"before\n{report.START}\n\nnewer\n\n{report.END}\nafter\n"


@pytest.mark.parametrize(
    "text", ["no markers", report.START, f"{report.END}\n{report.START}", f"{report.START}\n{report.START}\n{report.END}"]
)
def test_a_file_without_one_pair_of_markers_is_refused_before_anything_is_measured(tmp_path, text):
    from onetrip import bench

    file = tmp_path / "README.md"
    file.write_text(text)
    started = time.monotonic()
    with pytest.raises(BadRequest, match="bench:start"):
        bench.main(update=[str(file)], environment="there is none of this name")
    assert time.monotonic() - started < 1
    assert file.read_text() == text


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="cannot be read"):
        report.check_markers(tmp_path / "missing.md")
