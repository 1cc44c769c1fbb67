"""The guest answers whatever the program did to the interpreter: broken builtins, hooks, forks, signals, policy."""

import json
import resource
import signal

import pytest
from guest_process import GuestDied, GuestProcess

BREAK_EVERYTHING = """
import builtins, sys
sys.stdout.flush()
sys.stdout = None; sys.stderr = None; sys.excepthook = None; sys.displayhook = None
for n in ("print", "len", "repr", "str", "isinstance", "Exception", "open", "getattr", "type"):
    delattr(builtins, n)
sys.modules.clear()
raise SystemExit("bye")
"""


@pytest.fixture
def guest():
    with GuestProcess() as guest:
        yield guest


def done(guest, code, **options):
    return guest.run(code, **options)["done"]


def test_broken_builtins_and_modules_still_give_an_answer_and_a_next_cell(guest):
    got = done(guest, BREAK_EVERYTHING)["error"]
    assert (got["type"], got["message"], got["line"]) == ("SystemExit", "bye", 8)
    assert done(guest, "a + 1", inputs={"a": 1})["value"] == 2
    assert done(guest, "repr(1)")["error"]["message"] == "name 'repr' is not defined"


def test_one_shot_answers_with_broken_builtins(guest):
    assert done(guest, BREAK_EVERYTHING, final=True)["error"]["message"] == "bye"


@pytest.mark.parametrize(
    "code",
    [
        "import json\njson.dumps = json.loads = None\njson.JSONEncoder.default = None",
        "import traceback, linecache\ntraceback.TracebackException = None\nlinecache.getlines = linecache.cache = None\nlinecache.getline = None",
        "import sys\ndel sys.stdout, sys.stderr, sys.stdin, sys.modules",
        "import builtins\nbuiltins.__import__ = None\nbuiltins.BaseException = builtins.isinstance = lambda *a: 1 / 0",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGALRM, lambda *a: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.0005)",
        "import os\nos.getpid = os.write = os.read = os.close = os._exit = None",
        "import sys\nsys.setrecursionlimit(60)",
        "globals().clear()",
        "import os\nos.set_blocking(3, False)",
        "import gc\ngc.disable()\nimport threading\nthreading._shutdown = threading.current_thread = None",
    ],
)
def test_sabotage_gives_an_answer_and_a_next_cell(guest, code):
    assert set(done(guest, code)) == {"text", "value", "has_value", "error", "interrupted", "limit"}
    again = guest.run("1 / 0")["done"]["error"]
    assert again["type"] in ("ZeroDivisionError", "RecursionError", "NameError", "TypeError", "KeyError")


def test_changes_to_builtins_hold_in_later_cells(guest):
    guest.run("import builtins\nreal = builtins.print\nbuiltins.print = lambda *a: real('mine', *a)\nbuiltins.extra = 5")
    assert guest.run("print('x')\nextra")["stdout"] == "mine x\n"


def test_profile_and_trace_functions_never_see_a_frame_of_ours(guest):
    code = """
import sys, builtins
seen = builtins.seen = set()
def watch(frame, event, arg):
    seen.add(frame.f_code.co_filename)
    return watch
sys.setprofile(watch)
sys.settrace(watch)
def f(): return [len('x')]
f()
"""
    got = done(guest, code)
    assert (got["error"], got["value"]) == (None, [1])
    guest.run("display(1)\n1 + 1")
    files = done(guest, "sorted(seen)")["value"]
    assert [name for name in files if "island" in name] == []
    assert "<cell 1>" in files


def test_trace_function_of_a_failing_cell_sees_none_either(guest):
    guest.run(
        "import sys\nseen = set()\ndef watch(frame, event, arg):\n    seen.add(frame.f_code.co_filename)\nsys.setprofile(watch)\n1 / 0"
    )
    assert [n for n in done(guest, "sorted(seen)")["value"] if "island" in n] == []


# ---------------------------------------------------------------------------------------------------- forks


