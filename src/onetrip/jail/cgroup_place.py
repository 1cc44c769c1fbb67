"""Where control groups of ours may be made: version 2 or 1 of the kernel's, or nowhere, and then why and what to do about it."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from errno import EBUSY, ENOENT
from typing import Final, Literal

_WANTED_V1: Final = ("memory", "pids", "cpuacct", "cpu")
_WANTED_V2: Final = ("memory", "pids", "cpu")
_OPTIONAL: Final = "cpu"  # without it CPU time is still counted, and the share is bounded by pinning
_REMEDY_V2: Final = (
    "start it by `systemd-run --user --scope -p Delegate=yes`; in a service or a container, in a group below one that is delegated "
    "to this user (systemd 254: `Delegate=yes` and `DelegateSubgroup=`), which `cgroup_parent` may name"
)
_REMEDY_V1: Final = "make a group in each hierarchy, `chown -R` it to this user, and configure its path (`cgroup_parent`)"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where our groups go. `version` "none": nowhere; then `reasons` (by controller) and `remedy` say why and what to do."""

    version: Literal["v2", "v1", "none"]
    places: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # usable controller → folder in which `onetrip-<uid>` is made
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])  # unusable controller → why
    remedy: str | None = None
    make: Callable[[str], None] = os.mkdir  # the seam: tests stand in for the kernel, which fills a new folder with files
    drop: Callable[[str], None] = os.rmdir

    @property
    def names(self) -> tuple[str, ...]:
        """What holds a limit, as reported with each result."""
        return tuple(f"cgroup-{self.version}:{name}" for name in self.places if name != "cpuacct")

    @property
    def groups(self) -> int:
        """How many folders a group has, which is how many files a process writes to in order to join it."""
        return len({self.base(controller) for controller in self.places})

    def base(self, controller: str) -> str:
        return f"{self.places[controller]}/onetrip-{os.geteuid()}"


def probe(parent: str | None = None, *, proc: str = "/proc/self") -> Hierarchy:
    """Find the best place. `parent` is the group that the configuration names, as a path below the hierarchy's root.

    In version 2 this may switch controllers on, in `cgroup.subtree_control` of the place and above; otherwise it only looks.
    """
    mounts, own = _mounts(proc), _own_groups(proc)
    found = [_probe_v2(mounts["cgroup2"], own.get("", "/"), parent)] if "cgroup2" in mounts else []
    found.append(_probe_v1(mounts, parent))
    for hierarchy in found:
        if hierarchy.version != "none":
            return hierarchy
    # Explain the one that has more to offer: a version 2 without controllers stands beside many a version 1.
    return min(found, key=lambda hierarchy: sum("no such controller" in reason for reason in hierarchy.reasons.values()))


def _mounts(proc: str) -> dict[str, str]:
    """Mount point of version 2 ("cgroup2") and of each controller of version 1."""
    points: dict[str, str] = {}
    with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            point = before.split()[4].encode().decode("unicode_escape")  # spaces are written as \040
            if kind == "cgroup2":
                points.setdefault("cgroup2", point)
            elif kind == "cgroup":
                points |= {option: point for option in options.split(",") if option in _WANTED_V1}
    return points


def _own_groups(proc: str) -> dict[str, str]:
    """Controllers → group of this process; version 2 under ""."""
    with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        return {line.split(":", 2)[1]: line.rstrip("\n").split(":", 2)[2] for line in lines}


def _probe_v1(mounts: Mapping[str, str], parent: str | None) -> Hierarchy:
    places: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in _WANTED_V1:
        place = _join(mounts[name], parent) if name in mounts else None
        if place is None:
            reasons[name] = "no such controller is mounted"
        elif not os.path.isdir(place):
            reasons[name] = f"{place} does not exist"
        elif not os.access(place, os.W_OK | os.X_OK):
            reasons[name] = f"{place} is not writable for this user"
        else:
            places[name] = place
    if any(name != _OPTIONAL for name in reasons):
        return Hierarchy("none", {}, reasons, _REMEDY_V1)
    return Hierarchy("v1", places, reasons, _REMEDY_V1 if reasons else None)


def _probe_v2(root: str, own: str, parent: str | None) -> Hierarchy:
    reasons: dict[str, str] = {}
    for place in _candidates_v2(root, own, parent):
        if not os.path.exists(f"{place}/cgroup.controllers"):
            reasons = dict.fromkeys(_WANTED_V2, f"{place} does not exist")
            continue
        if not all(os.access(path, os.W_OK) for path in (place, f"{place}/cgroup.procs", f"{place}/cgroup.subtree_control")):
            reasons = dict.fromkeys(_WANTED_V2, f"{place} is not delegated to this user")
            continue
        # Who moves a process must have power over the group above both places as well (cgroups(7), "delegation containment").
        above = os.path.commonpath([place, _join(root, own)])
        if not os.access(f"{above}/cgroup.procs", os.W_OK):
            reasons = dict.fromkeys(_WANTED_V2, f"no process may move there from {own}: {above} is not delegated to this user")
            continue
        reasons = _switch_on(place)
        if all(name == _OPTIONAL for name in reasons):
            places = {name: place for name in _WANTED_V2 if name not in reasons}
            return Hierarchy("v2", places, reasons, _REMEDY_V2 if reasons else None)
    return Hierarchy("none", {}, reasons, _REMEDY_V2)


def _switch_on(place: str) -> dict[str, str]:
    """Have the place pass on all that we want. Returns why not, by controller."""
    on = read_text(f"{place}/cgroup.subtree_control").split()
    # All that we cannot do without in one write: where processes are in the place, the kernel refuses memory but would take pids,
    # and from then on nobody could move those processes into a group below, which is the remedy (cgroups(7), "threaded").
    for names, failed in (([name for name in _WANTED_V2 if name != _OPTIONAL], _WANTED_V2), ([_OPTIONAL], (_OPTIONAL,))):
        try:
            if off := [name for name in names if name not in on]:
                pass_on(place, off)
        except OSError as err:
            return {name: _why_not_passed_on(place, name, err) for name in failed}
    return {}


def pass_on(place: str, controllers: Iterable[str]) -> None:
    """Switch controllers on for the groups below, and for `place` itself where it lacks one and we may. Raises OSError."""
    lacking, above = _lacking(place, controllers), os.path.dirname(place)
    if lacking and os.path.exists(f"{above}/cgroup.controllers"):
        with contextlib.suppress(OSError):  # not ours to change: then it stays lacking
            pass_on(above, lacking)
        lacking = _lacking(place, controllers)
    if lacking:
        raise OSError(ENOENT, f"no such controller: {' '.join(lacking)}", place)
    write(f"{place}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _lacking(place: str, controllers: Iterable[str]) -> list[str]:
    there = read_text(f"{place}/cgroup.controllers").split()
    return [name for name in controllers if name not in there]


def _why_not_passed_on(place: str, name: str, err: OSError) -> str:
    if _lacking(place, [name]):
        return f"no such controller in {place}"
    return f"{place} does not pass it on: {'there are processes in it' if err.errno == EBUSY else err.strerror}"


def _candidates_v2(root: str, own: str, parent: str | None) -> Iterator[str]:
    """The configured place alone, or else every group above our own, the nearest first (our own holds processes: ours)."""
    above = _join(root, own)
    if parent is not None:
        yield _join(root, parent)
        return
    while above != root:
        above = os.path.dirname(above)
        yield above
    if own == "/":
        yield root


def _join(root: str, below: str | None) -> str:
    return os.path.join(root, (below or "").removeprefix(root).strip("/")).rstrip("/")


def read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err
    finally:
        os.close(fd)
