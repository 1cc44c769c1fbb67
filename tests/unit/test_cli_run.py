"""`onetrip run`: output where it belongs, the outcome in the exit status, every mistake named with its remedy."""

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from onetrip import errors
from onetrip.cli import main
from onetrip.cli.seam import Seam
from onetrip.model import (
    DisplayData,
    Displayed,
    Done,
    FileChange,
    LimitHit,
    Limits,
    ModulePolicy,
    Policy,
    ProgramError,
    SessionState,
    Stderr,
    Stdout,
    Truncated,
)

PLAIN = {"checkpoints": 0, "on_error": "keep"}  # nothing can follow a program that is alone
SUMMARY = "completed · 12.3 ms wall, 4.5 ms cpu, 64 MB peak · jail, strict\n"


def run(fake, *arguments, stdin=""):
    return CliRunner().invoke(main, ["run", *arguments], input=stdin, obj=Seam(fake), catch_exceptions=False)


@pytest.mark.spec("CLI-01")
def test_output_goes_where_the_program_sent_it_and_ours_to_stderr(Fake, result):
    fake = Fake(Stdout("one\n"), Stderr("two\n"), Stdout("three"), Done(result(text="'value'")))

    done = run(fake, "-c", "code")

    assert (done.exit_code, done.stdout, done.stderr) == (0, "one\nthree\n'value'\n", "two\n" + SUMMARY)
    assert fake.cells == [("code", {}, True)]
    assert fake.asked == [
        {"environment": "default", "limits": Limits(), "policy": Policy(), "files": {}, "isolation_floor": "strict"} | PLAIN
    ]


@pytest.mark.spec("CLI-02")
@pytest.mark.parametrize(
    ("changes", "status", "stderr"),
    [
        ({}, 0, ""),
        ({"status": "failed", "error": ProgramError("E", "why", "Traceback\nE: why\n", 1)}, 1, "Traceback\nE: why\n"),
        ({"status": "failed", "error": ProgramError("E", "why")}, 1, "E: why\n"),
        ({"status": "interrupted"}, 1, "interrupted\n"),
        (
            {"status": "limit_exceeded", "limit": LimitHit("wall", 1.5, "s")},
            3,
            "error: the wall limit of 1.5 s ended the run\nhint: Raise it with --wall-s, or look for a loop that does not end.\n",
        ),
        (
            {"status": "lost"},
            4,
            "error: the sandbox was lost\nhint: Run it again; `onetrip doctor` shows what this machine gives.\n",
        ),
        ({"truncated": Truncated(stdout=True)}, 0, "stdout was cut at the limit of output\n"),
    ],
)
def test_the_exit_status_says_how_the_run_ended(changes, status, stderr, Fake, result):
    done = run(Fake(Done(result(**changes))), "-c", "code")
    assert (done.exit_code, done.stdout) == (status, "")
    assert done.stderr == stderr + SUMMARY.replace("completed", changes.get("status", "completed").replace("_", " "))


@pytest.mark.spec("CLI-03")
def test_json_prints_the_result_object_and_nothing_else(Fake, result):
    wanted = result(text="1", value=1, stdout="x\n", files=(FileChange("a", 1, "created"),), session=SessionState(survived=True))

    done = run(Fake(Stdout("x\n"), Done(wanted)), "-c", "code", "--json")

    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(msgspec.json.encode(wanted))


@pytest.mark.spec("CLI-03")
def test_json_keeps_the_exit_status(Fake, result):
    assert run(Fake(Done(result(status="limit_exceeded", limit=LimitHit("cpu", 1, "s")))), "-c", "x", "--json").exit_code == 3


@pytest.mark.spec("CLI-04")
def test_every_option_reaches_the_session(tmp_path, Fake, result):
    data = tmp_path / "data.csv"
    data.write_bytes(b"a,b\n")
    fake = Fake(Done(result()))

    done = run(
        fake,
        *("-c", "code", "--env", "mine", "--file", str(data), "--input", "n=3", "--input", 'w=["a", null]'),
        *("--wall-s", "1.5", "--cpu-s", "2", "--memory-mb", "64", "--processes", "8", "--disk-mb", "4", "--output-mb", "2"),
        *(
            "--on-error",
            "rollback",
            "--isolation-floor",
            "reduced",
            "--allow-module",
            "numpy,json",
            "--allow-module",
            "re",
            "--deny-module",
            "os.path",
        ),
    )

    assert (done.exit_code, fake.cells) == (0, [("code", {"n": 3, "w": ["a", None]}, True)])
    assert fake.asked == [
        {
            "environment": "mine",
            "limits": Limits(wall_s=1.5, cpu_s=2, memory_mb=64, processes=8, disk_mb=4, output_mb=2),
            "policy": Policy(modules=ModulePolicy(allow=("numpy", "json", "re"), deny=("os.path",))),
            "files": {"data.csv": b"a,b\n"},
            "isolation_floor": "reduced",
            "checkpoints": 1,
            "on_error": "rollback",
        }
    ]