def test_forked_child_that_comes_to_the_end_of_the_cell_ends_and_does_not_answer(guest):
    code = """
import os
pid = os.fork()
if pid:
    status = os.waitpid(pid, 0)[1]
print("parent" if pid else "child")
os.waitstatus_to_exitcode(status) if pid else 1 / 0
"""
    got = guest.run(code)
    assert sorted(got["stdout"].split()) == ["child", "parent"]
    assert got["done"]["value"] == 1
    assert got["stderr"].endswith("ZeroDivisionError: division by zero\n\n")
    assert done(guest, "'next'")["value"] == "next"


def test_forked_child_of_a_one_shot_runs_its_exit_handlers(guest):
    code = "import os, atexit, sys\natexit.register(lambda: print('handler'))\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\nelse:\n    sys.exit(4)"
    assert guest.run(code, final=True)["stdout"] == "handler\nhandler\n"


def test_forked_child_has_no_channel(guest):
    code = """
import os
r, w = os.pipe()
if not os.fork():
    try:
        os.fstat(3)
        os.write(w, b"open")
    except OSError:
        os.write(w, b"closed")
    os._exit(0)
os.wait()
os.read(r, 10).decode()
"""
    assert done(guest, code)["value"] == "closed"


def test_multiprocessing_by_fork_works(guest):
    code = "import multiprocessing as mp\ndef sq(x): return x * x\nwith mp.get_context('fork').Pool(2) as pool:\n    r = pool.map(sq, [1, 2, 3])\nr"
    assert done(guest, code)["value"] == [1, 4, 9]


def test_descriptors_of_programs_that_it_starts(guest):
    got = guest.run("import subprocess\nsubprocess.run('ls /proc/self/fd', shell=True, close_fds=False);")
    assert "3" not in got["stdout"].split()[:3]


def test_a_program_that_closes_the_channel_is_seen_to_end(guest):
    with pytest.raises(GuestDied):
        guest.run("import os\nos.closerange(3, 50)\n1")


# ---------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    "loop", ["while True: pass", "import time; time.sleep(60)", "import subprocess; subprocess.run(['sleep', '60'])"]
)
def test_interrupt_ends_the_cell_and_not_the_session(guest, loop):
    got = guest.run(f"print('running', flush=True)\n{loop}", interrupt_at="running")
    assert (got["done"]["interrupted"], got["done"]["error"]["type"]) == (True, "KeyboardInterrupt")
    assert got["done"]["error"]["line"] in (1, 2)  # it may arrive before `print` has returned
    assert done(guest, "1 + 1")["value"] == 2


def test_an_interrupt_that_came_just_before_a_call_blocks_is_seen_when_the_call_is_woken(guest):
    """`operator.call` in a loop of C: the interpreter does not look for signals between the two."""
    race = "import ctypes, operator, time\nprint('running', flush=True)\n"
    race += "[*map(operator.call, (ctypes.CDLL(None)['raise'], time.sleep), (2, 60))]"
    got = guest.run(race, wake_at="running")
    assert (got["done"]["interrupted"], got["done"]["error"]["type"]) == (True, "KeyboardInterrupt")
    assert done(guest, "1 + 1")["value"] == 2


def test_a_wake_alone_disturbs_nobody(guest):
    slept = (
        "import time\nprint('running', flush=True)\nbefore = time.monotonic()\ntime.sleep(0.2)\ntime.monotonic() - before >= 0.2"
    )
    assert guest.run(slept, wake_at="running")["done"]["value"] is True


def test_interrupt_of_an_async_cell_cancels_it(guest):
    got = guest.run("import asyncio\nprint('running', flush=True)\nawait asyncio.sleep(60)", interrupt_at="running")
    assert (got["done"]["interrupted"], got["done"]["error"]["type"]) == (True, "KeyboardInterrupt")
    assert done(guest, "await asyncio.sleep(0, 5)")["value"] == 5


def test_an_interrupt_that_was_for_the_cell_before_is_dropped(guest):
    for _ in range(20):
        guest.interrupt()
        got = guest.run("1 + 1", late_interrupt=True)["done"]
        assert (got["value"], got["interrupted"]) == (2, False)


def test_an_interrupt_before_the_first_line_ends_the_cell(guest):
    for _ in range(20):
        guest.interrupt()
        got = done(guest, "ran = True")
        assert (got["interrupted"], got["error"]["type"]) == (True, "KeyboardInterrupt")
    assert done(guest, "'ran' in globals()")["value"] is False


