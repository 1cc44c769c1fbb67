"""Everything that could be left behind by this process, counted: processes, descriptors, mounts, control groups, files, memory."""

import contextlib
import ctypes
import dataclasses
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

# By how much the count of an idle engine may go up: a share, and a number in any case. Memory: caches, and what the allocator does not
# give back. Groups and descriptors: the tier keeps up to eight used groups to use again, and how many it has is a matter of chance.
SLACK = {
    "own memory, MB": (0.10, 8.0),
    "own objects": (0.05, 5000.0),
    "zygotes' memory, MB": (0.10, 16.0),
    "control groups": (0.0, 8.0 * 4),
    "descriptors": (0.0, 8.0 * 9),
}
# Of the whole machine, so of others, too: shown, never judged.
SHOWN = frozenset({"processes of the machine", "network namespaces of the machine", "control groups of the machine"})


@dataclasses.dataclass(frozen=True)
class Counts:
    """`values`: what is counted → how much."""

    values: dict[str, float]

    @classmethod
    def take(cls, folder: str, *, exactly: bool = False) -> Self:
        """`folder`: of the temporary files. `exactly`: leave out memory, which never shrinks to what it was before the first use."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not in use, wherever it lies
        family = descendants(os.getpid())
        values: dict[str, float] = {
            "processes below us": len(family),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "mounts": len(Path("/proc/self/mounts").read_bytes().splitlines()),
            "mount namespaces": len(namespaces(family, "mnt")),
            "network namespaces": len(namespaces(family, "net")),
            "control groups": control_groups(),
            "temporary files": sum(len(files) + len(folders) for _, folders, files in os.walk(folder)),
            "files in /dev/shm": len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0,
            "processes of the machine": sum(name.isdecimal() for name in os.listdir("/proc")),
            "network namespaces of the machine": slab("net_namespace"),
            "control groups of the machine": machine_groups(),
        }
        if not exactly:
            # What a leak would show first, whatever the allocator keeps for later.
            values["own objects"] = sys.getallocatedblocks()
            values["own memory, MB"] = resident_mb(os.getpid())
            values["zygotes' memory, MB"] = sum(map(resident_mb, family))
        return cls(values)

    def judged(self) -> dict[str, float]:
        return {name: value for name, value in self.values.items() if name not in SHOWN and not name.endswith(("MB", "objects"))}


def differences(before: Counts, after: Counts, *, idle: bool) -> list[str]:
    """What is more than it was, in words; of an engine that is `idle`, by more than its reserves explain."""
    found: list[str] = []
    for name in before.values.keys() & after.values.keys() - SHOWN:
        was, now = before.values[name], after.values[name]
        share, least = SLACK.get(name, (0.0, 0.0)) if idle else (0.0, 0.0)
        if now > was + max(was * share, least):
            found.append(f"{name}: {was:g} before, {now:g} after")
    return sorted(found)


def table(headings: Sequence[str], columns: Sequence[Counts]) -> str:
    names = list(columns[0].values)
    lines = [f"{'':36}" + "".join(f"{heading:>20}" for heading in headings)]
    for name in names:
        cells = "".join(f"{column.values[name]:>20.10g}" if name in column.values else f"{'':>20}" for column in columns)
        lines.append(f"{name:36}{cells}")
    return "\n".join(lines)


def descendants(root: int) -> set[int]:
    """All processes below `root`. With PR_SET_CHILD_SUBREAPER set, none of them can leave this tree alive."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.add(child)
            waiting.append(child)
    return found


def describe(pid: int) -> str:
    """A process in words, for who looks for the leak."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} ({state}) {command[:200]}"
    return f"{pid} (gone)"


def namespaces(family: set[int], kind: str) -> set[str]:
    found: set[str] = set()
    for pid in family:
        with contextlib.suppress(OSError):  # ended meanwhile, or an init that nobody may look into
            found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


def control_groups() -> int:
    """Groups of sandboxes of this process, in any hierarchy: their names begin with its pid."""
    mine = f"{os.getpid()}-"
    total = 0
    for _, folders, _ in os.walk("/sys/fs/cgroup"):
        total += sum(name.startswith(mine) for name in folders)
    return total


def resident_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return round(int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6, 1)
    return 0.0


def slab(name: str) -> int:
    """Live kernel objects of this kind; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/slabinfo").read_text("ascii").splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0


def machine_groups() -> int:
    with contextlib.suppress(OSError):
        return sum(int(line.split()[2]) for line in Path("/proc/cgroups").read_text("ascii").splitlines()[1:])
    return 0
