"""Control groups: memory, processes and CPU of a whole sandbox, counted and bounded by the kernel. Versions 2 and 1, or none.

Theory of operation
-------------------
`probe` (cgroup_place.py) looks for a place where groups of ours may be made and says why where there is none. The group that the
server was started in is never touched, nor moved out of. Below the place lies `onetrip-<uid>`, and in it one group per sandbox,
named after the server that made it (pid and start time), so that `sweep` can tell the leftovers of a dead server from the groups of
a live one.

A process joins by itself: it inherits `procs_fds` and writes "0" to each. The kernel checks the permission of who opened the file.
In version 1 the file is `tasks`, because a single thread that moves itself skips the lock over all forks of the machine
(kernel/cgroup/cgroup.c, cgroup_procs_write_start); with `cgroup.procs` one join in a hundred took 16 ms here, with `tasks` 0.1.
"""

import contextlib
import os
import time
from errno import EBADF, EBUSY, EINVAL, ESPIPE
from typing import Final, NamedTuple

from .cgroup_place import Hierarchy, pass_on, probe, read_text, write

__all__ = ["Group", "Hierarchy", "Usage", "probe", "sweep"]

PERIOD_US: Final = 100_000  # of the CPU quota: the kernel's default (Documentation/scheduler/sched-bwc)
REMOVE_S: Final = 2.0  # how long `remove` waits for the last process to be gone
RESIDUE_BYTES: Final = 1 << 20  # what the kernel may still charge to an empty group that is used again
_RETRY_S: Final = 0.001


class Usage(NamedTuple):
    """What the group has used since it was made or `reset`. Memory includes page cache, tmpfs files and kernel memory."""

    memory_bytes: int
    peak_memory_bytes: int
    cpu_us: int
    oom_kills: int
    refused_forks: int


class _Files(NamedTuple):
    join: str
    memory: str
    peak: str
    cpu: str
    oom: str
    forks: str


_V1: Final = _Files(
    "tasks", "memory.usage_in_bytes", "memory.max_usage_in_bytes", "cpuacct.usage", "memory.oom_control", "pids.events"
)
_V2: Final = _Files("cgroup.procs", "memory.current", "memory.peak", "cpu.stat", "memory.events", "pids.events")