@pytest.mark.spec("CLI-04")
def test_source_comes_from_a_file_from_a_dash_and_from_a_pipe(tmp_path, Fake, result):
    program = tmp_path / "program.py"
    program.write_bytes("\ufeffprint('ä')\r\n".encode())
    fake = Fake(Done(result()))

    assert [run(fake, str(program)).exit_code, run(fake, "-", stdin="a").exit_code, run(fake, stdin="b").exit_code] == [0, 0, 0]
    assert [code for code, _, _ in fake.cells] == ["print('ä')\r\n", "a", "b"]


@pytest.mark.spec("CLI-05")
def test_save_writes_the_pictures_and_the_files_that_were_made(tmp_path, Fake, result):
    picture = DisplayData({"image/png": base64.b64encode(b"PNG").decode(), "text/plain": "<Figure>"})
    table = DisplayData({"text/html": "<b>ä</b>", "text/plain": "ä"})
    changes = (FileChange("sub/out.csv", 3, "created"), FileChange("gone", 0, "deleted"), FileChange("lost", 1, "modified"))
    fake = Fake(Displayed(picture), Displayed(table), Done(result(files=changes)), files={"sub/out.csv": b"1,2"})
    folder = tmp_path / "saved"

    done = run(fake, "-c", "code", "--save", str(folder))

    assert done.stdout == "<Figure>\nä\n"
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "display-1.png": b"PNG",
        "display-2.html": "<b>ä</b>".encode(),
        "sub/out.csv": b"1,2",
    }
    assert done.stderr == (
        f"not saved: lost: There is no file 'lost'.\nsaved {folder}/display-1.png\nsaved {folder}/display-2.html\nsaved {folder}/sub/out.csv\n{SUMMARY}"
    )


@pytest.mark.spec("CLI-05")
@pytest.mark.parametrize("path", ["../outside", "link/outside"])
def test_save_never_writes_outside_its_folder(tmp_path, path, Fake, result):
    folder, elsewhere = tmp_path / "saved", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    fake = Fake(Done(result(files=(FileChange(path, 1, "created"),))), files={path: b"x"})

    done = run(fake, "-c", "code", "--save", str(folder))

    assert (sorted(tmp_path.rglob("outside")), os.listdir(elsewhere)) == ([], [])
    assert f"not saved: --save: {folder}/{path} would be written outside of {folder}.\n" in done.stderr


@pytest.mark.spec("CLI-05")
def test_without_save_what_is_lost_is_said(Fake, result):
    picture = DisplayData({"image/png": "AAAA", "text/plain": "<Figure>"})
    done = run(Fake(Displayed(picture), Done(result(files=(FileChange("a", 1, "created"),)))), "-c", "code")
    assert done.stderr == "not kept: 1 pictures, 1 files; --save DIR keeps them\n" + SUMMARY


BAD = [
    ("BAD-01", ["latin.py"], "error: latin.py: the source is not UTF-8: byte 0xe4 at offset 8 (line 2).\n"),
    ("BAD-01", ["bom.py"], "error: bom.py: the source is not UTF-8: byte 0xff at offset 3 (line 1).\n"),
    ("BAD-01", ["nul.py"], "error: nul.py: the source holds a NUL character in line 2; Python refuses such source.\n"),
    ("BAD-02", ["huge.py"], "error: FILE: huge.py has 50,000,000 bytes; the most is 10,485,760 (10 MiB).\n"),
    ("BAD-05", ["missing.py"], "error: FILE: missing.py: No such file or directory.\n"),
    ("BAD-05", ["."], "error: FILE: .: Is a directory.\n"),
    ("BAD-05", ["-c", "1", "--file", "missing.csv"], "error: --file: missing.csv: No such file or directory.\n"),
    ("BAD-05", ["-c", "1", "--file", "."], "error: --file: . is a folder.\n"),
    ("BAD-05", ["-c", "1", "--file", "pipe"], "error: --file: pipe is not a regular file.\n"),
    ("BAD-05", ["-c", "1", "--file", "nul.py", "--file", "sub/nul.py"], "error: --file: there are two files named 'nul.py'.\n"),
    (
        "BAD-05",
        ["-c", "1", "--disk-mb", "1", "--file", "huge.py"],
        "error: --file: huge.py has 50,000,000 bytes; the workspace has room for 1,048,576.\n",
    ),
    ("BAD-04", ["-c", "1", "--wall-s", "-1"], "error: --wall-s: -1.0 is out of range; it must be from 0.01 to 86,400 s.\n"),
    ("BAD-04", ["-c", "1", "--wall-s", "nan"], "error: --wall-s: nan is out of range; it must be from 0.01 to 86,400 s.\n"),
    ("BAD-04", ["-c", "1", "--memory-mb", "0"], "error: --memory-mb: 0 is out of range; it must be from 32 to 1,048,576 MB.\n"),
    (
        "BAD-04",
        ["-c", "1", "--processes", "999999"],
        "error: --processes: 999999 is out of range; it must be from 1 to 4,096 processes and threads.\n",
    ),
    ("BAD-06", ["-c", "1", "--input", "n"], "error: --input: 'n' is not NAME=JSON.\n"),
    ("BAD-06", ["-c", "1", "--input", "a b=1"], "error: inputs: 'a b' is not a name that a variable can have.\n"),
    ("BAD-06", ["-c", "1", "--input", "n=[1"], "error: --input: n: not JSON: Input data was truncated.\n"),
    ("BAD-06", ["-c", "1", "--deny-module", "1x"], "error: --deny-module: '1x' is not the name of a module.\n"),
    ("BAD-06", ["-c", "1", "nul.py"], "error: Both FILE and -c were given.\n"),
    ("BAD-05", ["sub/nul.py", "missing.py"], "error: FILE: missing.py: No such file or directory.\n"),
    ("BAD-06", ["-", "sub/nul.py", "-"], "error: FILE: stdin was named twice.\n"),
    ("BAD-05", ["-c", "1", "--save", "nul.py"], "error: --save: nul.py: File exists.\n"),
]


