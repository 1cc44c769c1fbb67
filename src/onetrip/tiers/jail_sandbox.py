"""The host's handle on one sandbox of the jail: signals by handle, facts from the kernel, certain clean-up."""

import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onetrip.errors import SandboxFailed
from onetrip.jail import cgroup, mounts, usage
from onetrip.model import Isolation, Level, Limits
from onetrip.removal import used_bytes
from onetrip.tiers.base import Exit, LaunchSpec, Reading
from onetrip.tiers.jail_processes import Processes
from onetrip.tiers.jail_room import CLOSE_S, FIRST, Room, outside_of

STILL_STEP_S: Final = 0.0005
MAX_TASKS: Final = 8192  # of a session and all its branches together
_MIB: Final = 1 << 20
_SIGNAL_THREAD: Final = 1  # pidfd_send_signal(2), PIDFD_SIGNAL_THREAD: the thread that the handle means, and no other
_PAGE: Final = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class Fixed:
    """What does not change about a sandbox."""

    name: str
    node: str
    meta: Mapping[str, Any]
    level: Level
    controllers: tuple[str, ...]
    is_bound: bool  # by Landlock
    open_room: Path | None  # without namespaces: the folder that stands for the room's workspace
    room_name: str  # of the sandbox that the room was made for
    branches: str = mounts.BRANCHES  # where branches of it have their files


