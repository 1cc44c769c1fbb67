"""How a cell behaves, in every tier and through both shapes of the interface: as in IPython."""

import base64
import textwrap

import msgspec
import pytest

from onetrip.model import Done, FileChange, Stderr, Stdout


def clean(source: str) -> str:
    return textwrap.dedent(source).strip()


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.spec("CEL-01")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("1 + 1", "2"),
        ("'a'", "'a'"),
        ("x = 1\nx", "1"),
        ("x = 1", None),
        ("None", None),
        ("1;", None),
        ("", None),
        ("# nothing", None),
        ("if True:\n    1", None),
        ("(1,\n 2)", "(1, 2)"),
        ("[1, 2][0]; 5", "5"),
        ("class A:\n    def __repr__(self): return 'an A'\nA()", "an A"),
        ("lambda: 0", None),
    ],
)
def test_the_value_of_the_last_expression(ot, source, text):
    result = ot.run(source)
    assert result.status == "completed"
    if source.startswith("lambda"):
        assert result.text.startswith("<function")
    else:
        assert result.text == text


@pytest.mark.spec("CEL-09")
@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("1", 1),
        ("1.5", 1.5),
        ("True", True),
        ("'é'", "é"),
        ("[1, (2, 3), {'a': None}]", [1, [2, 3], {"a": None}]),
        ("float('nan')", None),
        ("object()", None),
        ("'x' * 50_000_000", None),
        ("import numpy; numpy.int64(3)", 3),
        ("import numpy; numpy.float64(1.5)", 1.5),
        ("import numpy; numpy.arange(6).reshape(2, 3)", [[0, 1, 2], [3, 4, 5]]),
        ("import pandas; pandas.DataFrame({'a': [1, 2]})", [{"a": 1}, {"a": 2}]),
    ],
)
def test_the_value_as_json(ot, source, value):
    result = ot.run(source)
    assert result.status == "completed", result
    if "DataFrame" in source:
        assert result.value is not None
        assert "1" in msgspec.json.encode(result.value).decode()
    else:
        assert result.value == value
    assert msgspec.json.encode(result)


@pytest.mark.spec("CEL-03")
def test_state_lasts_in_the_session_and_nowhere_else(ot, session, value):
    assert session.run("import math as m\nx = 41\ndef f(): return x + 1\nopen('kept.txt', 'w').write('k')").ok
    assert value("[f(), round(m.pi, 2), open('kept.txt').read()]") == [42, 3.14, "k"]
    assert ot.run("'x' in globals()").value is False
    with ot.session() as other:
        assert other.run("'x' in globals(), __import__('os').path.exists('kept.txt')").value == [False, False]


@pytest.mark.spec("CEL-08")
def test_inputs_are_variables(ot, value):
    given = {"a": 1, "b": [1.5, None, {"c": "é"}], "data": "x" * 1_000_000}
    assert value("[a, b, len(data)]", inputs=given) == [1, [1.5, None, {"c": "é"}], 1_000_000]
    assert ot.run("a * 2", inputs={"a": 21}).value == 42


# ---------------------------------------------------------------------------------------------------- output


@pytest.mark.spec("CEL-02")
def test_output_of_python_of_c_and_of_children_keeps_its_order(ot):
    source = """
        import ctypes, os, subprocess, sys
        print("print")
        os.write(1, b"write\\n")
        ctypes.CDLL(None).puts(b"puts")
        subprocess.run(["echo", "child"])
        os.system("echo shell")
        sys.stdout.write("end\\n")
        print("bad", file=sys.stderr)
        os.write(2, b"worse\\n")
    """
    result = ot.run(clean(source))
    assert (result.status, result.stdout.split(), result.stderr.split()) == (
        "completed", ["print", "write", "puts", "child", "shell", "end"], ["bad", "worse"],
    )  # fmt: skip


@pytest.mark.spec("CEL-02", "API-04")
def test_output_streams_while_the_cell_runs(session):
    """The second line is printed only when somebody has seen the first."""
    source = """
        import os, time
        print("one", flush=True)
        while not os.path.exists("seen"): time.sleep(0.01)
        print("two", flush=True)
        "end"
    """
    told = []
    for event in session.stream(clean(source), timeout_s=20):
        if isinstance(event, Stdout):
            told.append(event.text)
            session.files.write("seen", b"")
        if isinstance(event, Done):
            result = event.result
    assert ("".join(told), result.text) == ("one\ntwo\n", "'end'")


