"""What a tree of processes has used, from /proc: needs no privilege and no control group.

CPU is user + system time of every process of the tree, live or dead: a process that was waited for has added its own time, and
that of its children, to its parent's `cutime` and `cstime` (proc_pid_stat(5)). What kernel threads do on its behalf, such as
tearing down network namespaces, is in nobody's account.
"""

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    cpu_ticks: int


def cpu_s(root: int, *, without: Collection[int] = ()) -> float:
    """Seconds of CPU that the tree below and including `root` has used so far; subtrees of `without` are left out.

    In steps of 10 ms in all, so it is for sums over many runs.
    """
    return sum(process.cpu_ticks for process in _tree(root, without)) * _TICK_S


def pids(root: int, *, without: Collection[int] = ()) -> set[int]:
    return {process.pid for process in _tree(root, without)}


def private_bytes(pid: int) -> tuple[int, int]:
    """(memory that no other process maps, page tables) of a process, in bytes. Raises OSError where we may not look."""
    rollup = _fields(f"/proc/{pid}/smaps_rollup")
    status = _fields(f"/proc/{pid}/status")
    return (rollup["Private_Clean"] + rollup["Private_Dirty"]) * 1024, status["VmPTE"] * 1024


def _fields(path: str) -> dict[str, int]:
    """The lines “Name:  123 kB” of a file."""
    found: dict[str, int] = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                found[name] = int(value.split()[0])
    return found


def _tree(root: int, without: Collection[int]) -> Iterator[_Process]:
    children: dict[int, list[_Process]] = {}
    found: dict[int, _Process] = {}
    for process in _processes():
        found[process.pid] = process
        children.setdefault(process.parent, []).append(process)
    waiting = [found[root]] if root in found else []
    while waiting:
        process = waiting.pop()
        if process.pid not in without:
            yield process
            waiting += children.get(process.pid, ())


def _processes() -> Iterator[_Process]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may hold anything, also parentheses and blanks.
                fields = file.read().rpartition(b")")[2].split()
                yield _Process(int(name), int(fields[1]), sum(map(int, fields[11:15])))