class JailSandbox:
    """See `base.Sandbox`. `group` or a sampler counts: a control group where there is one, else a sample of the process tree.

    `fds` are channel, stdout, stderr and the workspace; they are the sandbox's from now on. `on_close` gives back the rest. A branch
    comes without a process: `live` is 0 until it follows one. So does a sibling, `of` which the limits, and what counts them, are.
    """

    def __init__(
        self,
        fixed: Fixed,
        limits: Limits,
        room: Room,
        fds: tuple[int, int, int, int],
        *,
        group: cgroup.Group | None,
        on_close: Callable[[cgroup.Group | None], None],
        on_leave: Callable[[], None] | None = None,
        asleep: int = 0,
        of: "JailSandbox | None" = None,
    ) -> None:
        self.id, self.node, self.meta = fixed.name, fixed.node, fixed.meta
        self._fixed, self._limits, self.room, self._group = fixed, limits, room, group
        self._asleep, self._data_bytes = asleep, 0  # the former: how many checkpoints there may be
        self._on_close, self._on_leave = on_close, on_leave  # the latter for branches
        self._callback: Callable[[Exit], None] | None = None
        self._at_rest: tuple[int, int] | None = (
            None  # before any user code: the number of its process here, and memory by RLIMIT_DATA
        )
        self._closed = self._has_branches = False
        self._sampled_peak = 0  # highest sample since `reset_peak`
        channel, self.stdout, self.stderr, self.workspace = fds
        self.channel = socket.socket(fileno=channel)
        for end in (channel, self.stdout, self.stderr):
            os.set_blocking(end, False)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # who sends is the kernel's word
        self._of = of
        self.ruleset = -1  # of its siblings, where it may have any
        # A sibling's control group does not say which of its processes are the sibling's.
        is_late = on_leave is not None or of is not None
        self._processes = Processes(room, None if of else group, self._tell, live=0 if is_late else FIRST)
        self._exit: Exit | None = None
        self._sampler: usage.Sampler | None = None  # one for all sandboxes of a room
        self._scratch = -1  # the file system of /tmp and /dev/shm, where files are to be sampled, too
        self._pid = FIRST if fixed.open_room is None else outside_of(room.runner)
        if group is None and room.sampler is None:
            resident, _ = self._statm(self._pid)
            room.sampler = usage.Sampler(
                room.proc,
                baseline_bytes=resident,
                memory_limit_bytes=limits.memory_mb * _MIB,
                only=None if fixed.open_room is None else self._pid,
            )
        self._sampler = None if group is not None else room.sampler

    @property
    def branches(self) -> str:
        """Where branches of it have their files, as the room sees it."""
        return self._fixed.branches

    @property
    def room_name(self) -> str:
        """The name under which the zygote knows the room: that of the sandbox which it was made for."""
        return self._fixed.room_name

    def branched(
        self,
        spec: LaunchSpec,
        fds: tuple[int, int, int, int],
        folder: str,
        *,
        group: cgroup.Group | None,
        on_close: Callable[[cgroup.Group | None], None],
        on_leave: Callable[[], None],
    ) -> "JailSandbox":
        """A sandbox in the same room, whose files are below `folder`; see `Tier.branch`."""
        self.room.users += 1
        self._has_branches = True
        fixed = dataclasses.replace(self._fixed, name=spec.id, meta=spec.meta, branches=f"{folder}/branches")
        branch = JailSandbox(
            fixed, spec.limits, self.room, fds, group=group, on_close=on_close, on_leave=on_leave, asleep=spec.asleep
        )
        branch._data_bytes = self._data_bytes
        return branch

    def joined(self, spec: LaunchSpec, fds: tuple[int, int, int, int], *, spawner: int) -> "JailSandbox":
        """A sandbox in the same room, on the same files and in the same control group; see `Tier.sibling`."""
        self.room.users += 1
        fixed = dataclasses.replace(self._fixed, name=spec.id, meta=spec.meta)
        sibling = JailSandbox(
            fixed, self._limits, self.room, fds, group=self._group, on_close=lambda _group: None, asleep=self._asleep, of=self
        )
        sibling._data_bytes = self._data_bytes
        self._processes.siblings.add(sibling._processes)
        self._processes.spawner = spawner
        self._count_asleep(0)
        return sibling

    def let_go(self, sibling: "JailSandbox") -> None:
        self._processes.siblings.discard(sibling._processes)  # noqa: SLF001 - one of our own kind
        self._count_asleep(0)

    @property
    def home(self) -> str:
        """The folder that its siblings work in, as they see it."""
        return mounts.HOME if self._on_leave is None else f"{os.path.dirname(self._fixed.branches)}/workspace"

    @property
    def hard_memory(self) -> bool:
        return self._group is not None

    def isolation(self, held: tuple[str, ...]) -> Isolation:
        return Isolation("jail", self._fixed.level, (*held, *self._fixed.controllers))

    @property
    def live(self) -> int:
        return self._processes.live

    @property
    def checkpoint_obstacle(self) -> str | None:
        if self.room.init < 0:
            return "at this level a program has no process namespace of its own"
        return None if self._fixed.is_bound else "without Landlock a program could write to its checkpoints"

    def _statm(self, pid: int) -> tuple[int, int]:
        """Resident and private writable memory of a process now, in bytes (proc_pid_statm(5)); zeros when it is gone."""
        try:
            fd = os.open(f"{pid}/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.room.proc)
            try:
                fields = os.read(fd, 256).split()
            finally:
                os.close(fd)
        except OSError:
            return 0, 0
        return int(fields[1]) * _PAGE, int(fields[5]) * _PAGE

    def apply(self, limits: Limits, *, asleep: int = 0, cpus: int = 1) -> None:
        self._limits, self._asleep = limits, asleep
        if self._group is not None:
            self._group.set_limits(memory_bytes=limits.memory_mb * _MIB, processes=self._processes_now - 1, cpus=cpus)
        elif self._sampler is not None:
            self._sampler.memory_limit_bytes = limits.memory_mb * _MIB
            if self.room.init >= 0 and self._scratch < 0:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                self._scratch = os.open(f"{self._pid}/root/tmp", flags, dir_fd=self.room.proc)
        file_bytes = limits.disk_mb * _MIB
        # A single process that asks for too much gets a MemoryError and lives; the control group is the wall behind it. Counted
        # from what the zygote holds already, because the limit is on all private writable memory of the process (setrlimit(2)).
        pid, data_at_rest = self._at_rest or self.look()
        self._data_bytes = data_at_rest + limits.memory_mb * _MIB * 15 // 16
        wanted = {resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_DATA: self._data_bytes}
        for which, value in wanted.items():
            resource.prlimit(pid, which, (value, value))
        self._bound_processes(pid)
        if _has_ended(self.room.runner):  # then its number may have been another process's already
            raise ProcessLookupError("the guest's process has ended")

    def look(self) -> tuple[int, int]:
        self._at_rest = outside_of(self.room.runner), self._statm(self._pid)[1]
        return self._at_rest

    @property
    def _processes_now(self) -> int:
        """The limit with those of ours that are there: checkpoints, and init, which is not in the group. One that is to be forked has a place."""
        if self._of is not None:
            return self._of._processes_now  # noqa: SLF001 - one of our own kind
        return max(self._limits.processes, 2 if self._asleep else 1) + 1 + self._processes.asleep + len(self._processes.siblings)

    def _bound_processes(self, pid: int) -> None:
        """Let the process, and what it forks, have as many as the limit says beside ours. Raises OSError."""
        if self.room.init < 0:
            return
        # Per user namespace since Linux 5.14, so it does not count the processes of others; but it counts those of branches, so
        # where a group holds the limit of each, this one gives way. The hard limit can only be lowered.
        if self._of is not None and self._group is None:
            most = self._limits.processes + 1 + self._asleep
            resource.prlimit(pid, resource.RLIMIT_NPROC, (most, most))
        elif self._group is not None and self._asleep:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (MAX_TASKS, MAX_TASKS))
        else:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (self._processes_now, self._limits.processes + 1 + self._asleep))

    def follow(self, live: int, sender: Sequence[tuple[int, int, bytes]]) -> None:
        self._processes.follow(live, sender)
        self._exit = None
        try:
            self._bound_live(live)
        except OSError as err:
            if not isinstance(err, ProcessLookupError | FileNotFoundError):  # else it has ended, which is told of elsewhere
                raise SandboxFailed(f"the bounds of the session's process could not be set: {err.strerror}") from err

    def _bound_live(self, live: int) -> None:
        if (pid := outside_of(self._processes.handle)) < 0:
            return  # it is gone
        # The first process of a branch is moved, which takes 10 to 20 ms (docs/decisions/001); those after it are there by birth.
        if (self._on_leave or self._of) and self._group is not None and not self._group.holds(pid):
            self._group.adopt(pid)
        self._bound_processes(pid)
        if self._group is not None:
            # What checkpoints hold is not to be had, so that it is still a MemoryError which comes first.
            free = max(0, self._limits.memory_mb * _MIB - self._group.usage().memory_bytes)
            data_bytes = self._statm(live)[1] + free * 15 // 16
            resource.prlimit(pid, resource.RLIMIT_DATA, (min(data_bytes, self._data_bytes), self._data_bytes))

    def _count_asleep(self, more: int) -> None:
        self._processes.asleep += more
        if self._closed:
            return
        with contextlib.suppress(OSError):
            if self._group is not None:
                self._group.set_limits(memory_bytes=self._limits.memory_mb * _MIB, processes=self._processes_now - 1)
            elif self._processes.handle >= 0:
                self._bound_processes(outside_of(self._processes.handle))

    def has_others(self) -> bool:
        return not self._closed and self._processes.has_others()

    def mapped(self) -> set[str]:
        if self._closed:
            return set()
        folders = {self.home, mounts.WORKSPACE if self._on_leave is None else self.home}  # one, under both of its names
        return set[str]().union(*(self.room.mapped(self._processes.live, folder) for folder in folders))

    def kill_live(self) -> None:
        if not self._closed:
            self._processes.kill_live()

    async def clear(self, timeout_s: float) -> bool:
        return not self._closed and await self._processes.clear(timeout_s)

    def pin(self, pid: int) -> None:
        self.room.pin(pid)
        self._count_asleep(1)
        if self.room.init >= 0 and self._group is None and (handle := self.room.handle(pid)) >= 0:
            most = self._limits.processes + 1 + self._asleep
            with contextlib.suppress(
                OSError
            ):  # it never runs a program, and has to be able to fork when there are more of its kind
                resource.prlimit(outside_of(handle), resource.RLIMIT_NPROC, (most, most))

    async def suspend(self, pid: int, timeout_s: float) -> bool:
        if (handle := self.room.handle(pid)) < 0:
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        give_up = time.monotonic() + timeout_s
        while not self.room.is_still(pid):  # nobody is told of it but its parent
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(STILL_STEP_S)
        return True

    def resume(self, pid: int) -> None:
        if (handle := self.room.handle(pid)) >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)

    def release(self, pid: int) -> None:
        self.room.release(pid)
        self._count_asleep(-1)

    def interrupt(self, *, again: bool = False) -> None:
        """To the main thread, whose it is: if another one took it while the guest's code holds it back there, it would raise in that code."""
        if self._closed or (handle := self._processes.handle) < 0:
            return
        number = signal.SIGURG if again else signal.SIGINT
        for flags in (_SIGNAL_THREAD, 0):  # a kernel before 6.9 can only send it to the whole process
            with contextlib.suppress(OSError):  # the kernel does not know the flag, or the process is gone
                signal.pidfd_send_signal(handle, number, None, flags)
                return

    def kill(self) -> None:
        if self._closed:
            return
        if self.room.users == 1:
            self.room.kill_all()
        else:
            self._processes.kill_all()

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

    def read_usage(self, *, exact: bool = False) -> Reading:
        if self._closed:
            return Reading(0, 0, 0)
        if self._group is not None:
            now = self._group.usage()
            if self._of is not None:  # whose process the kernel chose the group does not say; how its own ended, it will hear
                return Reading(now.memory_bytes, now.peak_memory_bytes, now.cpu_us)
            return Reading(now.memory_bytes, now.peak_memory_bytes, now.cpu_us, now.oom_kills, now.refused_forks)
        if self._sampler is not None:
            sample = self.room.sample(self._sampler, exact=exact)
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
        return 0 if self._fixed.open_room is None or self._closed else used_bytes(self._fixed.open_room.parent)

    def reset_peak(self) -> None:
        self._sampled_peak = 0
        if self._group is not None and self._of is None and not self._closed:
            self._group.reset_peak()

    async def aclose(self) -> None:
        if self._closed:
            return
        try:
            if self.room.users > 1 and not await self._processes.clear(CLOSE_S):
                self.room.kill_all()  # rather its relatives than a process that nobody holds
        finally:
            self._closed = True
            self.channel.close()
            if self._of is not None:
                self._of.let_go(self)
            for fd in (self.stdout, self.stderr, self.workspace, self._scratch, self.ruleset):
                if fd >= 0:
                    os.close(fd)
            if self._on_leave is not None and not self._has_branches:  # theirs lie below its own
                self._on_leave()
            # Checkpoints that a branch still needs stay in the group, and so does memory that they hold.
            self.room.at_end(functools.partial(self._on_close, self._group))
            await self.room.leave(self.id)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
