"""Cells behave as in IPython, through the whole chain: host, protocol, jail, guest."""

import base64

import pytest

from onetrip.model import Displayed, Done, FileChange, Started, Stdout


@pytest.fixture(scope="module")
def ot(anywhere):
    return anywhere


@pytest.mark.spec("CEL-01")
@pytest.mark.parametrize(
    ("code", "text"),
    [("1 + 1", "2"), ("'a'", "'a'"), ("x = 1", None), ("None", None), ("1;", None), ("def f(): pass", None), ("", None)],
)
def test_the_last_expression_is_the_text(session, code, text):
    result = session.run(code)
    assert (result.status, result.text) == ("completed", text)


@pytest.mark.spec("CEL-02")
def test_output_of_python_children_and_c_code_arrives_in_order(session):
    result = session.run(
        "import ctypes, os, subprocess, sys\n"
        "print('python')\n"
        "subprocess.run(['/bin/sh', '-c', 'echo child'])\n"
        "os.write(1, b'descriptor\\n')\n"
        "ctypes.CDLL(None).puts(b'c code')\n"
        "os.system('echo shell')\n"
        "print('error', file=sys.stderr)\n"
        "print('end')"
    )
    assert result.stdout == "python\nchild\ndescriptor\nc code\nshell\nend\n"
    assert result.stderr == "error\n"


@pytest.mark.spec("CEL-02", "API-04")
def test_output_arrives_while_the_cell_runs_and_between_displays(session):
    # The cell goes on only when the host has written a file, which it does when it has seen the first line.
    events = session.stream(
        "import os, time\nprint('first')\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\ndisplay('shown')\nprint('last')",
        timeout_s=10,
    )
    kinds = []
    for event in events:
        if isinstance(event, Stdout) and event.text == "first\n":
            session.files.write("go", b"")
        kinds.append(event.text if isinstance(event, Stdout) else type(event))
    assert kinds == [Started, "first\n", Displayed, "last\n", Done]


@pytest.mark.spec("CEL-03")
def test_what_a_cell_made_is_there_later_and_nowhere_else(ot, session):
    session.run("import math\nx = 3\ndef double(n):\n    return 2 * n\nopen('kept', 'w').write('!')")
    assert session.run("double(x) + math.floor(0.5), open('kept').read()").text == "(6, '!')"
    assert ot.run("'x' in globals(), __import__('os').path.exists('kept')").text == "(False, False)"


@pytest.mark.spec("CEL-04")
def test_await_works_at_top_level(session):
    code = "import asyncio\nasync def f(n):\n    await asyncio.sleep(0)\n    return n\nsum(await asyncio.gather(f(1), f(2)))"
    assert session.run(code).text == "3"
    assert session.run("asyncio.run(f(4))").text == "4"


@pytest.mark.spec("CEL-05")
def test_a_traceback_holds_the_programs_own_lines_also_of_earlier_cells(session):
    session.run("def broken(n):\n    return 1 / n\n")
    error = session.run("\nbroken(0)").error
    assert (error.type, error.message, error.line) == ("ZeroDivisionError", "division by zero", 2)
    assert [line.strip() for line in error.traceback.splitlines() if "~" not in line and "^" not in line] == [
        "Traceback (most recent call last):",
        'File "<cell 2>", line 2, in <module>',
        "broken(0)",
        'File "<cell 1>", line 2, in broken',
        "return 1 / n",
        "ZeroDivisionError: division by zero",
    ]


@pytest.mark.spec("CEL-05")
def test_frames_of_libraries_are_counted_not_shown(session):
    traceback = session.run("import json\njson.loads('{')").error.traceback
    assert "frames of libraries" in traceback
    assert "decoder.py" not in traceback


