"""Each limit against a program that wants more: the result names the limit, and tells the truth about the session."""

import textwrap
import time

import pytest

import onetrip
from onetrip import Limits
from onetrip.model import Done, Stdout, Truncated


def hit(result) -> tuple[str, str | None, bool]:
    return result.status, result.limit.name if result.limit else None, result.session.survived


# ---------------------------------------------------------------------------------------------------- wall, interrupt


@pytest.mark.spec("LIM-01", "LIM-08")
def test_an_endless_loop_is_interrupted_and_the_session_goes_on(session, value):
    assert session.run("kept = 1").ok
    began = time.monotonic()
    result = session.run("while True:\n    pass", timeout_s=0.3)
    assert hit(result) == ("limit_exceeded", "wall", True)
    assert (result.limit.limit, result.limit.unit) == (0.3, "s")
    assert result.error.type == "KeyboardInterrupt"
    assert 300 <= result.usage.wall_ms < 2000
    assert time.monotonic() - began < 2
    assert value(session, "kept") == 1


DEAF = pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)",
            id="ignores the interrupt",
        ),
        pytest.param(
            "import time\nwhile True:\n    try:\n        while True: time.sleep(0.01)\n    except BaseException: pass",
            id="catches everything",
        ),
        pytest.param("import collections, itertools\ncollections.deque(itertools.repeat(0), maxlen=0)", id="one operation in C"),
        pytest.param("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", id="stops itself"),
        pytest.param(
            "import threading\nl = threading.Lock(); l.acquire()\nimport signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); l.acquire()",
            id="blocks signals",
        ),
    ],
)


@pytest.mark.slow
@pytest.mark.spec("LIM-01", "LIM-08", "UND-01")
@DEAF
def test_what_cannot_be_interrupted_is_taken_back(session, value, program):
    value(session, "kept = 1; None")
    began = time.monotonic()
    result = session.run(f"kept = 2\n{program}", timeout_s=0.3)
    assert (*hit(result), result.session.rolled_back) == ("limit_exceeded", "wall", True, True)
    assert time.monotonic() - began < 5
    assert value(session, "kept") == 1


@pytest.mark.slow
@pytest.mark.spec("LIM-01", "LIM-08", "UND-21")
@DEAF
def test_what_cannot_be_interrupted_is_killed(ot, program):
    with ot.session(checkpoints=0) as session:
        began = time.monotonic()
        result = session.run(program, timeout_s=0.3)
        assert hit(result) == ("limit_exceeded", "wall", False)
        assert time.monotonic() - began < 5
        with pytest.raises(onetrip.SessionGone):
            session.run("1")


@pytest.mark.spec("LIM-01")
def test_the_wall_limit_of_the_session_holds_where_a_cell_names_none(ot):
    with ot.session(limits=Limits(wall_s=0.3)) as session:
        assert hit(session.run("while True: pass")) == ("limit_exceeded", "wall", True)
        assert hit(session.run("while True: pass", timeout_s=50)) == ("limit_exceeded", "wall", True)


@pytest.mark.spec("LIM-09")
def test_interrupt_is_ctrl_c(session, value):
    program = "import time\ntry:\n    print('on', flush=True)\n    while True: time.sleep(0.01)\nfinally:\n    cleaned = True"
    for event in session.stream(program):
        if isinstance(event, Stdout):
            session.interrupt()
        if isinstance(event, Done):
            result = event.result
    assert (result.status, result.error.type, result.session.survived) == ("interrupted", "KeyboardInterrupt", True)
    assert value(session, "cleaned") is True


@pytest.mark.spec("LIM-09")
@pytest.mark.parametrize("checkpoints", [8, 0])
def test_an_interrupt_that_is_ignored_kills_after_the_grace_period(ot, checkpoints):
    program = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on', flush=True)\nwhile True: time.sleep(1)"
    )
    with ot.session(checkpoints=checkpoints) as session:
        for event in session.stream(program):
            if isinstance(event, Stdout):
                session.interrupt()
                began = time.monotonic()
            if isinstance(event, Done):
                result = event.result
        assert 0.9 < time.monotonic() - began < 5
    survives = checkpoints > 0
    assert (result.status, result.session.survived, result.session.rolled_back) == ("interrupted", survives, survives)


@pytest.mark.spec("LIM-09")
def test_an_interrupt_between_cells_does_nothing(session, value):
    session.interrupt()
    assert value(session, "1 + 1") == 2


# ---------------------------------------------------------------------------------------------------- cpu


@pytest.mark.spec("LIM-02")
def test_cpu_time_of_one_process_is_bounded(ot, value):
    with ot.session(limits=Limits(cpu_s=0.3, wall_s=30)) as session:
        result = session.run("while True: pass")
        assert hit(result) == ("limit_exceeded", "cpu", True)
        assert 300 <= result.usage.cpu_ms < 3000
        assert value(session, "1") == 1


