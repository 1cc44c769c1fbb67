"""Sampling from /proc: what processes used, whoever they were and however they ended."""

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from onetrip.jail import usage

MIB = 1 << 20


@pytest.fixture
def proc() -> Iterator[int]:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


class View(usage.Sampler):
    """A sandbox's /proc: of the real one, only the family of `top` (what a PID namespace would show)."""

    def __init__(self, proc_fd: int, top: int, **options: int) -> None:
        super().__init__(proc_fd, **options)
        self.family = [top]

    def _processes(self):
        found = {}
        for pid in self.family:
            self._only = pid
            found |= super()._processes()
        return found


def child(body: Callable[[int], None]) -> tuple[int, int]:
    """A fork that runs `body` and then waits; (pid, descriptor at which it says that it is done)."""
    done, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        body(say)
        os.write(say, b".")
        signal.pause()
    os.close(say)
    return pid, done


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def end(pid: int, fd: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(fd)


def test_cpu_time_of_a_process_is_counted(proc: int) -> None:
    pid, done = child(lambda _: spin(0.1))
    os.read(done, 1)
    sample = usage.Sampler(proc, only=pid).sample()
    end(pid, done)
    assert 80_000 <= sample.cpu_us < 400_000
    assert sample.processes == 1


@pytest.mark.slow
def test_cpu_time_of_a_process_that_vanished_still_counts_and_is_not_counted_twice(proc: int) -> None:
    numbers, tell = os.pipe()

    def family(say: int) -> None:
        inner = os.fork()
        if inner == 0:
            spin(0.2)
            os.write(tell, os.getpid().to_bytes(4, "big"))
            signal.pause()
        os.write(say, b".")
        os.waitpid(inner, 0)

    pid, done = child(family)
    os.read(done, 1)
    inner = int.from_bytes(os.read(numbers, 4), "big")
    view = View(proc, pid)
    view.family.append(inner)
    before = view.sample()
    os.kill(inner, signal.SIGKILL)
    os.read(done, 1)  # the parent has waited for it, so its time is in the parent's
    after = view.sample()
    end(pid, done)
    assert before.processes == 2
    assert after.processes == 1
    assert before.cpu_us <= after.cpu_us < before.cpu_us + 100_000


def test_cpu_time_of_a_process_that_nobody_waited_for_still_counts(proc: int) -> None:
    pid, done = child(lambda _: spin(0.1))
    os.read(done, 1)
    sampler = usage.Sampler(proc, only=pid)
    before = sampler.sample()
    end(pid, done)
    assert sampler.sample() == usage.Sample(0, before.cpu_us, 0)


def test_memory_beyond_the_baseline_is_counted(proc: int) -> None:
    def grow(_: int) -> None:
        keep.append(bytearray(b"x" * (50 * MIB)))

    keep: list[bytearray] = []
    idle, idle_done = child(lambda _: None)
    pid, done = child(grow)
    os.read(idle_done, 1)
    os.read(done, 1)
    baseline = usage.Sampler(proc, only=idle).sample().memory_bytes
    grown = usage.Sampler(proc, only=pid, baseline_bytes=baseline).sample()
    end(idle, idle_done)
    end(pid, done)
    assert 49 * MIB < grown.memory_bytes < 60 * MIB
    assert not grown.exact


def test_rewriting_pages_shared_with_the_zygote_is_noticed(proc: int) -> None:
    # An attack: the estimate takes these pages for the baseline's, and only the exact reading sees that they are private now.
    shared = mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared.madvise(mmap.MADV_NOHUGEPAGE)  # so that each page is one page fault, as in a heap of small objects
    shared[:] = b"a" * len(shared)

    def rewrite(say: int) -> None:
        os.write(say, b".")
        signal.sigwait([signal.SIGUSR1])
        shared[:] = b"b" * len(shared)

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    pid, done = child(rewrite)
    try:
        os.read(done, 1)
        resident = usage.Sampler(proc, only=pid)._processes().popitem()[1].resident_bytes
        sampler = usage.Sampler(proc, only=pid, baseline_bytes=resident, memory_limit_bytes=60 * MIB)
        before = sampler.sample()
        os.kill(pid, signal.SIGUSR1)
        os.read(done, 1)
        after = sampler.sample()
    finally:
        end(pid, done)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        shared.close()
    assert after.exact
    assert after.memory_bytes - before.memory_bytes > 15 * MIB  # half of 40 MiB was counted as its share before
    assert after.memory_bytes >= 40 * MIB


def test_a_process_that_is_gone_is_nothing(proc: int) -> None:
    pid, done = child(lambda _: None)
    end(pid, done)
    assert usage.Sampler(proc, only=pid, memory_limit_bytes=1).sample() == usage.Sample(0, 0, 0, exact=False)


def test_threads_count_as_processes(proc: int) -> None:
    def threads(_: int) -> None:
        import threading

        for _number in range(3):
            threading.Thread(target=signal.pause, daemon=True).start()

    pid, done = child(threads)
    os.read(done, 1)
    sample = usage.Sampler(proc, only=pid).sample()
    end(pid, done)
    assert sample.processes == 4
