"""Several interpreters of one session in the real kernel: what they share, what they do not, and how each of them ends."""

import asyncio
import textwrap

import pytest

from onetrip.engine import LocalEngine
from onetrip.errors import BadRequest, NotFound, SessionGone, Unavailable
from onetrip.model import Cell, Done, Event, Limits, Result, SessionSpec, Started

SPEC = SessionSpec(siblings=4)


class Bench:
    """An engine on an event loop of this test's own; `run` waits for a result."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.engine = self.wait(self._make())

    async def _make(self) -> LocalEngine:
        return LocalEngine(warm=0)

    def wait(self, work):
        return self.runner.run(work)

    def open(self, spec=SPEC, files=None) -> str:
        return self.wait(self.engine.open(spec, files or {}))

    def sibling(self, of: str) -> str:
        return self.wait(self.engine.sibling(of))

    def run(self, session: str, source: str, **inputs) -> Result:
        return self.wait(cell(self.engine, session, source, **inputs))

    def value(self, session: str, source: str, **inputs):
        result = self.run(session, source, **inputs)
        assert result.status == "completed", result
        return result.value

    def close(self) -> None:
        self.wait(self.engine.aclose())
        self.runner.close()


async def cell(engine: LocalEngine, session: str, source: str, **inputs) -> Result:
    async for event in engine.execute(session, Cell(code=textwrap.dedent(source), inputs=inputs)):
        if isinstance(event, Done):
            return event.result
    raise AssertionError("no result")


@pytest.fixture(scope="module")
def bench():
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def session(bench):
    opened = bench.open()
    yield opened
    bench.wait(bench.engine.close(opened))


def has_groups(result: Result) -> bool:
    return any(name.startswith("cgroup-v") for name in result.isolation.mechanisms)


@pytest.mark.spec("SIB-01")
def test_a_sibling_has_none_of_the_variables_and_all_of_the_files(bench, session):
    bench.run(
        session, "x = 1\nimport os, colorsys\nopen('a.txt', 'w').write('origin')\nos.chdir('/tmp')\nos.environ['MINE'] = '1'"
    )
    sibling = bench.sibling(session)
    look = (
        "import os, sys\n['x' in globals(), 'colorsys' in sys.modules, os.getcwd(), os.environ.get('MINE'), open('a.txt').read()]"
    )
    assert bench.value(sibling, look) == [False, False, "/home/user", None, "origin"]
    bench.run(sibling, "open('/home/user/b.txt', 'w').write('sibling')")
    assert bench.value(session, "open('/workspace/b.txt').read()") == "sibling"
    assert [file.path for file in bench.engine.workspace(sibling).list()] == ["a.txt", "b.txt"]


@pytest.mark.spec("SIB-01")
def test_the_home_folder_of_such_a_session_is_its_workspace_also_in_a_branch(bench, session):
    same = "import os\n[os.getcwd(), os.path.samefile(os.path.expanduser('~'), '.'), open(os.path.expanduser('~/c'), 'w').write('y')]"
    assert bench.value(session, same) == ["/home/user", True, 1]
    (branch,) = bench.wait(bench.engine.fork(session))
    sibling = bench.sibling(branch)
    for one in (branch, sibling):
        assert bench.value(one, same)[1:] == [True, 1]
    bench.run(sibling, "open('d', 'w').write('z')")
    assert bench.value(branch, "open('d').read()") == "z"
    assert bench.value(session, "import os; os.listdir('.')") == ["c"]
    bench.wait(bench.engine.close(branch))


@pytest.mark.spec("SIB-02")
def test_cells_of_siblings_run_beside_each_other_and_each_prints_to_its_own(bench, session):
    first, second = bench.sibling(session), bench.sibling(session)
    waits = "import os\nos.mkfifo('{0}')\nopen('{0}').read()\nprint('{0}')"

    async def meet() -> list[Result]:
        started = asyncio.Event()
        count = 0

        async def follow(one: str, source: str) -> Result:
            nonlocal count
            async for event in bench.engine.execute(one, Cell(code=source)):
                if isinstance(event, Started):
                    count += 1
                    if count == 2:
                        started.set()
                if isinstance(event, Done):
                    return event.result
            raise AssertionError

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            waiting = [group.create_task(follow(one, waits.format(name))) for one, name in ((first, "p"), (session, "q"))]
            await started.wait()
            # While both wait: only a third that runs beside them can let them go on.
            go = "import os, time\nwhile not (os.path.exists('p') and os.path.exists('q')): time.sleep(0.01)\n[open(n, 'w').close() for n in 'pq']"
            waiting.append(group.create_task(cell(bench.engine, second, go)))
        return [task.result() for task in waiting]

    assert [(result.status, result.stdout) for result in bench.wait(meet())] == [
        ("completed", "p\n"),
        ("completed", "q\n"),
        ("completed", ""),
    ]


@pytest.mark.spec("SIB-03")
@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "import ctypes\nctypes.string_at(0)"])
def test_a_sibling_that_is_killed_costs_that_sibling(bench, session, end):
    bench.run(session, "x = 1")
    victim, other = bench.sibling(session), bench.sibling(session)
    bench.run(other, "y = 2")
    bench.run(victim, "open('kept', 'w').write('kept')")
    result = bench.run(victim, f"import os\n{end}")
    assert (result.status, result.session.survived) == ("failed", False)
    with pytest.raises(SessionGone):
        bench.run(victim, "1")
    assert bench.value(session, "[x, open('kept').read()]") == [1, "kept"]
    assert bench.value(other, "y") == 2


@pytest.mark.spec("SIB-04")
def test_a_cell_of_the_origin_that_is_killed_takes_back_its_files_but_not_those_of_a_sibling_at_work(bench, session):
    bench.run(session, "x = 1\nimport os")
    sibling = bench.sibling(session)
    bench.run(sibling, "open('before', 'w').write('b')")
    result = bench.run(session, "x = 2\nopen('mine', 'w').write('m')\nos._exit(1)")
    assert (result.session.rolled_back, result.session.note) == (True, None)
    assert bench.value(session, "[x, sorted(os.listdir('.'))]") == [1, ["before"]]

    async def both() -> Result:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            started = asyncio.Event()

            async def work() -> None:
                async for event in bench.engine.execute(
                    sibling, Cell(code="open('during', 'w').write('d')\nprint(1)\nimport time\nwhile True: time.sleep(0.01)")
                ):
                    if type(event).__name__ == "Stdout":
                        started.set()

            working = group.create_task(work())
            await started.wait()
            result = await cell(bench.engine, session, "x = 3\nos._exit(1)")
            await bench.engine.interrupt(sibling)
            await working
        return result

    result = bench.wait(both())
    assert result.session.rolled_back is True
    assert "other interpreters" in (result.session.note or "")
    assert bench.value(session, "[x, sorted(os.listdir('.'))]") == [1, ["before", "during"]]


@pytest.mark.spec("SIB-04")
def test_there_is_always_a_state_to_go_back_to_and_the_files_stay(bench):
    session = bench.open(SessionSpec(siblings=1, checkpoints=1, limits=Limits(memory_mb=256)))
    for number in range(3):
        bench.run(session, f"import os\nx = {number}")
    bench.run(session, "held = bytearray(150 << 20)\nopen('kept', 'w').write('k')")  # too much for another checkpoint
    result = bench.run(session, "os._exit(1)")
    assert (result.session.survived, result.session.rolled_back) == (True, True), result
    assert bench.value(session, "import os\n['held' in globals(), open('kept').read()]") == [False, "k"]
    bench.wait(bench.engine.close(session))


@pytest.mark.spec("SIB-05")
def test_siblings_end_with_their_origin(bench):
    session = bench.open()
    sibling = bench.sibling(session)
    bench.wait(bench.engine.close(session))
    with pytest.raises((NotFound, SessionGone)):
        bench.run(sibling, "1")
    with pytest.raises(NotFound):
        bench.sibling(session)


@pytest.mark.spec("SIB-05")
def test_a_cell_of_a_sibling_that_runs_when_its_origin_is_closed_ends(bench):
    session = bench.open()
    sibling = bench.sibling(session)

    async def end() -> Event:
        last: Event | None = None
        async with asyncio.timeout(30):
            async for event in bench.engine.execute(sibling, Cell(code="print(1)\nimport time\nwhile True: time.sleep(0.01)")):
                last = event
                if type(event).__name__ == "Stdout":
                    await bench.engine.close(session)
        assert last is not None
        return last

    last = bench.wait(end())
    assert isinstance(last, Done)
    assert last.result.session.survived is False


@pytest.mark.spec("SIB-05", "END-01")
def test_nothing_is_left_of_a_session_with_siblings(census):
    before = census.take()
    made = Bench()
    session = made.open()
    siblings = [made.sibling(session) for _ in range(3)]
    (branch,) = made.wait(made.engine.fork(session))
    made.sibling(branch)
    made.run(siblings[0], "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)")
    made.run(siblings[1], "import os\nos._exit(0)")
    made.wait(made.engine.close(siblings[2]))
    made.close()
    before.wait_for_it_again()


@pytest.mark.spec("SIB-05")
def test_a_session_that_asked_for_none_or_has_all_of_them_says_so(bench):
    plain = bench.open(SessionSpec())
    with pytest.raises(BadRequest, match="one interpreter"):
        bench.sibling(plain)
    bench.wait(bench.engine.close(plain))
    for spec in (SessionSpec(siblings=65), SessionSpec(siblings=1, checkpoints=0), SessionSpec(siblings=1, threads=2)):
        with pytest.raises(BadRequest, match="siblings"):
            bench.open(spec)
    session = bench.open(SessionSpec(siblings=1))
    sibling = bench.sibling(session)
    with pytest.raises(Unavailable, match="1 siblings already"):
        bench.sibling(session)
    bench.wait(bench.engine.close(sibling))
    again = bench.sibling(session)
    with pytest.raises(BadRequest, match="checkpoints"):
        bench.wait(bench.engine.undo(again))
    bench.wait(bench.engine.close(session))


# ---------------------------------------------------------------------------------------------------- attacks

ATTACK = """
    import os, signal
    reached = []
    for pid in range(2, 400):
        if pid == os.getpid():
            continue
        for call, arguments in ((os.kill, (pid, 0)), (os.kill, (pid, signal.SIGSTOP)), (os.kill, (-pid, signal.SIGKILL))):
            try:
                call(*arguments)
                reached.append((pid, arguments[1]))
            except (PermissionError, ProcessLookupError):
                pass
    try:
        os.kill(-1, signal.SIGKILL)
        reached.append(-1)
    except (PermissionError, ProcessLookupError):
        pass
    reached