@pytest.mark.spec("LIM-02")
def test_cpu_time_of_children_that_came_and_went_is_counted(ot):
    program = """
        import os
        for _ in range(500):
            if os.fork() == 0:
                n = 0
                while n < 1_000_000:
                    n += 1
                os._exit(0)
            os.wait()
    """
    result = ot.run(textwrap.dedent(program), limits=Limits(cpu_s=1, wall_s=60))
    assert hit(result)[:2] == ("limit_exceeded", "cpu")
    assert result.usage.wall_ms < 20_000


@pytest.mark.spec("LIM-02")
def test_cpu_time_of_children_side_by_side_is_counted_together(ot):
    program = """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                while True: pass
        while True: time.sleep(0.1)
    """
    result = ot.run(textwrap.dedent(program), limits=Limits(cpu_s=1, wall_s=60))
    assert hit(result)[:2] == ("limit_exceeded", "cpu")
    assert result.usage.wall_ms < 20_000


@pytest.mark.spec("LIM-02")
def test_sleeping_costs_no_cpu_time(ot):
    result = ot.run("import time; time.sleep(0.5)", limits=Limits(cpu_s=0.2))
    assert result.ok
    assert result.usage.cpu_ms < 150


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.spec("LIM-03", "LIM-08")
def test_one_process_that_asks_for_too_much_gets_a_memory_error_and_lives(ot, value):
    with ot.session(limits=Limits(memory_mb=256)) as session:
        value(session, "kept = 1; None")
        result = session.run("x = bytearray(2_000_000_000)")
        assert hit(result) == ("limit_exceeded", "memory", True)
        assert (result.error.type, result.limit.limit, result.limit.unit) == ("MemoryError", 256, "MB")
        assert value(session, "kept") == 1


@pytest.mark.spec("LIM-03")
def test_memory_that_grows_step_by_step_is_bounded(ot):
    result = ot.run("keep = []\nwhile True: keep.append(bytearray(1_000_000))", limits=Limits(memory_mb=256, wall_s=30))
    assert hit(result)[:2] == ("limit_exceeded", "memory")
    assert result.usage.peak_memory_bytes < 400 << 20


@pytest.mark.spec("LIM-03")
def test_children_that_each_take_a_part_are_counted_together(ot):
    program = """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                keep = bytearray(os.urandom(1 << 20)) * 64
                time.sleep(30)
                os._exit(0)
        time.sleep(30)
    """
    result = ot.run(textwrap.dedent(program), limits=Limits(memory_mb=256, wall_s=20))
    assert hit(result)[:2] == ("limit_exceeded", "memory")


@pytest.mark.spec("LIM-03")
@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm", "/home/user"])
def test_memory_in_files_counts(ot, folder):
    program = f"""
        with open("{folder}/big", "wb") as file:
            for _ in range(400):
                file.write(bytes(1 << 20))
    """
    result = ot.run(textwrap.dedent(program), limits=Limits(memory_mb=128, disk_mb=512, wall_s=30))
    assert hit(result)[:2] == ("limit_exceeded", "memory")


@pytest.mark.spec("LIM-03")
def test_shared_memory_counts(ot):
    program = """
        import mmap
        shared = mmap.mmap(-1, 512 << 20)
        for at in range(0, 512 << 20, 4096):
            shared[at] = 1
    """
    result = ot.run(textwrap.dedent(program), limits=Limits(memory_mb=128, wall_s=30))
    assert hit(result)[:2] == ("limit_exceeded", "memory")


@pytest.mark.spec("LIM-03")
def test_peak_memory_is_of_this_cell(ot):
    with ot.session() as session:
        big = session.run("x = bytearray(os.urandom(1) * (200 << 20)) if (os := __import__('os')) else 0; del x")
        small = session.run("1")
    assert big.usage.peak_memory_bytes > 180 << 20
    assert small.usage.peak_memory_bytes < 100 << 20


# ---------------------------------------------------------------------------------------------------- processes


@pytest.mark.spec("LIM-04", "ISO-13")
def test_a_fork_bomb_ends_nobody_elses_session(ot, value):
    program = """
        import os
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    while True: pass
                children += 1
        except OSError as err:
            reason = type(err).__name__
        children, reason
    """
    with ot.session() as other, ot.session(limits=Limits(processes=20, wall_s=20)) as session:
        value(other, "kept = 1; None")
        children, reason = value(session, program)
        assert 10 <= children < 20
        assert reason == "BlockingIOError"
        assert value(other, "kept") == 1


@pytest.mark.spec("LIM-04")
def test_the_result_names_the_limit_of_processes(ot):
    result = ot.run(
        "import os\nwhile True:\n    if os.fork() == 0:\n        while True: pass", limits=Limits(processes=20, wall_s=20)
    )
    assert hit(result)[:2] == ("limit_exceeded", "processes")


