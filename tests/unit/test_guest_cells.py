"""Cells behave as in IPython: results, namespace, tracebacks, await, notebook syntax, ends of programs."""

import pytest
from guest_process import GuestProcess

NOTHING = {"text": None, "value": None, "has_value": False, "error": None, "interrupted": False, "limit": None}


@pytest.fixture(scope="module")
def shared():
    with GuestProcess() as guest:
        yield guest


@pytest.fixture
def guest():
    with GuestProcess() as guest:
        yield guest


def done(guest, code, **options):
    return guest.run(code, **options)["done"]


def error(guest, code, **options):
    return done(guest, code, **options)["error"]


def test_value_of_the_last_expression_is_the_result(shared):
    assert done(shared, "x = 20\nx + 1") == {**NOTHING, "text": "21", "value": 21, "has_value": True}


@pytest.mark.parametrize(
    "code", ["None", "x = 1", "1;", "(1);", "1 ; # quiet", "def f(): pass", "", "# only a comment", "for i in [1]:\n    i"]
)
def test_cells_without_a_result(shared, code):
    assert done(shared, code) == NOTHING


def test_semicolon_inside_a_string_or_comment_does_not_silence(shared):
    assert done(shared, "'a;'")["text"] == "'a;'"
    assert done(shared, "5 # ;")["text"] == "5"


def test_underscores_are_the_last_three_results_unless_the_program_uses_them(guest):
    assert error(guest, "_")["type"] == "NameError"
    guest.run("'one'")
    guest.run("x = 5")
    guest.run("'two'")
    guest.run("'three'")
    assert done(guest, "(_, __, ___)")["value"] == ["three", "two", "one"]
    guest.run("_ = 'mine'")
    guest.run("'four'")
    assert done(guest, "_")["value"] == "mine"


def test_inputs_become_variables(shared):
    assert done(shared, "(a, b)", inputs={"a": [1, None], "b": {"k": "ü"}})["value"] == [[1, None], {"k": "ü"}]


def test_namespace_is_a_real_main_module(shared):
    code = """
import sys, pickle, dataclasses
class P: pass
@dataclasses.dataclass
class D:
    x: int
main = sys.modules["__main__"]
[__name__, main.P is P, type(pickle.loads(pickle.dumps(P()))) is P, D(1) == D(1), sys.argv, sys.path[0], __builtins__.__name__]
"""
    assert done(shared, code)["value"] == ["__main__", True, True, True, [""], "", "builtins"]


def test_a_fresh_session_shows_only_what_python_c_shows(guest):
    names = ["__annotations__", "__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"]
    assert done(guest, "dir()")["value"] == names


def test_our_modules_are_not_to_be_seen(guest):
    code = "import sys, linecache\n[m for m in sys.modules if 'island' in m or 'onetrip' in m] + [f for f in linecache.cache if 'cell 0' in f]"
    assert done(guest, code)["value"] == []


def test_future_imports_hold_in_later_cells(guest):
    guest.run("from __future__ import annotations")
    assert done(guest, "def f(x: Undefined): pass\nf.__annotations__")["value"] == {"x": "Undefined"}


def test_traceback_begins_at_the_programs_own_frames_and_has_source_lines_of_earlier_cells(guest):
    guest.run("def inner(n):\n    return 1 / n")
    got = error(guest, "x = 1\ninner(0)")
    lines = [line for line in got.pop("traceback").splitlines() if set(line) - set(" ~^")]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 2, in <module>',
        "    inner(0)",
        '  File "<cell 1>", line 2, in inner',
        "    return 1 / n",
        "ZeroDivisionError: division by zero",
    ]
    assert got == {"type": "ZeroDivisionError", "message": "division by zero", "line": 2}


def test_chained_and_grouped_exceptions_show_none_of_our_frames(shared):
    code = """
def f():
    try:
        display(1)
        raise KeyError('first')
    except KeyError as e:
        raise ExceptionGroup('many', [ValueError('one')]) from e
f()
"""
    got = error(shared, code)
    assert got["type"] == "ExceptionGroup"
    assert got["line"] == 7
    for part in ("KeyError: 'first'", "direct cause", "ValueError: one", "| ExceptionGroup: many (1 sub-exception)"):
        assert part in got["traceback"]
    files = {line.split('"')[1] for line in got["traceback"].splitlines() if 'File "' in line}
    assert files == {f"<cell {shared._cells}>"}


def test_syntax_error_points_at_the_line(shared):
    got = error(shared, "x = 1\ny = = 2")
    assert (got["type"], got["line"]) == ("SyntaxError", 2)
    assert "    y = = 2\n        ^\nSyntaxError: invalid syntax\n" in got["traceback"]