@pytest.mark.spec("API-04")
def test_a_stream_ends_with_the_result_of_all_of_it(ot):
    events = list(ot.stream("import sys\nprint('a')\nprint('b', file=sys.stderr)\ndisplay('c')\n5"))
    assert [type(event).__name__ for event in (events[0], events[-1])] == ["Started", "Done"]
    result = events[-1].result
    assert result.stdout == "".join(event.text for event in events if isinstance(event, Stdout))
    assert result.stderr == "".join(event.text for event in events if isinstance(event, Stderr)) == "b\n"
    assert (result.id, result.text) == (events[0].run_id, "5")


@pytest.mark.spec("CEL-06")
def test_reading_standard_input_fails_at_once_and_says_why(ot):
    for source in ("input()", "input('name? ')", "import sys; sys.stdin.read()", "import fileinput; list(fileinput.input())"):
        result = ot.run(source, timeout_s=10)
        assert (result.status, result.error.type) == ("failed", "EOFError")
        assert "nobody to ask" in result.error.message
    assert ot.run("import os; os.read(0, 1).decode()").value == ""
    assert ot.run("import subprocess; subprocess.run(['cat'], capture_output=True).stdout.decode()").value == ""


# ---------------------------------------------------------------------------------------------------- displays


@pytest.mark.spec("CEL-07")
def test_figures_are_pictures_without_show_too(ot):
    source = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nplt.bar([1], [2])"
    result = ot.run(source)
    pictures = [base64.b64decode(display.data["image/png"]) for display in result.displays if "image/png" in display.data]
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert len(ot.run(source + "\nplt.show()").displays) == 2
    assert ot.run("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.close()").displays == ()


@pytest.mark.spec("CEL-07")
def test_frames_have_html(ot):
    result = ot.run("import pandas as pd\npd.DataFrame({'a': [1, 2]})")
    (display,) = result.displays
    assert "<table" in display.data["text/html"]
    assert display.is_result
    assert result.text.split() == ["a", "0", "1", "1", "2"]


@pytest.mark.spec("CEL-07")
def test_objects_that_know_how_to_show_themselves(ot):
    source = """
        class Rich:
            def _repr_html_(self): return "<b>html</b>"
            def _repr_markdown_(self): return "**md**"
            def __repr__(self): return "plain"
        class Picture:
            def _repr_png_(self): return b"\\x89PNG"
        display(Rich(), Picture())
        Rich()
    """
    result = ot.run(clean(source))
    assert [sorted(display.data) for display in result.displays] == [
        ["text/html", "text/markdown", "text/plain"], ["image/png", "text/plain"], ["text/html", "text/markdown", "text/plain"],
    ]  # fmt: skip
    assert [display.is_result for display in result.displays] == [False, False, True]


# ---------------------------------------------------------------------------------------------------- await


@pytest.mark.spec("CEL-04")
def test_await_at_top_level(value):
    assert value("import asyncio\nawait asyncio.sleep(0, 'slept')") == "slept"
    source = """
        async def numbers():
            for n in range(3):
                yield n
        class Manager:
            async def __aenter__(self): return "in"
            async def __aexit__(self, *exc): pass
        found = [n async for n in numbers()]
        async for n in numbers(): found.append(n)
        async with Manager() as m: found.append(m)
        found
    """
    assert value(source) == [0, 1, 2, 0, 1, 2, "in"]
    assert value("sum(await asyncio.gather(*(asyncio.sleep(0, n) for n in range(4))))") == 6


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.spec("CEL-05", "API-03")
def test_a_traceback_holds_the_programs_frames_with_their_lines(session):
    assert session.run("def broken(n):\n    return 1 / n").ok
    result = session.run("x = 1\n\nbroken(0)")
    assert (result.status, result.error.type, result.error.message, result.error.line) == (
        "failed",
        "ZeroDivisionError",
        "division by zero",
        3,
    )
    lines = result.error.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in lines if line.startswith("  File")] == [
        'File "<cell 2>", line 3, in <module>',
        'File "<cell 1>", line 2, in broken',
    ]
    assert "    broken(0)" in lines
    assert "    return 1 / n" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "island" not in result.error.traceback
    assert result.session.survived


@pytest.mark.spec("CEL-13")
@pytest.mark.parametrize(
    ("source", "line"), [("x = 1\ny = (", 2), ("def f(:\n  pass", 1), ("x = 1\n\n  y = 2", 3), ("return 5", 1), ("'abc", 1)]
)
def test_a_syntax_error_is_a_result_with_its_line(session, value, source, line):
    result = session.run(source)
    assert result.status == "failed"
    assert result.error.type in ("SyntaxError", "IndentationError")
    assert result.error.line == line
    assert value("1 + 1") == 2


