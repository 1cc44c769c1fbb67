"""The host's handle on one sandbox of the jail: signals by handle, facts from the kernel, certain clean-up."""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onetrip.errors import PlatformError
from onetrip.jail import cgroup, usage
from onetrip.model import Isolation, Level, Limits
from onetrip.removal import used_bytes
from onetrip.tiers.base import Exit, Reading
from onetrip.tiers.jail_processes import FIRST, Processes

CLOSE_S: Final = 10  # killing a process tree takes milliseconds; longer means that the kernel is stuck on it
_MIB: Final = 1 << 20


class JailSandbox:
    """See `base.Sandbox`. `group` or `sampler` counts: a control group where there is one, else a sample of the process tree."""

    def __init__(
        self,
        *,
        name: str,
        node: str,
        meta: Mapping[str, Any],
        level: Level,
        limits: Limits,
        fds: list[int],
        group: cgroup.Group | None,
        controllers: tuple[str, ...],
        open_room: Path | None,
        is_bound: bool,
        on_close: Callable[[cgroup.Group | None], None],
    ) -> None:
        self.id, self.node, self.meta = name, node, meta
        self._level: Level = level
        self._limits = limits
        self._is_bound = is_bound  # by Landlock
        self._group, self._controllers = group, controllers
        self._on_close = on_close
        self._callback: Callable[[Exit], None] | None = None
        self._closed = False
        self._sampled_peak = 0  # highest sample since `reset_peak`
        channel, self.stdout, self.stderr, *rest = fds
        self.channel = socket.socket(fileno=channel)
        if open_room is None:
            self._init, self._runner, self.workspace, self._proc = rest
            self._pid = 2  # init is the first process of the namespace, the runner the second
        else:
            self._init, (self._runner,) = -1, rest
            self.workspace = os.open(open_room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._pid = _pid_of(self._runner)
        for end in (self.channel.fileno(), self.stdout, self.stderr):
            os.set_blocking(end, False)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # who sends is the kernel's word
        self._processes = Processes(self._proc, self._runner, self._tell)
        self._exit: Exit | None = None
        self._open_room = open_room
        self._sampler: usage.Sampler | None = None
        self._scratch = -1  # the file system of /tmp and /dev/shm, where files are to be sampled, too
        if group is None:
            resident, _ = self._statm()
            self._sampler = usage.Sampler(
                self._proc,
                baseline_bytes=resident,
                memory_limit_bytes=limits.memory_mb * _MIB,
                only=None if open_room is None else self._pid,
            )

    @property
    def hard_memory(self) -> bool:
        return self._group is not None

    def isolation(self, held: tuple[str, ...]) -> Isolation:
        return Isolation("jail", self._level, (*held, *self._controllers))

    @property
    def live(self) -> int:
        return self._processes.live

    @property
    def checkpoint_obstacle(self) -> str | None:
        if self._init < 0:
            return "at this level a program has no process namespace of its own"
        return None if self._is_bound else "without Landlock a program could write to its checkpoints"

    def _statm(self) -> tuple[int, int]:
        """Resident and private writable memory of the runner now, in bytes (proc_pid_statm(5)); zeros when it is gone."""
        try:
            fd = os.open(f"{self._pid}/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            with open(fd, "rb") as file:
                fields = file.read().split()
        except OSError:
            return 0, 0
        page = os.sysconf("SC_PAGESIZE")
        return int(fields[1]) * page, int(fields[5]) * page

    def apply(self, limits: Limits, *, asleep: int = 0) -> None:
        processes = limits.processes + 1 + asleep  # 1: init
        if self._group is not None:
            self._group.set_limits(memory_bytes=limits.memory_mb * _MIB, processes=processes)
        elif self._sampler is not None:
            self._sampler.memory_limit_bytes = limits.memory_mb * _MIB
            if self._init >= 0 and self._scratch < 0:
                self._scratch = os.open(f"{self._pid}/root/tmp", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        file_bytes = limits.disk_mb * _MIB
        # A single process that asks for too much gets a MemoryError and lives; the control group is the wall behind it. Counted
        # from what the zygote holds already, because the limit is on all private writable memory of the process (setrlimit(2)).
        data_bytes = self._statm()[1] + limits.memory_mb * _MIB * 15 // 16
        wanted = {resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_DATA: data_bytes}
        if self._init >= 0:
            # Per user namespace since Linux 5.14, so it does not count the processes of others.
            wanted[resource.RLIMIT_NPROC] = processes
        pid = _pid_of(self._runner)
        for which, value in wanted.items():
            resource.prlimit(pid, which, (value, value))
        if _has_ended(self._runner):  # then its number may have been another process's already
            raise ProcessLookupError("the guest's process has ended")
        self._limits = limits

    def follow(self, live: int, sender: Sequence[tuple[int, int, bytes]]) -> None:
        self._processes.follow(live, sender)
        self._exit = None

    def kill_live(self) -> None:
        if not self._closed:
            self._processes.kill()

    async def clear(self, keep: Collection[int], timeout_s: float) -> bool:
        return not self._closed and await self._processes.clear(keep, timeout_s)

    def release(self, pid: int) -> None:
        if not self._closed:
            self._processes.release(pid)

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError, OSError):
            if not self._closed and (handle := self._processes.handle) >= 0:
                signal.pidfd_send_signal(handle, signal.SIGINT)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not self._closed:
                signal.pidfd_send_signal(self._init if self._init >= 0 else self._runner, signal.SIGKILL)

    def on_exit(self, callback: Callable[[Exit], None]) -> None:
        self._callback = callback
        if self._exit is not None:
            callback(self._exit)

    def ended(self, how: Exit) -> None:
        """Called by the tier when the first process has ended, or (`lost`) nothing more will be known. It may be a checkpoint by now."""
        if how.lost is not None or self._processes.live == FIRST:
            self._tell(how)

    def _tell(self, how: Exit) -> None:
        if self._exit is None:
            self._exit = how
            if self._callback is not None:
                self._callback(how)

    def read_usage(self) -> Reading:
        if self._closed:
            return Reading(0, 0, 0)
        if self._group is not None:
            now = self._group.usage()
            return Reading(now.memory_bytes, now.peak_memory_bytes, now.cpu_us, now.oom_kills, now.refused_forks)
        if self._sampler is not None:
            sample = self._sampler.sample()
            memory = sample.memory_bytes + self._file_bytes()
            self._sampled_peak = max(self._sampled_peak, memory)
            return Reading(memory, self._sampled_peak, sample.cpu_us)
        return Reading(0, 0, 0)

    def _file_bytes(self) -> int:
        """What lies in the sandbox's two tmpfs: memory that belongs to no process."""
        if self._scratch < 0:
            return 0
        both = (os.fstatvfs(self.workspace), os.fstatvfs(self._scratch))
        return sum((fs.f_blocks - fs.f_bfree) * fs.f_frsize for fs in both)

    def read_disk(self) -> int:
        return 0 if self._open_room is None or self._closed else used_bytes(self._open_room.parent)

    def reset_peak(self) -> None:
        self._sampled_peak = 0
        if self._group is not None and not self._closed:
            self._group.reset_peak()

    async def aclose(self) -> None:
        if self._closed:
            return
        self.kill()
        self._closed = True
        try:
            # init is gone only when everything in its PID namespace is (pid_namespaces(7)).
            await wait_readable(self._init if self._init >= 0 else self._runner, CLOSE_S)
        except TimeoutError as err:
            raise PlatformError(f"sandbox {self.id} did not end within {CLOSE_S} s after SIGKILL") from err
        finally:
            self._processes.close()
            self.channel.close()
            for fd in (self.stdout, self.stderr, self._init, self._runner, self.workspace, self._proc, self._scratch):
                if fd >= 0:
                    os.close(fd)
            self._on_close(self._group)


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("Pid:")).split()[1])


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_readable(fd: int, timeout_s: float) -> None:
    """Until the descriptor is readable; for a pidfd that is the end of the process. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await asyncio.wait_for(ready, timeout_s)
    finally:
        loop.remove_reader(fd)