def test_source_that_is_no_python_at_all(shared):
    assert error(shared, b"\xff\xfe")["type"] == "UnicodeDecodeError"
    assert error(shared, "x = '\x00'")["type"] in ("SyntaxError", "ValueError")
    assert error(shared, "(" * 5000)["type"] in ("SyntaxError", "MemoryError", "RecursionError")
    assert done(shared, "1 + 1")["text"] == "2"


def test_source_lines_are_kept_for_inspect_and_survive_checkcache(guest):
    guest.run("def f():\n    return 'source'")
    assert (
        done(guest, "import inspect, linecache\nlinecache.checkcache()\ninspect.getsource(f)")["value"]
        == "def f():\n    return 'source'\n"
    )


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("import sys; sys.exit('text')", "SystemExit", "text"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("def f(): f()\nf()", "RecursionError", "maximum recursion depth exceeded"),
        ("class B(BaseException): pass\nraise B('x')", "B", "x"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E", "<str() of it failed: ValueError>"),
        ("raise ValueError('\\ud800')", "ValueError", "\\ud800"),
        ("class R:\n    def __repr__(self): raise OSError('no')\nR()", "OSError", "no"),
        ("a = []\nfor _ in range(100000): a = [a]\na", "RecursionError", "maximum recursion depth exceeded"),
        ("input()", "EOFError", "there is nobody to ask"),
    ],
)
def test_every_end_is_a_proper_result(shared, code, kind, message):
    got = done(shared, code)
    assert got["error"]["type"] == kind
    assert got["error"]["message"].startswith(message)
    assert got["interrupted"] is (kind == "KeyboardInterrupt")
    assert done(shared, "1 + 1")["text"] == "2"


@pytest.mark.parametrize("code", ["raise SystemExit", "raise SystemExit(0)", "exit()", "quit(0)", "import sys; sys.exit()"])
def test_leaving_without_a_status_is_completion(shared, code):
    assert done(shared, code) == NOTHING
    assert done(shared, "import sys; sys.stdin.closed")["value"] is False  # `exit()` closes it


def test_long_messages_and_tracebacks_are_cut_in_the_middle(shared):
    got = error(shared, "raise ValueError('x' * 1_000_000)")
    assert len(got["message"]) < 5000
    assert "[995904 characters left out]" in got["message"]
    assert len(got["traceback"]) < 70_000
    assert got["traceback"].startswith("Traceback (most recent call last):")


def test_standard_input_cannot_be_read_but_a_replacement_can(shared):
    assert error(shared, "import sys\nsys.stdin.readline()")["type"] == "EOFError"
    assert done(shared, "sys.stdin.fileno()")["value"] == 0
    code = "import io\nsys.stdin = io.StringIO('typed\\n')\nline = input('? ')\nsys.stdin = sys.__stdin__\nline"
    assert shared.run(code)["done"]["value"] == "typed"


def test_limits_that_an_exception_points_to(shared):
    assert done(shared, "raise MemoryError")["limit"] == "memory"
    assert done(shared, "import errno\nraise OSError(errno.ENOSPC, 'full')")["limit"] == "disk"
    assert done(shared, "raise OSError(errno.EDQUOT, 'quota')")["limit"] == "disk"
    assert done(shared, 'raise RuntimeError("can\'t start new thread")')["limit"] == "processes"
    assert done(shared, "import socket\na, b = socket.socketpair()\na.setblocking(False)\na.recv(1)")["limit"] is None
    assert done(shared, "raise ValueError")["limit"] is None


def test_fork_that_is_refused_is_the_limit_on_processes():
    with GuestProcess(session={"modules": None}) as guest:
        code = "import errno\ndef fork():\n    raise BlockingIOError(errno.EAGAIN, 'no')  # os.fork\nfork()"
        assert done(guest, code)["limit"] == "processes"


# ---------------------------------------------------------------------------------------------------- await


def test_top_level_await_shares_one_loop_and_pending_tasks_go_on(guest):
    guest.run("import asyncio\nseen = []\nasync def later():\n    await asyncio.sleep(0)\n    seen.append(1)\nt = None")
    assert (
        done(guest, "loop = asyncio.get_running_loop()\nt = asyncio.create_task(later())\nawait asyncio.sleep(0, 'value')")[
            "value"
        ]
        == "value"
    )
    assert done(guest, "await t\n(seen, loop is asyncio.get_running_loop())")["value"] == [[1], True]


def test_ordinary_cells_have_no_running_loop(guest):
    assert done(guest, "import asyncio\nasyncio.run(asyncio.sleep(0, 7))")["value"] == 7
    guest.run("await asyncio.sleep(0)")
    assert done(guest, "asyncio.run(asyncio.sleep(0, 8))")["value"] == 8
    assert error(guest, "asyncio.get_running_loop()")["message"] == "no running event loop"