"""


@pytest.mark.spec("SIB-06")
def test_a_sibling_can_signal_neither_its_origin_nor_checkpoints_nor_other_siblings(bench, session):
    bench.run(session, "x = 1")
    attacker, other = bench.sibling(session), bench.sibling(session)
    for number in range(3):  # checkpoints younger than the attacker
        bench.run(session, f"x = {number}")
    assert bench.value(attacker, ATTACK) == []
    bench.wait(bench.engine.undo(session, 2))
    assert bench.value(session, "x") == 0
    assert bench.value(other, "1") == 1


@pytest.mark.spec("SIB-06")
def test_a_sibling_can_neither_read_nor_write_memory_or_descriptors_of_the_others(bench, session):
    bench.run(session, "secret = 'of the origin'")
    attacker, _other = bench.sibling(session), bench.sibling(session)
    bench.run(session, "more = 1")
    program = """
        import os
        opened = []
        for name in os.listdir('/proc'):
            if name.isdigit() and int(name) != os.getpid():
                for what, mode in (('mem', 'rb'), ('mem', 'r+b'), ('environ', 'rb'), ('maps', 'rb'), ('fd/3', 'rb'), ('cwd/x', 'wb')):
                    try:
                        open(f'/proc/{name}/{what}', mode).close()
                        opened.append((name, what, mode))
                    except OSError:
                        pass
        opened
    """
    assert bench.value(attacker, program) == []


@pytest.mark.spec("SIB-06")
def test_a_sibling_is_held_by_all_that_holds_its_origin(bench, session):
    sibling = bench.sibling(session)
    origin = bench.run(session, "1")
    assert bench.run(sibling, "1").isolation == origin.isolation
    program = """
        import os
        status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)
        writable = []
        for path in ('/', '/etc', '/opt', '/usr/bin', '/branches', '/branches/all'):
            try:
                open(f'{path}/x', 'w')
                writable.append(path)
            except OSError:
                pass
        [status['CapEff'], status['NoNewPrivs'], status['Seccomp'], sorted(map(int, os.listdir('/proc/self/fd')))[:4], writable]
    """
    assert bench.value(sibling, program) == ["0000000000000000", "1", "2", [0, 1, 2, 3], []]


@pytest.mark.spec("SIB-06", "LIM-03", "LIM-04")
def test_siblings_and_their_origin_share_one_limit_of_memory_and_processes(bench):
    session = bench.open(SessionSpec(siblings=2, limits=Limits(memory_mb=256, processes=16)))
    sibling = bench.sibling(session)
    if not has_groups(bench.run(session, "held = bytearray(100 << 20)")):
        pytest.skip("no control groups for this user: memory is sampled, which the tests of limits cover")
    result = bench.run(sibling, "more = bytearray(100 << 20)\nmost = bytearray(100 << 20)\n1")
    assert result.status != "completed"
    bomb = bench.sibling(session)
    result = bench.run(
        bomb,
        "import os\nmade = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            import time\n            time.sleep(1000)\n        made += 1\nexcept OSError:\n    pass\nmade",
    )
    assert result.status == "completed"
    assert 0 < (result.value or 0) <= 16
    bench.wait(bench.engine.close(session))