def test_handler_of_one_cell_does_not_catch_the_interrupt_of_the_next(guest):
    guest.run("import signal\nsignal.signal(signal.SIGINT, lambda *a: None)")
    got = guest.run("print('running', flush=True)\nwhile True: pass", interrupt_at="running")
    assert got["done"]["interrupted"] is True


def test_interrupts_at_any_moment_leave_exactly_one_answer_each(guest):
    guest.run("import signal, os")
    for delay in range(60):
        guest.run(
            f"signal.signal(signal.SIGALRM, signal.default_int_handler)\nsignal.setitimer(signal.ITIMER_REAL, {delay * 5e-6 + 1e-6})\n[1]"
        )
    guest.run("signal.setitimer(signal.ITIMER_REAL, 0)")  # the last alarm may still be on its way
    assert done(guest, "'alive'")["value"] == "alive"


def test_alarm_that_is_left_over_reaches_the_next_cell(guest):
    guest.run(
        "import signal, time\ndef ring(*_): raise TimeoutError('rang')\nsignal.signal(signal.SIGALRM, ring)\nsignal.setitimer(signal.ITIMER_REAL, 0.001);"
    )
    assert done(guest, "time.sleep(5)")["error"]["message"] == "rang"


# ---------------------------------------------------------------------------------------------------- limits and policy


def test_denied_modules_are_named_with_the_policy_also_when_they_are_loaded():
    with GuestProcess(session={"modules": {"allow": None, "deny": ["socket", "os"]}}) as guest:
        for code in ("import os", "import os.path", "from os import path", "import importlib\nimportlib.import_module('socket')"):
            got = done(guest, code)["error"]
            name = "socket" if "socket" in code else "os"
            assert (got["type"], got["message"]) == (
                "ImportError",
                f"import of {name!r} is not allowed by this session's policy (policy.modules.deny)",
            )
            assert "island" not in got["traceback"]
        assert done(guest, "import subprocess, json, tempfile\nsubprocess.run(['true']).returncode")["value"] == 0


def test_allow_list_holds_for_the_program_and_its_own_modules_but_not_for_the_library():
    with GuestProcess(session={"modules": {"allow": ["json", "statistics"], "deny": []}}) as guest:
        (guest.work / "mine.py").write_text("import json\nvalue = 5")
        (guest.work / "sneaky.py").write_text("import socket")
        assert done(guest, "import json, statistics, mine\nmine.value")["value"] == 5
        message = "import of 'socket' is not allowed by this session's policy (policy.modules.allow); allowed: json, statistics"
        assert done(guest, "import socket")["error"]["message"] == message
        assert done(guest, "import sneaky")["error"]["message"] == message


@pytest.mark.slow
def test_memory_error_is_answered_and_the_memory_is_free_again():
    with GuestProcess(rlimits={resource.RLIMIT_DATA: 400 << 20}) as guest:
        got = done(guest, "def f():\n    held = []\n    while True: held.append(bytearray(1 << 20))\nf()")
        assert (got["limit"], got["error"]["type"], got["error"]["line"]) == ("memory", "MemoryError", 3)
        assert done(guest, "len(bytearray(200 << 20))")["value"] == 200 << 20


def test_ready_says_what_it_is(guest):
    assert (guest.ready.version, guest.ready.held) == (1, ("none",))
    assert guest.ready.python.count(".") == 2


def test_guest_leaves_when_the_host_is_gone(guest):
    guest._channel.shutdown(2)
    assert guest.process.wait(10) == 0


def test_done_is_always_ascii_json(guest):
    guest.start("class T:\n    def __repr__(self): return 'ü\\ud800'\nT()")
    packet = guest._channel.recv(65536)
    message = guest._protocol.receive(packet)
    assert message is not None
    body = message.parts[0]
    assert body.isascii()
    assert json.loads(body)["text"] == "ü\\ud800"


def test_signals_that_kill_are_a_crash_and_no_answer(guest):
    with pytest.raises(GuestDied):
        guest.run(f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})")
    with GuestProcess() as other, pytest.raises(GuestDied):
        other.run("import ctypes\nctypes.string_at(0)")