def test_traceback_of_an_async_cell_shows_no_event_loop(guest):
    got = error(guest, "import asyncio\nasync def f():\n    raise ValueError('in task')\nawait f()")
    files = [line.strip() for line in got["traceback"].splitlines() if 'File "' in line]
    assert files == ['File "<cell 1>", line 4, in <module>', 'File "<cell 1>", line 3, in f']


def test_async_for_and_comprehension_at_top_level(guest):
    code = "async def g():\n    yield 1\n    yield 2\n[x async for x in g()]"
    assert done(guest, code)["value"] == [1, 2]


# ---------------------------------------------------------------------------------------------------- notebook syntax


def test_shell_line_prints_its_output_and_has_no_result(shared):
    got = shared.run("print('before')\n!echo from shell\nprint('after')\n!echo last")
    assert (got["stdout"], got["done"]) == ("before\nfrom shell\nafter\nlast\n", NOTHING)


def test_magics_that_change_a_notebooks_look_are_ignored(shared):
    assert done(shared, "%matplotlib inline\n%config X.y = 'svg'\nif True:\n    %load_ext autoreload\n3")["value"] == 3


@pytest.mark.parametrize("line", ["!pip install numpy", "%pip install numpy", "!pip3 list"])
def test_pip_says_where_packages_come_from(shared, line):
    got = error(shared, f"x = 1\n{line}")
    assert (got["type"], got["line"]) == ("RuntimeError", 2)
    assert "`onetrip env build NAME --package PACKAGE`" in got["message"]


@pytest.mark.parametrize(("code", "name", "line"), [("%%time\nx = 1", "%%time", 1), ("x = 1\n%timeit x", "%timeit", 2)])
def test_other_magics_are_named(shared, code, name, line):
    got = error(shared, code)
    assert (got["type"], got["line"]) == ("SyntaxError", line)
    assert got["message"].startswith(f"the magic {name} is not supported")


def test_percent_and_bang_in_ordinary_code_are_not_touched(shared):
    assert done(shared, 'text = """\n%timeit\n!ls\n"""\nn = (7\n% 4)\n(text, n)')["value"] == ["\n%timeit\n!ls\n", 3]
    assert error(shared, "text = '''\n%time\n'''\nx = = 1")["message"].startswith("invalid syntax")


# ---------------------------------------------------------------------------------------------------- one-shots


def test_one_shot_ends_as_a_program_does(guest):
    code = """
import atexit, threading, time
ready = threading.Event()
def work():
    ready.wait()
    print("thread", flush=True)
threading.Thread(target=work).start()
atexit.register(print, "handler")
class D:
    def __del__(self):
        print("finaliser", NAME)
NAME = "sees globals"
d = D()
ready.set()
print("last line")
"""
    got = guest.run(code, final=True)
    assert sorted(got["stdout"].splitlines()[:2]) == ["last line", "thread"]
    assert got["stdout"].splitlines()[2:] == ["handler", "finaliser sees globals"]
    assert got["done"] == NOTHING


def test_one_shot_writes_out_files_that_were_left_open(guest):
    guest.run("f = open('out.txt', 'w')\nf.write('kept')\ndef use():\n    return f", final=True)
    assert (guest.work / "out.txt").read_text() == "kept"


def test_one_shot_runs_exit_handlers_after_an_error(guest):
    got = guest.run("import atexit\natexit.register(print, 'handler')\n1 / 0", final=True)
    assert (got["stdout"], got["done"]["error"]["type"]) == ("handler\n", "ZeroDivisionError")


def test_session_does_not_run_exit_handlers_or_finalisers(guest):
    got = guest.run("import atexit\natexit.register(print, 'handler')\nclass D:\n    def __del__(self): print('gone')\nd = D()")
    assert got["stdout"] == ""


def test_shutdown_is_answered_with_goodbye(guest):
    assert type(guest.shutdown()).__name__ == "Goodbye"
    assert guest.process.wait(10) == 0


def test_a_finaliser_that_parses_does_not_break_the_parsing_of_the_next_cell(guest):
    """The collector runs it in the middle of that; CPython keeps one count of the depth for both."""
    program = """
import ast, gc
class Parses:
    def __del__(self):
        ast.parse("a = 1 + 2")
        garbage()
def garbage():
    one = Parses()
    one.me = one
garbage()
gc.set_threshold(50)
"""
    guest.run(program)
    long = "\n".join(f"x{n} = max(1, 2 + {n})" for n in range(100))
    assert guest.run(f"{long}\nx99, gc.isenabled()")["done"]["value"] == [101, True]
