"""The command line with real sandboxes where it goes back: `run` with several programs, `shell` with undo and branches."""

import subprocess
import sys

import pytest

from onetrip import environments
from onetrip.errors import OnetripError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _default_environment():
    try:
        environments.find("default")
    except OnetripError as err:
        pytest.skip(f"there is no default environment here: {err}")


def onetrip(folder, *arguments, stdin=""):
    command = [sys.executable, "-m", "onetrip", *arguments]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.spec("CLI-02", "CLI-04", "UND-07", "UND-09")
def test_programs_that_failed_leave_nothing_to_those_after_them(tmp_path):
    (tmp_path / "begin.py").write_text("x = [1]\nopen('a.txt', 'w').write('begin')")
    (tmp_path / "leave.py").write_text("import os\nx.append(2)\nopen('a.txt', 'w').write('leave')\nos._exit(7)")
    (tmp_path / "raise.py").write_text("x.append(3)\nos")
    (tmp_path / "end.py").write_text("x, open('a.txt').read()")
    programs = ["begin.py", "leave.py", "raise.py", "end.py"]

    kept = onetrip(tmp_path, "run", "--keep-going", *programs)
    back = onetrip(tmp_path, "run", "--keep-going", "--on-error", "rollback", "--save", "saved", *programs)
    stopped = onetrip(tmp_path, "run", *programs)

    assert (kept.returncode, kept.stdout) == (1, "5\n([1, 3], 'begin')\n"), kept.stderr
    assert (back.returncode, back.stdout) == (1, "5\n([1], 'begin')\n"), back.stderr
    assert (kept.stderr.count("\nrolled back: "), back.stderr.count("\nrolled back: ")) == (1, 2)
    assert (tmp_path / "saved" / "a.txt").read_text() == "begin"
    assert (stopped.returncode, stopped.stdout) == (1, "5\n"), stopped.stderr
    assert "not run: raise.py, end.py\n" in stopped.stderr


@pytest.mark.spec("CLI-09", "UND-10", "UND-11", "FRK-02")
def test_the_shell_goes_back_and_branches(tmp_path):
    lines = [
        "x = [1]",
        "",
        "x.append(2)",
        "",
        "/undo",
        "/redo",
        "/undo",
        "/fork",
        "x.append(3)",
        "",
        "x",
        "",
        "/branch 0",
        "x",
        "",
    ]
    done = onetrip(tmp_path, "shell", stdin="\n".join(lines))
    assert (done.returncode, done.stdout) == (0, "[1, 3]\n[1]\n"), done.stderr
    assert done.stderr == (
        "variables and files are as they were after 1 cell\nvariables and files are as they were after 2 cells\n"
        "variables and files are as they were after 1 cell\nthis is branch 1; /branch 0 goes back to where it came from\n"
        "this is branch 0\n"
    )