@pytest.mark.spec("BAD-01", "BAD-02", "BAD-04", "BAD-05", "BAD-06")
@pytest.mark.parametrize(("promise", "arguments", "message"), BAD, ids=[f"{row[0]}-{'-'.join(row[1])[:40]}" for row in BAD])
def test_bad_input_is_named_with_a_remedy_and_starts_nothing(tmp_path, monkeypatch, promise, arguments, message, Fake, result):
    monkeypatch.chdir(tmp_path)
    Path("latin.py").write_bytes(b"# \xc3\xa4\nx='\xe4'\n")
    Path("bom.py").write_bytes(b"\xef\xbb\xbf\xff")
    Path("nul.py").write_bytes(b"x = 1\ny = '\0'\n")
    Path("sub").mkdir()
    Path("sub/nul.py").write_bytes(b"")
    os.mkfifo("pipe")
    with open("huge.py", "wb") as file:
        file.truncate(50_000_000)
    fake = Fake(Done(result()))

    done = run(fake, *arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.removeprefix(message).startswith("hint: ")
    assert (fake.asked, fake.cells) == ([], [])


@pytest.mark.spec("BAD-02")
def test_endless_source_from_a_pipe_is_refused_at_the_cap():
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [sys.executable, "-m", "onetrip", "run", "-"], stdin=endless, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: stdin: more than 10,485,760 bytes of source (10 MiB).\nhint: Pass data with --file.\n"


@pytest.mark.spec("CLI-06")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownEnvironment("There is no environment 'x'; there are: none.", field="environment"), 2),
        (errors.IsolationUnavailable("The level strict cannot be had here."), 4),
        (errors.SandboxFailed("pivot_root: EINVAL"), 4),
    ],
)
def test_our_own_failures_say_what_happened_and_what_to_do(error, status, Fake):
    done = run(Fake(error=error), "-c", "code")
    assert (done.exit_code, done.stdout, done.stderr) == (status, "", f"error: {error}\nhint: {error.hint}\n")


# A stand-in for the sandbox whose cell runs until it is interrupted, in a process of its own that can be sent signals.
WAITING = textwrap.dedent("""
    import contextlib, sys, threading
    from onetrip.cli import main
    from onetrip.cli.seam import Seam
    from onetrip.model import Done, Isolation, Result, Stdout

    class Fake:
        heard = threading.Event()
        deaf = sys.argv.pop() == "deaf"

        @contextlib.contextmanager
        def local(self):
            yield self

        @contextlib.contextmanager
        def session(self, **_):
            try:
                yield self
            finally:
                print("closed", file=sys.stderr)

        def stream(self, code, **_):
            yield Stdout("ready\\n")
            self.heard.wait()
            if self.deaf:
                yield Stdout("deaf\\n")
                threading.Event().wait()
            yield Done(Result(id="r", session_id=None, status="interrupted", isolation=Isolation("jail", "strict", ())))

        def interrupt(self):
            self.heard.set()

    main(obj=Seam(Fake()))
""")


def waiting(kind: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WAITING, "run", "-c", "loop", kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.spec("CLI-07")
def test_ctrl_c_interrupts_the_program_and_reports_it():
    with waiting("hears") as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (
        1,
        "interrupted\ninterrupted · 0.0 ms wall, 0.0 ms cpu, 0 MB peak · jail, strict\nclosed\n",
    )


@pytest.mark.spec("CLI-07")
def test_a_second_ctrl_c_gives_up_waiting_and_still_closes_the_session():
    with waiting("deaf") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "deaf\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (1, "closed\ninterrupted\n")


@pytest.mark.spec("CLI-07")
def test_told_to_end_it_closes_the_session():
    with waiting("deaf") as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (128 + signal.SIGTERM, "closed\n")


@pytest.mark.spec("CLI-08")
def test_a_reader_that_goes_away_is_not_an_error(Fake):
    script = textwrap.dedent("""
        import contextlib, sys
        from onetrip.cli import main
        from onetrip.cli.seam import Seam
        from onetrip.model import Stdout

        class Fake:
            @contextlib.contextmanager
            def local(self):
                yield self

            @contextlib.contextmanager
            def session(self, **_):
                yield self

            def stream(self, code, **_):
                while True:
                    yield Stdout("line\\n" * 1000)

        main(obj=Seam(Fake()))
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, "run", "-c", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1