class Group:
    """One sandbox's group, in all hierarchies. Made by `create`, closed by `remove`."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self._hierarchy, self._files = hierarchy, _V1 if hierarchy.version == "v1" else _V2
        label = f"{os.getpid()}-{_start_time(os.getpid())}-{name}"
        self._folders = {controller: f"{hierarchy.base(controller)}/{label}" for controller in hierarchy.places}
        self._made: list[str] = []
        self._written: dict[str, str] = {}
        self._fds: dict[str, int] = {}
        self._peak_seen = 0  # highest reading of the memory in use since `reset_peak`
        self._old_peak = 0  # the kernel's peak at `reset_peak`, where it cannot be reset: a higher one is new, this one is not
        self._before = Usage(0, 0, 0, 0, 0)
        self.procs_fds: tuple[int, ...] = ()

    @classmethod
    def create(cls, hierarchy: Hierarchy, name: str, *, memory_bytes: int, processes: int, cpus: float | None = None) -> "Group":
        """Make the group, with its limits set and `procs_fds` open. Raises OSError, and then leaves nothing.

        `processes` counts threads. `cpus` is a share of CPU time, 1.0 one whole CPU; None: not bounded.
        """
        group = cls(hierarchy, name)
        try:
            for folder in dict.fromkeys(group._folders.values()):
                _make_folder(hierarchy, folder)
                group._made.append(folder)
            group._set_once()
            group.set_limits(memory_bytes=memory_bytes, processes=processes, cpus=cpus)
            group._open()
        except OSError:
            group.remove()
            raise
        return group

    def _set_once(self) -> None:
        if self._hierarchy.version == "v2":
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                self.write("memory", "memory.swap.max", "0")
        elif not os.path.exists(f"{self._folders['memory']}/memory.memsw.limit_in_bytes"):
            self.write("memory", "memory.swappiness", "0")

    def _open(self) -> None:
        files, cpu = self._files, "cpuacct" if self._hierarchy.version == "v1" else "memory"
        for controller, name in (("memory", files.memory), (cpu, files.cpu), ("memory", files.oom), ("pids", files.forks)):
            self._fds[name] = os.open(f"{self._folders[controller]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        peak = f"{self._folders['memory']}/{files.peak}"
        try:
            self._fds[files.peak] = os.open(peak, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:  # Linux < 6.12: version 2 lets nobody reset it
            self._fds[files.peak] = os.open(peak, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # Linux < 5.19: there is only the highest reading
            pass
        self._open_procs()

    def _open_procs(self) -> None:
        self.procs_fds = tuple(os.open(f"{folder}/{self._files.join}", os.O_WRONLY | os.O_CLOEXEC) for folder in self._made)

    def holds(self, pid: int) -> bool:
        """Whether a process is here with every controller; of one that has threads, its first."""
        return all(str(pid) in read_text(f"{folder}/{self._files.join}").split() for folder in self._made)

    def adopt(self, pid: int) -> None:
        """Move a process here from outside; what it holds already stays charged where it was. Raises OSError."""
        for folder in self._made:
            write(f"{folder}/{self._files.join}", str(pid))

    def close_procs(self) -> None:
        """Close `procs_fds`, once the child has them."""
        for fd in self.procs_fds:
            os.close(fd)
        self.procs_fds = ()

    def set_limits(self, *, memory_bytes: int, processes: int, cpus: float | None = None) -> None:
        """Write what differs from what holds. `cpus` None leaves the share as it is.

        When the group already uses more memory than that and cannot give it back, version 1 raises OSError (EBUSY) and version 2
        kills a process.
        """
        if self._hierarchy.version == "v2":
            self.write("memory", "memory.max", str(memory_bytes))
        else:
            # memory + swap may never be below memory: the one that grows goes first.
            names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            if "memory.swappiness" in self._written:
                del names[1]
            elif memory_bytes > int(self._written.get(names[0], "0")) and names[0] in self._written:
                names.reverse()
            for name in names:
                self.write("memory", name, str(memory_bytes))
        self.write("pids", "pids.max", str(processes))
        if cpus is not None and "cpu" in self._folders:
            quota = str(max(1000, int(cpus * PERIOD_US)))  # the kernel's least is 1 ms
            if self._hierarchy.version == "v2":
                self.write("cpu", "cpu.max", f"{quota} {PERIOD_US}")
            else:
                self.write("cpu", "cpu.cfs_quota_us", quota)

    def write(self, controller: str, name: str, value: str) -> None:
        if self._written.get(name) != value:
            write(f"{self._folders[controller]}/{name}", value)
            self._written[name] = value

    def usage(self) -> Usage:
        """Read the counters: five `pread`s of open files."""
        files, before = self._files, self._before
        memory = int(self._read(files.memory))
        self._peak_seen = max(self._peak_seen, memory)
        peak = self._kernel_peak()
        peak = max(self._peak_seen, peak if peak > self._old_peak else 0)
        raw = self._read(files.cpu)
        cpu = int(raw) // 1000 if files is _V1 else _field(raw, b"usage_usec")
        oom, forks = _field(self._read(files.oom), b"oom_kill"), _field(self._read(files.forks), b"max")
        return Usage(memory, peak, cpu - before.cpu_us, oom - before.oom_kills, forks - before.refused_forks)

    def _read(self, name: str) -> bytes:
        return os.pread(self._fds[name], 4096, 0)

    def _kernel_peak(self) -> int:
        return int(self._read(self._files.peak)) if self._files.peak in self._fds else 0

    def reset_peak(self) -> None:
        """Let the peak start again from what is used at this moment.

        Where the kernel cannot do that, a later peak below the one before is the highest reading, and a higher one exact.
        """
        self._peak_seen = 0
        try:
            if self._files.peak in self._fds:
                os.pwrite(self._fds[self._files.peak], b"0", 0)
        except OSError as err:
            if err.errno not in (EINVAL, ESPIPE, EBADF):  # the last two: opened for reading only
                raise
            self._old_peak = self._kernel_peak()

    def renew(self) -> bool:
        """Make the group ready for another sandbox: counting from zero, `procs_fds` open. False: not empty, to be removed.

        Making and removing a group costs three times as much.
        """
        self._before = Usage(0, 0, 0, 0, 0)
        self._before = self.usage()
        if self.members() or self._before.memory_bytes > RESIDUE_BYTES:
            return False
        self.reset_peak()
        if not self.procs_fds:
            self._open_procs()
        return True

    def members(self) -> list[int]:
        """The processes in it, by their numbers here."""
        return [int(line) for line in read_text(f"{self._made[0]}/cgroup.procs").split()]

    def remove(self, *, deadline_s: float = REMOVE_S) -> None:
        """Remove the group, whose processes are dead or dying; again does no harm. OSError (EBUSY) after `deadline_s`."""
        self.close_procs()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        deadline = time.monotonic() + deadline_s
        while self._made:
            folder = self._made[-1]
            try:
                self._hierarchy.drop(folder)
            except FileNotFoundError:
                pass
            except OSError as err:
                if err.errno != EBUSY or time.monotonic() > deadline:
                    raise OSError(err.errno, err.strerror, folder) from err
                time.sleep(_RETRY_S)  # there is no event for it in version 1, and in version 2 it is a matter of microseconds
                continue
            self._made.pop()


def sweep(hierarchy: Hierarchy) -> int:
    """Remove the empty groups of servers that are dead, and `onetrip-<uid>` itself when nothing is left in it. Returns how many."""
    removed = 0
    for base in {hierarchy.base(controller) for controller in hierarchy.places}:
        with contextlib.suppress(OSError):
            for entry in os.scandir(base):
                pid, _, rest = entry.name.partition("-")
                started = rest.partition("-")[0]
                if entry.is_dir() and pid.isdigit() and _start_time(int(pid)) != started:
                    with contextlib.suppress(OSError):  # EBUSY: its sandbox outlives it, and may be adopted
                        hierarchy.drop(entry.path)
                        removed += 1
            hierarchy.drop(base)
    return removed


def _make_folder(hierarchy: Hierarchy, folder: str) -> None:
    base = os.path.dirname(folder)
    for last in (False, False, True):  # a sweep of another server of ours may take the base away in between
        with contextlib.suppress(FileExistsError):
            hierarchy.make(base)
        try:
            if hierarchy.version == "v2":
                # Also above: until a group of ours has a controller, systemd switches it off where no unit of its own needs it.
                pass_on(base, hierarchy.places)
            hierarchy.make(folder)
            return
        except FileNotFoundError:
            if last:
                raise


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks after boot: field 22 of proc_pid_stat(5). None: there is no such process."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _field(raw: bytes, name: bytes) -> int:
    """A value from lines of `name value`; 0 where the kernel does not have it."""
    return next((int(line.split()[1]) for line in raw.splitlines() if line.startswith(name + b" ")), 0)
