"""After any end of a sandbox nothing of it is left: processes, descriptors, mounts, control groups, temporary files."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import onetrip
from onetrip import Limits
from onetrip.model import Done, Stdout

FORKS = "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n"
ENDS = {
    "returns": "1",
    "raises": "1 / 0",
    "exits": "raise SystemExit(3)",
    "exits at once": "import os; os._exit(3)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "leaves daemons": FORKS,
    "leaves daemons and crashes": FORKS + "import ctypes; ctypes.string_at(0)",
    "leaves a stopped child": "import os, signal\nif (p := os.fork()) == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)",
    "leaves zombies": "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)",
    "leaves threads": "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "loops": "while True: pass",
    "ignores the interrupt": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "stops itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "takes all memory": "k = []\nwhile True: k.append(bytearray(1_000_000))",
    "bombs with forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fills the disk": "for p in ('/tmp', '/workspace', '/dev/shm'):\n    try:\n        with open(p + '/f', 'wb') as f:\n            while True: f.write(bytes(1 << 20))\n    except OSError: pass",
    "makes deep folders": "import os\nfor _ in range(2000):\n    os.mkdir('d'); os.chdir('d')",
    "closes its channel": "import os; os.close(3); import time; time.sleep(60)",
    "closes everything": "import os; os.closerange(0, 1000); import time; time.sleep(60)",
    "floods": "while True: print('x' * 10_000)",
}


@pytest.mark.spec("END-01", "END-03")
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_when_a_program(census, end):
    before = census.take()
    with onetrip.local(warm=0) as ot:
        result = ot.run(ENDS[end], limits=Limits(wall_s=0.5, memory_mb=128, disk_mb=16, output_mb=1, processes=32))
        assert result.status in ("completed", "failed", "limit_exceeded"), result
        assert ot.run("1 + 1").text == "2"
    before.wait_for_it_again()


@pytest.mark.spec("END-01")
def test_sessions_that_end_leave_nothing_while_the_engine_goes_on(census, wait_until):
    with onetrip.local(warm=0) as ot:

        def a_round() -> None:
            for end in ("returns", "leaves daemons", "is killed", "takes all memory", "closes its channel"):
                with ot.session(limits=Limits(wall_s=0.5, memory_mb=128)) as session:
                    session.run(ENDS[end])

        a_round()  # the engine keeps a few rooms and groups ready: after this it has them
        calm = {field.name: len(getattr(census.take(), field.name)) for field in dataclasses.fields(census)}
        for _ in range(3):
            a_round()
        # Rooms are being made ahead at any moment, at most three at a time; what 15 sessions had left would be more.
        for what, before in calm.items():
            assert wait_until(lambda: len(getattr(census.take(), what)) <= before + 3), (what, before, census.take())  # noqa: B023


@pytest.mark.spec("END-01", "END-03")
def test_many_sessions_at_once_leave_nothing(census):
    before = census.take()

    async def main() -> list[str | None]:
        async with onetrip.alocal(warm=2) as ot:

            async def one(number: int) -> str | None:
                async with ot.session() as session:
                    await session.run(f"x = {number}")
                    return (await session.run("x")).text

            return await asyncio.gather(*(one(number) for number in range(20)))

    assert asyncio.run(main()) == [str(number) for number in range(20)]
    before.wait_for_it_again()


@pytest.mark.spec("END-03")
def test_closing_the_engine_ends_live_sessions(census):
    before = census.take()
    ot = onetrip.local(warm=2)
    sessions = [ot.session() for _ in range(3)]
    assert sessions[0].run(FORKS).ok
    ot.close()
    ot.close()  # twice does no harm
    before.wait_for_it_again()
    with pytest.raises(onetrip.OnetripError, match="closed"):
        sessions[0].run("1")


@pytest.mark.spec("END-03")
def test_a_cancelled_one_shot_leaves_nothing(census):
    before = census.take()

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            running = asyncio.Event()

            async def run() -> None:
                async with contextlib.aclosing(
                    ot.stream("import time\nprint('on', flush=True)\nwhile True: time.sleep(1)")
                ) as events:
                    async for event in events:
                        if isinstance(event, Stdout):
                            running.set()

            task = asyncio.create_task(run())
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await ot.run("1 + 1")).text == "2"

    asyncio.run(main())
    before.wait_for_it_again()


@pytest.mark.spec("END-03")
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13, 21, 50])
def test_a_call_cancelled_while_its_sandbox_starts_leaves_nothing(census, steps):
    before = census.take()

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            await ot.run("1")
            task = asyncio.create_task(ot.run("1"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())
    before.wait_for_it_again()


@pytest.mark.spec("END-03", "API-04")
def test_a_stream_that_is_left_early_leaves_nothing(census):
    before = census.take()
    with onetrip.local(warm=0) as ot:
        for event in ot.stream("while True: print('x')"):
            if isinstance(event, Stdout):
                break
        assert ot.run("1 + 1").text == "2"
    before.wait_for_it_again()


@pytest.mark.spec("END-03")
def test_a_launch_that_fails_leaves_nothing(census):
    before = census.take()
    with onetrip.local(warm=0) as ot:
        with pytest.raises(onetrip.UnknownEnvironment):
            ot.run("1", environment="there-is-no-such")
        with pytest.raises(onetrip.BadRequest):
            ot.run("1", files={"../out": b""})
        with pytest.raises(onetrip.BadRequest):
            ot.session(limits=Limits(memory_mb=-1))
        with pytest.raises(onetrip.WorkspaceFull):
            ot.run("1", files={"big": bytes(3 << 20)}, limits=Limits(disk_mb=1))
    before.wait_for_it_again()


@pytest.mark.spec("END-04")
def test_no_program_meets_what_another_left(census):
    with onetrip.local(warm=2) as ot:
        for _ in range(5):
            left = ot.run(
                "import builtins, sys, os\nseen = hasattr(builtins, 'left'), os.path.exists('left'), 'left' in sys.modules\n"
                "builtins.left = 1; open('left', 'w').close(); sys.modules['left'] = sys\nseen"
            )
            assert left.value == [False, False, False]


@pytest.fixture
def temporary():
    """A temporary folder for another process; short, because sockets get their names in it."""
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        yield Path(folder)


def host_process(program: str, temporary: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )


@pytest.mark.spec("END-01", "END-02")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_killing_the_host_process_leaves_nothing_running(descendants, wait_until, temporary, number):
    program = """
        import onetrip, sys
        ot = onetrip.local(warm=2)
        print(ot.session().run(sys.argv[1]).status, flush=True)
        sys.stdin.read()
    """
    with host_process(program, temporary, FORKS) as host:
        assert host.stdout.readline() == b"completed\n"
        tree = {pid: started(pid) for pid in descendants(host.pid)}
        assert len(tree) > 10
        host.send_signal(number)
        host.wait()
    assert wait_until(lambda: not [pid for pid, start in tree.items() if start is not None and started(pid) == start])
    # The next engine in the same folder clears away what the dead one could not.
    with host_process(
        "import onetrip\nwith onetrip.local(warm=0) as ot: print(ot.run('1 + 1').text, flush=True)", temporary
    ) as after:
        assert after.stdout.read() == b"2\n"
    assert list(temporary.iterdir()) == []


def started(pid: int) -> str | None:
    """When this process started; None: it is gone, or only its entry in the table is left, which is init's business."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@pytest.mark.spec("END-03")
def test_ctrl_c_in_the_caller_ends_the_program(temporary):
    program = """
        import onetrip, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
        with onetrip.local(warm=0) as ot:
            try:
                for event in ot.stream("import time\\nprint('on', flush=True)\\nwhile True: time.sleep(1)"):
                    if isinstance(event, onetrip.model.Stdout):
                        print("running", flush=True)
            except KeyboardInterrupt:
                print(ot.run("1 + 1").text, flush=True)
    """
    with host_process(program, temporary) as host:
        assert host.stdout.readline() == b"running\n"
        host.send_signal(signal.SIGINT)
        assert host.stdout.read() == b"2\n"
        assert host.wait() == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.spec("END-01")
def test_the_last_event_comes_after_the_end_is_certain():
    """When `Done` says that the session is gone, its processes are."""
    with onetrip.local(warm=0) as ot, ot.session(checkpoints=0) as session:
        for event in session.stream(FORKS + "os._exit(1)"):
            if isinstance(event, Done):
                assert event.result.session.survived is False
        with pytest.raises(onetrip.SessionGone):
            session.run("1")