@pytest.mark.spec("CEL-06")
def test_input_fails_at_once_and_says_what_to_do(session):
    error = session.run("input('name? ')").error
    assert error.type == "EOFError"
    assert "inputs" in error.message
    for reading in ("sys.stdin.read()", "sys.stdin.readline()", "list(sys.stdin)", "sys.stdin.buffer.read()"):
        error = session.run(f"import sys; {reading}").error
        assert (error.type, "inputs" in error.message) == ("EOFError", True)


@pytest.mark.spec("CEL-07")
def test_figures_frames_and_own_reprs_are_displayed(session):
    figure = session.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nNone")
    (display,) = figure.displays
    assert base64.b64decode(display.data["image/png"]).startswith(b"\x89PNG")
    (frame,) = session.run("import pandas as pd\npd.DataFrame({'a': [1]})").displays
    assert frame.is_result
    assert "<table" in frame.data["text/html"]
    shown = session.run("class Rich:\n    def _repr_html_(self):\n        return '<b>!</b>'\ndisplay(Rich())").displays
    assert [(d.data["text/html"], d.is_result) for d in shown] == [("<b>!</b>", False)]


@pytest.mark.spec("CEL-08")
def test_inputs_are_variables(session):
    result = session.run("rows[0]['a'] + n, flag, nothing", inputs={"rows": [{"a": 1}], "n": 2, "flag": True, "nothing": None})
    assert result.value == [3, True, None]


@pytest.mark.spec("CEL-09")
@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("{'a': [1, 2.5, None, True]}", {"a": [1, 2.5, None, True]}),
        ("import numpy as np; np.arange(3)", [0, 1, 2]),
        ("import numpy as np; np.float64(0.5)", 0.5),
        ("import pandas as pd; pd.DataFrame({'a': [1, 2]})", {"columns": ["a"], "index": [0, 1], "data": [[1], [2]]}),
        ("2 ** 100", 2**100),
        ("object()", None),
        ("'x' * 3_000_000", None),
        ("float('nan')", None),
    ],
)
def test_the_value_is_json_where_it_can_be(session, code, value):
    assert session.run(code).value == value


@pytest.mark.spec("CEL-10")
@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("raise SystemExit", "completed", None),
        ("import sys; sys.exit(3)", "failed", "SystemExit"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("def f(): return f()\nf()", "failed", "RecursionError"),
        ("print('\\ud800'); '\\udfff'", "completed", None),
        ("[float('nan'), float('inf')]", "completed", None),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(30,), daemon=True).start()", "completed", None),
    ],
)
def test_odd_ends_yield_a_proper_result(session, code, status, error):
    result = session.run(code)
    assert (result.status, result.error.type if result.error else None) == (status, error)
    assert session.run("'lives'").text == "'lives'"


@pytest.mark.spec("CEL-11")
def test_files_that_a_cell_touched_are_listed(session):
    session.files.write("given.txt", b"given")
    made = session.run("import os\nos.mkdir('d')\nopen('d/new', 'w').write('12345')\nopen('given.txt', 'a').write('!')\nNone")
    assert made.files == (FileChange("d/new", 5, "created"), FileChange("given.txt", 6, "modified"))
    assert session.run("os.remove('d/new')").files == (FileChange("d/new", 0, "deleted"),)
    assert session.run("1").files == ()


@pytest.mark.spec("CEL-12")
def test_a_one_shot_ends_as_a_program_does(either):
    result = either.run(
        "import atexit, threading, time\n"
        "atexit.register(print, 'handler')\n"
        "def later():\n    time.sleep(0.05)\n    print('thread')\n"
        "threading.Thread(target=later).start()\nprint('main')"
    )
    assert (result.status, result.stdout) == ("completed", "main\nthread\nhandler\n")


@pytest.mark.spec("CEL-13")
def test_a_syntax_error_is_a_result_with_its_line(session):
    error = session.run("a = 1\nb = = 2").error
    assert (error.type, error.line) == ("SyntaxError", 2)
    assert session.run("'a' in globals()").text == "False"
