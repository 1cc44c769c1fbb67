"""What a sandbox uses, sampled from /proc: for hosts where no control group counts it.

`Sampler` reads a /proc mount that shows one sandbox's processes and no others. It is a watchdog's eye, not an account: what
happens between two samples and is gone is missed, which the level's description says. CPU time never goes down.

Memory. Sandboxes are forks, so most of what is resident is shared with the zygote and costs nothing. The cheap figure is, per
process, anonymous pages beyond `baseline_bytes`. A process could hide in it by rewriting the pages that it shares; every such
page costs a page fault. So as soon as resident memory plus faults since the last exact reading could come near the limit, the
kernel is asked for the exact share of each page (Pss in smaps_rollup, about 1 ms per 100 MB).

Not seen: pages of tmpfs files and of pipes and sockets that no process has mapped; sizes of mounts and rlimits bound those.
"""

import contextlib
import os
from dataclasses import dataclass
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGESIZE")
_TICK_US: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")
MAX_PROCESSES: Final = 4096  # more are not looked at: the limit on processes has been broken long before
_NEAR: Final = 0.75  # of the limit: from here on an exact reading is worth its price
_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """`processes` counts threads. `exact`: memory was read page by page and not estimated."""

    memory_bytes: int
    cpu_us: int
    processes: int
    exact: bool = False


@dataclass(frozen=True, slots=True)
class _Process:
    """One line of /proc/PID/stat, proc_pid_stat(5)."""

    faults: int
    own_ticks: int
    children_ticks: int  # of children that it has waited for
    threads: int
    resident_bytes: int


class Sampler:
    """Samples one sandbox. `proc_fd` stays the caller's.

    `only`: look at this process alone, where /proc shows the host's (level reduced: one process per sandbox).
    `memory_limit_bytes` says when estimates are no longer good enough; None: never.
    """

    def __init__(
        self, proc_fd: int, *, baseline_bytes: int = 0, memory_limit_bytes: int | None = None, only: int | None = None
    ) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self._proc_fd, self._baseline_bytes, self._only = proc_fd, baseline_bytes, only
        self._seen: dict[tuple[int, int], _Process] = {}  # by pid and start time, so that a number used again is another process
        self._lost_ticks = 0  # of processes that nobody waited for
        self._cpu_us = 0
        self._exact: tuple[int, int, int] | None = None  # memory, resident bytes and faults at the last exact reading

    def sample(self, *, exact: bool = False) -> Sample:
        """Look at every process once. A process that ends meanwhile counts with its last reading.

        `exact`: page by page. Processes that share much, such as a session and its checkpoints, are far below the estimate.
        """
        now = self._processes()
        self._account(now)
        memory, is_exact = self._memory(now, exact=exact)
        return Sample(memory, self._cpu_us, sum(process.threads for process in now.values()), is_exact)

    def _processes(self) -> dict[tuple[int, int], _Process]:
        names = [str(self._only)] if self._only is not None else [name for name in os.listdir(self._proc_fd) if name.isdigit()]
        found: dict[tuple[int, int], _Process] = {}
        for name in names[:MAX_PROCESSES]:
            raw = self._read(f"{name}/stat")
            # The command's name is in parentheses and may hold anything, parentheses too.
            fields = raw.rpartition(b")")[2].split()
            if len(fields) < 22:
                continue
            faults, user, system, children_user, children_system = (int(fields[at]) for at in (7, 11, 12, 13, 14))
            found[int(name), int(fields[19])] = _Process(
                faults, user + system, children_user + children_system, int(fields[17]), int(fields[21]) * _PAGE
            )
        return found

    def _account(self, now: dict[tuple[int, int], _Process]) -> None:
        """Add up CPU time. A process that vanished was either waited for, then its time is in its parent's, or it is lost."""
        vanished = sum(old.own_ticks + old.children_ticks for key, old in self._seen.items() if key not in now)
        inherited = sum(
            process.children_ticks - (self._seen[key].children_ticks if key in self._seen else 0) for key, process in now.items()
        )
        self._lost_ticks += max(0, vanished - inherited)
        ticks = self._lost_ticks + sum(process.own_ticks + process.children_ticks for process in now.values())
        self._cpu_us = max(self._cpu_us, ticks * _TICK_US)
        self._seen = now

    def _memory(self, now: dict[tuple[int, int], _Process], *, exact: bool) -> tuple[int, bool]:
        resident = sum(process.resident_bytes for process in now.values())
        faults = sum(process.faults for process in now.values())
        reach = self._could_reach(resident, faults)
        if exact or (self.memory_limit_bytes is not None and reach > _NEAR * self.memory_limit_bytes):
            memory = sum(self._exact_bytes(pid, process) for (pid, _), process in now.items())
            self._exact = (memory, resident, faults)
            return memory, True
        # Forks of one session count what they share once each in the estimate; what was exact once bounds it from above.
        return min(reach, sum(self._estimate(pid) for pid, _ in now)), False

    def _could_reach(self, resident: int, faults: int) -> int:
        """An upper bound of the memory in use."""
        if self._exact is None:
            return resident
        memory, resident_then, faults_then = self._exact
        # Both can shrink when a process ends; what it held shrinks with it, so nothing is gained by counting that.
        return min(resident, memory + max(0, resident - resident_then) + max(0, faults - faults_then) * _PAGE)

    def _estimate(self, pid: int) -> int:
        fields = self._read(f"{pid}/statm").split()
        if len(fields) < 3:
            return 0
        return max(0, (int(fields[1]) - int(fields[2])) * _PAGE - self._baseline_bytes)

    def _exact_bytes(self, pid: int, process: _Process) -> int:
        kib = 0
        for line in self._read(f"{pid}/smaps_rollup").splitlines():
            name, _, rest = line.partition(b":")
            if name in (b"Pss_Anon", b"Pss_Shmem", b"SwapPss"):
                kib += int(rest.split()[0])
        # Unreadable (no ptrace access, or a process that is ending): all that is resident beyond the baseline.
        return kib << 10 or max(0, process.resident_bytes - self._baseline_bytes)

    def _read(self, path: str) -> bytes:
        """A file of one process; empty when the process is gone or hidden."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._proc_fd)
            try:
                return os.read(fd, _READ_BYTES)
            finally:
                os.close(fd)
        return b""