@pytest.mark.spec("LIM-04")
def test_threads_count_as_processes(ot):
    program = (
        "import threading, time\nfor _ in range(100):\n    threading.Thread(target=time.sleep, args=(20,), daemon=True).start()"
    )
    result = ot.run(program, limits=Limits(processes=20, wall_s=10))
    assert hit(result)[:2] == ("limit_exceeded", "processes")


# ---------------------------------------------------------------------------------------------------- disk


@pytest.mark.spec("LIM-05", "LIM-08")
@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm", "/home/user"])
def test_bytes_are_bounded_wherever_can_be_written(ot, value, folder):
    with ot.session(limits=Limits(disk_mb=20)) as session:
        result = session.run(f"with open('{folder}/big', 'wb') as f:\n    for _ in range(64): f.write(bytes(1 << 20))")
        assert hit(result) == ("limit_exceeded", "disk", True)
        assert (result.error.type, result.limit.limit, result.limit.unit) == ("OSError", 20, "MB")
        assert value(session, f"import os; os.path.getsize('{folder}/big')") <= 20 << 20


@pytest.mark.spec("LIM-05")
def test_many_files_of_the_size_of_the_limit_are_bounded_together(ot):
    program = "for n in range(10):\n    with open(f'f{n}', 'wb') as f: f.write(bytes(5 << 20))"
    assert hit(ot.run(program, limits=Limits(disk_mb=20))) == ("limit_exceeded", "disk", True)


@pytest.mark.spec("LIM-05")
@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
def test_the_number_of_files_is_bounded(ot, folder):
    program = f"made = 0\nwhile True:\n    open('{folder}/%d' % made, 'w').close()\n    made += 1"
    with ot.session() as session:
        result = session.run(program)
        assert hit(result) == ("limit_exceeded", "disk", True)
        assert session.run("made").value < 20_000


# ---------------------------------------------------------------------------------------------------- output


@pytest.mark.spec("LIM-06", "LIM-08")
def test_output_is_bounded_and_what_fits_is_there(ot, value):
    with ot.session(limits=Limits(output_mb=1)) as session:
        result = session.run("while True: print('x' * 99)")
        assert hit(result) == ("limit_exceeded", "output", True)
        assert result.truncated == Truncated(stdout=True, stderr=False)
        assert len(result.stdout) == 1 << 20
        assert set(result.stdout.splitlines()[:-1]) == {"x" * 99}
        assert value(session, "1") == 1


@pytest.mark.spec("LIM-06")
def test_stdout_stderr_and_displays_share_one_limit(ot):
    program = "import sys\nfor _ in range(30):\n    print('o' * 49_999)\n    print('e' * 49_999, file=sys.stderr)"
    result = ot.run(program, limits=Limits(output_mb=1))
    assert hit(result)[:2] == ("limit_exceeded", "output")
    assert len(result.stdout) + len(result.stderr) == 1 << 20
    shown = ot.run("for _ in range(100): display('d' * 50_000)", limits=Limits(output_mb=1))
    assert hit(shown)[:2] == ("limit_exceeded", "output")


@pytest.mark.spec("LIM-06")
def test_output_of_children_that_nobody_waits_for_is_bounded(ot):
    program = "import subprocess\nsubprocess.Popen(['sh', '-c', 'while true; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done'])\nimport time; time.sleep(20)"
    result = ot.run(program, limits=Limits(output_mb=1, wall_s=20))
    assert hit(result)[:2] == ("limit_exceeded", "output")


# ---------------------------------------------------------------------------------------------------- who holds them


@pytest.mark.spec("LIM-07", "ISO-12")
def test_the_result_says_who_holds_the_limits(ot):
    mechanisms = set(ot.run("1").isolation.mechanisms)
    assert mechanisms & {"cgroup-v2:memory", "cgroup-v1:memory", "watchdog"}
    assert "rlimits" in mechanisms


@pytest.mark.spec("LIM-07", "LIM-02", "LIM-03", "LIM-04")
@pytest.mark.parametrize(
    ("name", "program"),
    [
        (
            "memory",
            "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        keep = bytearray(os.urandom(1 << 20)) * 64\n        time.sleep(30)\ntime.sleep(30)",
        ),
        ("memory", "keep = []\nwhile True: keep.append(bytearray(1_000_000))"),
        (
            "memory",
            "with open('/dev/shm/big', 'wb') as f:\n    for _ in range(400): f.write(bytes(1 << 20))\nimport time; time.sleep(20)",
        ),
        ("cpu", "import os\nfor _ in range(4):\n    if os.fork() == 0:\n        while True: pass\nwhile True: pass"),
        ("processes", "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(30)"),
    ],
)
def test_limits_hold_without_control_groups_too(value, name, program):
    with onetrip.local(warm=0, cgroup_parent="/there/is/no/such/group") as ot:
        result = ot.run(program, limits=Limits(memory_mb=256, cpu_s=1, processes=20, wall_s=20))
        assert "watchdog" in result.isolation.mechanisms
        assert hit(result)[:2] == ("limit_exceeded", name)