@pytest.mark.spec("CEL-10", "API-03")
@pytest.mark.parametrize(
    ("source", "status", "kind"),
    [
        ("raise SystemExit", "completed", None),
        ("import sys; sys.exit(0)", "completed", None),
        ("import sys; sys.exit(3)", "failed", "SystemExit"),
        ("import sys; sys.exit('why')", "failed", "SystemExit"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "failed", "RecursionError"),
        ("raise GeneratorExit", "failed", "GeneratorExit"),
        ("class E(BaseException): pass\nraise E('own')", "failed", "E"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "failed", "E"),
        ("class R:\n    def __repr__(self): 1 / 0\nR()", None, None),
        ("raise ExceptionGroup('many', [ValueError(1), TypeError(2)])", "failed", "ExceptionGroup"),
        ("raise ValueError('a\\ud800b')", "failed", "ValueError"),
        ("print('a\\ud800b')", None, None),
        ("'a\\ud800b'", "completed", None),
        ("raise ValueError('x' * 10_000_000)", "failed", "ValueError"),
        ("del __builtins__", "completed", None),
        ("import builtins; builtins.print = builtins.len = None", "completed", None),
        ("import sys; sys.stdout = sys.stderr = None", "completed", None),
        ("import sys; sys.modules.clear()", "completed", None),
        ("import os; os.chdir('/'); os.umask(0o777)", "completed", None),
        ("import os; os.chmod('/workspace', 0)", "completed", None),
    ],
)
def test_whatever_a_program_does_is_a_result_and_the_session_goes_on(session, source, status, kind):
    result = session.run(source)
    if status is not None:
        assert (result.status, result.error and result.error.type) == (status, kind), result
    assert result.session.survived
    assert len(msgspec.json.encode(result)) < 1_000_000
    assert session.run("1 + 1").text == "2"


@pytest.mark.spec("API-03")
@pytest.mark.parametrize(
    "source",
    ["import os; os._exit(1)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import ctypes; ctypes.string_at(0)"],
)
def test_a_program_that_kills_its_interpreter_is_a_result_that_says_so(ot, source):
    result = ot.run(source)
    assert (result.status, result.error.type, result.session.survived) == ("failed", "ProcessDied", False)


@pytest.mark.spec("CEL-10")
def test_threads_that_outlive_their_cell_print_into_a_later_one(session):
    assert session.run(
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late', flush=True))).start()"
    ).ok
    assert "late" in session.run("time.sleep(0.5)").stdout


# ---------------------------------------------------------------------------------------------------- one-shots


@pytest.mark.spec("CEL-12")
def test_a_one_shot_ends_as_a_program_does(ot):
    source = """
        import atexit, sys, threading, time
        class Last:
            def __del__(self): print("del")
        last = Last()
        atexit.register(lambda: print("atexit"))
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
        print("main")
    """
    result = ot.run(clean(source))
    assert (result.status, result.stdout.split()) == ("completed", ["main", "thread", "atexit", "del"])


@pytest.mark.spec("CEL-12", "CEL-10")
def test_a_one_shot_that_exits_still_runs_its_exit_handlers(ot):
    result = ot.run("import atexit, sys\natexit.register(print, 'bye')\nsys.exit(2)")
    assert (result.status, result.error.type, result.stdout) == ("failed", "SystemExit", "bye\n")


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.spec("CEL-11")
def test_files_that_a_cell_changed_are_listed(session):
    session.files.write("given.txt", b"given")
    session.files.write("other.txt", b"other")
    result = session.run(
        "import os\nopen('new.txt', 'w').write('12345')\nos.makedirs('d/e'); open('d/e/f', 'w').close()\nopen('given.txt', 'a').write('+')\nos.remove('other.txt')"
    )
    assert result.files == (
        FileChange("d/e/f", 0, "created"),
        FileChange("given.txt", 6, "modified"),
        FileChange("new.txt", 5, "created"),
        FileChange("other.txt", 0, "deleted"),
    )
    assert session.run("1").files == ()
    assert session.run("open('d/e/f', 'w').write('now')").files == (FileChange("d/e/f", 3, "modified"),)


@pytest.mark.spec("CEL-11")
def test_a_file_rewritten_with_the_same_size_is_a_change(session):
    session.run("open('a', 'w').write('1')")
    assert session.run("open('a', 'w').write('2')").files == (FileChange("a", 1, "modified"),)
