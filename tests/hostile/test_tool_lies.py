"""Programs that lie about their calls of tools: to the host in the guest's place, and to the guest by breaking what it stands on."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import msgspec
import pytest

import onetrip
from onetrip.errors import Conflict, NotFound, SessionGone
from onetrip.model import Done, Tool, ToolAnswered

ASK = Tool(name="ask", input_schema={"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]})
# More words of the protocol, beside those of LIAR.
LIES = """
def call(number, tool="echo", path="", ordinal=1, arguments=b'{"text": "x"}', run=None):
    raw = packet({"kind": "tool_call", "run": run or nonce(), "number": number, "tool": tool, "path": path, "ordinal": ordinal}, arguments)
    raw_body = raw[9:]
    send(bytes([1 if len(raw) > 60_000 else 3]) + raw[1:9] + raw_body[:60_000])
    for at in range(60_000, len(raw_body), 60_000):
        send((b"\\x02" if at + 60_000 >= len(raw_body) else b"\\x00") + raw_body[at:at + 60_000])

def drop(number, run=None):
    send(packet({"kind": "tool_drop", "run": run or nonce(), "number": number}))

def blocked(asked, answered, run=None):
    send(packet({"kind": "blocked", "run": run or nonce(), "asked": asked, "answered": answered}))

def heard():
    raw = os.read(3, 100_000)
    size = struct.unpack(">I", raw[1:5])[0]
    return json.loads(raw[9:9 + size]), raw[9 + size:]
"""


def echo(text: str) -> str:
    return text


@pytest.fixture
def opened(ot, bystander, liars_words):
    """Opens sessions that have tools, and know how to lie."""
    made = []

    def open_(**options):
        session = ot.session(tools=[echo, ASK], **{"limits": onetrip.Limits(wall_s=5, output_mb=2), **options})
        made.append(session)
        lies = session.run(liars_words + LIES)
        assert lies.ok, lies.error
        return session

    yield open_
    for session in made:
        session.close()


@pytest.fixture
def liar(opened):
    return opened()


def works(session) -> None:
    """It has its state, and can call both kinds of tools."""
    assert session.run("echo('y')").value == "y"
    result = session.run("ask('z')")
    assert [call.arguments for call in result.pending] == [{"question": "z"}]
    assert session.answer(result, {result.pending[0].id: "Z"}).value == "Z"


# ---------------------------------------------------------------------------------------------------- what cannot be said

VIOLATIONS = {
    "a call of another run": "call(1, run='0' * 16)",
    "a call that is not counted": "call(2)",
    "a call counted twice": "call(1); call(1)",
    "a call counted from below": "call(0)",
    "a negative ordinal": "call(1, ordinal=-1)",
    "an ordinal that is no number": "call(1, ordinal='1')",
    "a name longer than a header's text": "call(1, tool='x' * 5000)",
    "a path longer than a header's text": "call(1, path='x' * 5000)",
    "a name that is a list": "call(1, tool=['echo'])",
    "a drop of no call": "drop(1)",
    "a drop of the future": "call(1); drop(2)",
    "a drop of another run": "call(1); drop(1, run='0' * 16)",
    "a wait of the future": "call(1, tool='ask', arguments=b'{\"question\": \"\"}'); blocked(2, 0)",
    "a wait with more answers than calls": "call(1); blocked(1, 2)",
    "a wait before the first answer": "blocked(0, -1)",
    "a wait of another run": "blocked(0, 0, run='0' * 16)",
    "a result": "send(packet({'kind': 'tool_result', 'run': nonce(), 'number': 1, 'failed': False}, b'1'))",
    "other tools": "send(packet({'kind': 'tools'}, b'[]'))",
}


@pytest.mark.spec("TOL-66", "ISO-13")
@pytest.mark.parametrize("lie", VIOLATIONS)
def test_a_session_ends_that_sends(liar, lie):
    result = liar.run(VIOLATIONS[lie] + "\ntime.sleep(60)")
    assert (result.status, result.error.type, result.session.survived) == ("failed", "ProtocolViolation", False)
    msgspec.json.encode(result)
    with pytest.raises(SessionGone):
        liar.run("1")


@pytest.mark.spec("TOL-66", "ISO-13")
def test_a_call_between_two_cells_ends_the_session(liar):
    assert liar.run("run = nonce()\nthreading.Timer(0.2, lambda: call(1, run=run)).start()\n1").ok
    statuses = []
    try:
        for _ in range(400):  # at once, or with the next cell, in whose channel the words are those of another run
            statuses.append(liar.run("time.sleep(0.05)").status)
    except SessionGone:
        assert "failed" not in statuses[:-1]
        return
    raise AssertionError("the session goes on")


REFUSED = {
    "a tool that does not exist": ("call(1, tool='nothing')", "denied"),
    "a name that cannot be encoded": (r"call(1, tool='\udcff\x1b[2J')", "denied"),
    "the longest name": ("call(1, tool='x' * 4096)", "denied"),
    "no JSON": ("call(1, arguments=b'{')", "arguments"),
    "nothing": ("call(1, arguments=b'')", "arguments"),
    "a list": ("call(1, arguments=b'[1]')", "arguments"),
    "no number": ("call(1, arguments=b'{\"text\": NaN}')", "arguments"),
    "too much": ("call(1, arguments=b'{\"text\": \"' + b'x' * 2_000_000 + b'\"}')", "arguments"),
    "a bomb of depth": ("call(1, arguments=b'{\"text\": ' + b'[' * 100_000 + b']' * 100_000 + b'}')", "arguments"),
    "half a bomb of depth": ("call(1, arguments=b'{\"text\": ' + b'[' * 800 + b']' * 800 + b'}')", "arguments"),
}


@pytest.mark.spec("TOL-66")
@pytest.mark.parametrize("lie", REFUSED)
def test_a_call_is_refused_and_the_session_goes_on_with(liar, lie):
    code, kind = REFUSED[lie]
    result = liar.run(f"{code}\nhead, body = heard()\n[head['number'], head['failed'], json.loads(body)['type']]")
    assert result.value == [1, True, kind], result.error
    assert [call.status for call in result.tool_calls] == ["denied" if kind == "denied" else "error"]
    msgspec.json.encode(result)
    works(liar)


# ---------------------------------------------------------------------------------------------------- lies about waiting

CLAIM = "call(1, tool='ask', arguments=b'{\"question\": \"\"}')\nblocked(1, 0)\n"


@pytest.mark.slow
@pytest.mark.spec("TOL-64")
@pytest.mark.parametrize(
    ("lie", "limit"),
    [
        ("while True: pass", "cpu"),
        ("threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()\nheard(); heard()", "cpu"),
        ("kept = []\nwhile True: kept.append(bytearray(16 << 20))", "memory"),
        ("while True: sys.__stdout__.write('x' * 60_000); sys.__stdout__.flush()", "output"),
    ],
    ids=["burns", "burns in a thread", "takes memory", "prints"],
)
def test_who_claims_to_wait_is_held_to_its_other_limits(opened, lie, limit):
    session = opened(limits=onetrip.Limits(wall_s=60, cpu_s=0.5, memory_mb=192, output_mb=2))
    began = time.monotonic()
    result = None
    for event in session.stream(CLAIM + lie):  # a caller that reads on, as a server does
        if isinstance(event, Done):
            result = event.result
    assert (result.status, result.limit and result.limit.name) == ("limit_exceeded", limit)
    assert time.monotonic() - began < 50
    assert session.run("echo('y')").value == "y"


@pytest.mark.spec("TOL-64")
@pytest.mark.parametrize("lie", ["blocked(0, 0)", "call(1)\nheard()\nblocked(1, 0)", "call(1)\nheard()\nblocked(1, 1)"])
def test_a_claim_to_wait_for_nobody_stops_no_clock(opened, lie):
    result = opened().run(f"{lie}\ntime.sleep(60)", timeout_s=0.5)
    assert (result.status, result.limit.name) == ("limit_exceeded", "wall")


@pytest.mark.spec("TOL-64")
def test_a_claim_to_wait_and_then_the_truth(liar):
    """The claim costs a result that says `waiting`; the program goes on, and its end is the end."""
    results = [event.result for event in liar.stream(CLAIM + "drop(1)\n'done'") if isinstance(event, Done)]
    assert results[-1].value == "done"
    assert {result.status for result in results[:-1]} <= {"waiting"}
    works(liar)


# ---------------------------------------------------------------------------------------------------- floods


@pytest.mark.slow
@pytest.mark.spec("TOL-63", "TOL-66")
@pytest.mark.parametrize(
    "flood",
    [
        "raw = packet({'kind': 'tool_call', 'run': run, 'number': n, 'tool': 'echo', 'path': '', 'ordinal': 1}, b'{}')",
        "raw = packet({'kind': 'tool_call', 'run': run, 'number': n, 'tool': 'ask', 'path': '', 'ordinal': 1}, b'{\"question\": \"\"}')",
        "raw = packet({'kind': 'tool_call', 'run': run, 'number': n, 'tool': 'x' * 4000, 'path': 'x' * 4000, 'ordinal': n}, b'{}')",
    ],
    ids=["of server tools", "of client tools", "of long names"],
)
def test_a_flood_of_calls_ends_and_the_others_are_served(opened, bystander, flood):
    session = opened(limits=onetrip.Limits(wall_s=4, tool_calls=2000))
    program = (
        f"run, n = nonce(), 0\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    n += 1\n    {flood}\n    send(raw)"
    )
    before = resident_bytes()
    results = []
    thread = threading.Thread(target=lambda: results.append(session.run(program)))
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        began = time.monotonic()
        assert bystander.run("1 + 1").text == "2"
        slowest = max(slowest, time.monotonic() - began)
    thread.join()
    assert results[0].status == "limit_exceeded"
    assert results[0].limit.name in ("tool_calls", "wall")
    assert len(results[0].tool_calls) <= 2001
    assert slowest < 5
    assert resident_bytes() - before < 150 << 20
    works(session)


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.spec("TOL-66")
def test_thousands_of_calls_that_are_left_open_end_with_the_cell(opened):
    session = opened(limits=onetrip.Limits(wall_s=20, tool_calls=5000))
    result = session.run(
        "for n in range(1, 2001):\n    call(n, tool='ask', ordinal=n, arguments=b'{\"question\": \"\"}')\n'left'"
    )
    assert (result.value, result.pending) == ("left", ())
    assert {call.status for call in result.tool_calls} == {"cancelled"}
    assert len({call.id for call in result.tool_calls}) == 2000
    works(session)


# ---------------------------------------------------------------------------------------------------- the guest under attack

# Each ends with a cell that may fail; the session goes on, by going back if it must.
BROKEN = {
    "json": "import json\njson.loads = json.dumps = None\necho('x')",
    "builtins": "import builtins\nfor name in ('isinstance', 'len', 'dict', 'list', 'all', 'print', 'getattr', 'open'):\n    setattr(builtins, name, None)\necho('x')",
    "threading": "import threading\nthreading.current_thread = threading.main_thread = threading.get_ident = None\nthreading._active.clear()\necho('x')",
    "asyncio": "import asyncio, sys\nfor name in [n for n in sys.modules if n.startswith('asyncio')]:\n    del sys.modules[name]\necho('x')",
    "sys.modules": "import sys\nsys.modules = {}\necho('x')",
    "sys.modules emptied": "import sys\nsys.modules.clear()\necho('x')",
    "selectors": "import selectors, asyncio\nselectors.DefaultSelector.select = lambda self, timeout=None: []\nselectors.EpollSelector.select = lambda self, timeout=None: []\necho('x')",
    "the module tools": "import sys, types\nsys.modules['tools'] = types.ModuleType('tools')\nf = echo\necho = None\nf('x')",
    "a tool's insides": "f = echo\nf._tools = None\ntry:\n    f('x')\nexcept AttributeError:\n    pass\n'x'",
    "frames": "import sys\nsys._getframe = sys._current_frames = None\necho('x')",
    "a tracer": "import sys\nsys.settrace(lambda *a: 1 / 0)\nsys.setprofile(lambda *a: None)\necho('x')",
    "recursion": "def f():\n    try:\n        return f()\n    except RecursionError:\n        return echo('x')\nf()",
    "signals": "import signal, itertools\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\nr = [echo('x') for _ in range(50)][-1]\nsignal.setitimer(signal.ITIMER_REAL, 0)\nr",
    "a closed channel": "import os\nos.close(3)\necho('x')",
    "a channel that is something else": "import os\nos.dup2(os.open('/dev/null', os.O_RDWR), 3)\necho('x')",
    "a channel that does not block": "import os\nos.set_blocking(3, False)\necho('x')",
    "a loop of its own": "import asyncio\nclass L(asyncio.SelectorEventLoop):\n    def remove_reader(self, fd):\n        raise OSError('no')\n    def is_closed(self):\n        raise OSError('no')\nl = L()\nl.run_until_complete(echo('x'))",
}


@pytest.mark.spec("TOL-66")
@pytest.mark.parametrize("attack", BROKEN)
def test_a_session_survives_a_program_that_breaks(opened, attack):
    session = opened(limits=onetrip.Limits(wall_s=4))
    assert session.run("kept = 5").ok
    result = session.run(BROKEN[attack])
    assert result.session.survived, result
    assert result.status != "completed" or result.value == "x"
    if result.session.rolled_back or result.status == "completed":
        assert session.run("kept").value == 5
    if result.session.rolled_back:
        works(session)


@pytest.mark.spec("TOL-66")
def test_answers_that_the_program_steals_are_its_own_loss(liar):
    """It reads the channel beside the guest; whatever comes of the cell, the next one works."""
    result = liar.run(
        "import threading\nthreading.Thread(target=heard, daemon=True).start()\n[echo('x') for _ in range(20)]", timeout_s=2
    )
    assert result.session.survived
    works(liar)


@pytest.mark.spec("TOL-66")
def test_stubs_are_copied_and_pickled_or_say_that_they_cannot(liar):
    code = "import copy, pickle\nr = copy.copy(echo)('x')\nfor f in (copy.deepcopy, pickle.dumps):\n    try:\n        f(echo)\n    except Exception as e:\n        print(type(e).__name__)\nr"
    assert liar.run(code).value == "x"
    works(liar)


@pytest.mark.spec("TOL-66")
@pytest.mark.parametrize("way", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_a_forked_child_has_no_tools_and_its_parent_has(liar, way):
    code = f"""
        import ctypes
        read, write = os.pipe()
        if {way} == 0:
            try:
                said = echo('child')
            except BaseException as e:
                said = type(e).__name__
            os.write(write, said.encode())
            os._exit(0)
        os.wait()
        [os.read(read, 100).decode(), echo('parent')]
    """
    result = liar.run(textwrap.dedent(code), timeout_s=3)
    assert result.value == ["ToolError", "parent"]
    assert [call.arguments for call in result.tool_calls] == [{"text": "parent"}]
    works(liar)


# ---------------------------------------------------------------------------------------------------- interrupts

INTERRUPTED = {
    "blocking": "while True:\n    echo('x')",
    "awaited": "import asyncio\nwhile True:\n    await asyncio.gather(*(echo(str(n)) for n in range(5)))",
    # Not a pool: an interrupt that comes as CPython takes a lock of `threading` leaves it taken, outside of a sandbox, too (docs/limits).
    "threads": "import _thread\ngo, ended = [True], [_thread.allocate_lock() for _ in range(3)]\ndef work(lock):\n    while go:\n        echo('t')\n    lock.release()\nfor lock in ended:\n    lock.acquire()\n    _thread.start_new_thread(work, (lock,))\ntry:\n    while True:\n        echo('x')\nfinally:\n    go.clear()\n    [lock.acquire() for lock in ended]",
    "caught": "for _ in iter(int, 1):\n    try:\n        while True:\n            echo('x')\n    except KeyboardInterrupt:\n        r = [echo('z'), echo('y')]\n        break\nr",
}


@pytest.mark.slow
@pytest.mark.spec("TOL-67")
@pytest.mark.parametrize("program", INTERRUPTED)
def test_an_interrupt_at_any_moment_leaves_a_session_whose_calls_are_answered(ot, program):
    with ot.session(tools=[echo, ASK], limits=onetrip.Limits(wall_s=30, tool_calls=1_000_000)) as session:
        assert session.run("n = 0").ok
        for at in range(25):
            answers = 0
            for event in session.stream(f"n += 1\n{INTERRUPTED[program]}"):
                if isinstance(event, ToolAnswered):
                    answers += 1
                    if answers == 1 + at * 7919 % 23:
                        time.sleep(at * 104729 % 997 / 400_000)  # some part of a call, which takes about a millisecond
                        session.interrupt()
                elif isinstance(event, Done):
                    result = event.result
            assert result.status == "interrupted" or (program == "caught" and result.value == ["z", "y"]), result
            assert not result.session.rolled_back, result.session
            assert session.run("[n, echo('y')]").value == [at + 1, "y"]
        works(session)


@pytest.mark.spec("TOL-67")
def test_an_interrupt_ends_a_wait_and_the_calls_in_it(liar):
    for code in ("ask('x')", "await ask('x')", "import asyncio\nawait asyncio.gather(asyncio.to_thread(ask, 'x'), ask('y'))"):
        result = liar.run(code)
        assert result.status == "waiting"
        liar.interrupt()
        with pytest.raises((Conflict, NotFound)):
            liar.answer(result, {result.pending[0].id: 1})
        works(liar)


# ---------------------------------------------------------------------------------------------------- undo and branches


@pytest.mark.spec("TOL-68")
def test_tools_work_after_a_process_that_died_an_undo_and_a_redo(liar):
    assert liar.run("kept = echo('a')").ok
    result = liar.run("kept = echo('b')\nos._exit(3)")
    assert result.session.rolled_back
    assert liar.run("[kept, echo('c')]").value == ["a", "c"]
    result = liar.run(
        "import asyncio\nasyncio.get_running_loop\nt = asyncio.create_task(echo('d'))\nawait asyncio.sleep(0)\nos._exit(3)"
    )
    assert result.session.rolled_back
    works(liar)
    liar.run("kept = echo('e')")
    liar.undo(1)
    assert liar.run("[kept, echo('f')]").value == ["a", "f"]
    works(liar)


@pytest.mark.spec("TOL-68")
def test_branches_call_tools_each_for_itself(liar):
    assert liar.run("kept = echo('a')").ok
    branches = liar.fork(count=2)
    waiting = [branch.run("[kept, ask('b')]") for branch in branches]
    assert len({result.pending[0].id for result in waiting}) == 2
    works(liar)
    for at, (branch, result) in enumerate(zip(branches, waiting, strict=True)):
        assert branch.answer(result, {result.pending[0].id: at}).value == ["a", at]
        works(branch)
        branch.close()


@pytest.mark.spec("TOL-68")
def test_a_tool_of_one_cell_is_gone_with_it_whatever_was_undone(ot):
    once = Tool(name="once")

    def asks(session) -> bool:
        result = session.run("once()", tools=[once])
        return session.answer(result, {result.pending[0].id: 1}).value == 1

    with ot.session() as session:
        assert asks(session)
        assert session.run("'once' in globals()").value is False
        assert asks(session)
        session.undo(1)
        assert session.run("'once' in globals()").value is False
        assert asks(session)
        assert session.run("import os\nos._exit(1)").session.rolled_back
        assert session.run("'once' in globals()").value is False
        assert asks(session)
        with session.fork() as branch:
            assert branch.run("'once' in globals()").value is False
            assert asks(branch)


REDUCED = """
import os
from onetrip.jail import enter, syscalls
uid, gid = os.geteuid(), os.getegid()
syscalls.unshare(syscalls.CLONE_NEWUSER)
enter.write_maps("/proc/self", f"0 {uid} 1", f"0 {gid} 1", deny_setgroups=True)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
import onetrip
def echo(text: str) -> str:
    return text
ask = onetrip.Tool(name="ask", input_schema={"type": "object", "properties": {"question": {"type": "string"}}})
with onetrip.local(warm=0) as ot, ot.session(isolation_floor="reduced", tools=[echo, ask]) as session:
    print(session.run("import asyncio\\nawait asyncio.gather(echo('a'), asyncio.to_thread(echo, 'b'))").value)
    result = session.run("import asyncio\\nawait asyncio.gather(ask('c'), asyncio.to_thread(ask, 'd'))")
    print(result.isolation.level, len(result.pending))
    print(session.answer(result, {call.id: call.arguments["question"] for call in result.pending}).value)
"""


@pytest.mark.slow
@pytest.mark.spec("TOL-68")
def test_tools_at_the_reduced_level():
    ran = subprocess.run([sys.executable, "-c", REDUCED], capture_output=True, text=True, check=False, timeout=120)
    assert ran.stdout == "['a', 'b']\nreduced 2\n['c', 'd']\n", ran.stderr
