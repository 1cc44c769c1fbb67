"""What the jail can give on this host: each mechanism tried, the reason where it fails, and the remedy."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onetrip.errors import PlatformError
from onetrip.jail import cgroup, launch
from onetrip.model import Level, Mechanism, Support

PROBE_S: Final = 20
_ISLAND: Final = str(Path(launch.__file__).parent.parent)
# Without these there is no namespace around the program.
_HOUSE: Final = ("userns", "pidns", "mountns", "netns", "ipcns", "utsns", "mounts", "pidfd-setns")
_ALWAYS: Final = ("seccomp", "no_new_privs", "openat2")
_WHAT: Final[Mapping[str, str]] = {
    "userns": "user namespace: rights inside are none outside",
    "pidns": "PID namespace: no other process in sight, certain end of all",
    "mountns": "mount namespace: a root of our own making",
    "netns": "network namespace: nothing to reach",
    "ipcns": "IPC namespace: no shared System V objects or message queues",
    "utsns": "UTS namespace: host name",
    "cgroupns": "cgroup namespace: the place in the tree is hidden",
    "mounts": "tmpfs and proc mounted in the namespace",
    "pidfd-setns": "joining namespaces by a process handle (Linux 5.8)",
    "landlock": "Landlock: files, signals and abstract sockets",
    "seccomp": "system call filter, deny by default",
    "no_new_privs": "no new privileges, so set-user-ID files have no effect",
    "openat2": "opening files beneath a folder only (Linux 5.6)",
}


def probe(cgroup_parent: str | None = None) -> Support:
    """Try everything; blocking, some 100 ms. Raises PlatformError when even the trial process cannot be started."""
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", launch.BOOT, _ISLAND, "probe"],
            env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=True,
        )  # fmt: skip
        found: dict[str, dict[str, Any]] = json.loads(tried.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        raise PlatformError(f"the host could not be probed: {err}") from err
    mechanisms = [_mechanism(name, found[name]) for name in _WHAT if name in found]
    mechanisms += _limits(cgroup.probe(cgroup_parent))
    return Support("jail", _level(found), tuple(mechanisms))


def has_house(support: Support) -> bool:
    return all(mechanism.works for mechanism in support.mechanisms if mechanism.name in _HOUSE)


def has_landlock(support: Support) -> bool:
    return all(mechanism.works for mechanism in support.mechanisms if mechanism.name == "landlock")


def _level(found: Mapping[str, Mapping[str, Any]]) -> Level | None:
    def works(*names: str) -> bool:
        return all(found[name]["errno"] == 0 for name in names)

    if not works(*_ALWAYS):
        return None
    if works(*_HOUSE, "landlock"):
        return "strict"
    # Either wall alone, with the filter, is the reduced level; with neither, nothing is started.
    return "reduced" if works(*_HOUSE) or works("landlock") else None


def _mechanism(name: str, answer: Mapping[str, Any]) -> Mechanism:
    works = answer["errno"] == 0
    needed: Level | None = "reduced" if name in _ALWAYS else None if name == "cgroupns" else "strict"
    detail = _WHAT[name] + (f" ({answer['detail']})" if works and answer["detail"] else "")
    if works:
        return Mechanism(name, True, needed, detail)
    cause, remedy = _diagnose(name, answer)
    return Mechanism(name, False, needed, f"{detail} — {cause}", remedy)


def _diagnose(name: str, answer: Mapping[str, Any]) -> tuple[str, str]:
    """The likely cause and the remedy, from what the kernel's settings say."""
    said = answer["detail"]
    if name == "landlock":
        return (
            said,
            "Boot a kernel with CONFIG_SECURITY_LANDLOCK and `landlock` in the `lsm=` boot parameter (default since Debian 12, Ubuntu 22.04).",
        )
    if name in ("seccomp", "no_new_privs", "openat2", "pidfd-setns"):
        return said, "Use Linux 5.8 or later; in a container, one whose seccomp profile lets the call through."
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            f"{said}; AppArmor restricts unprivileged user namespaces (Ubuntu 24.04 does)",
            "As root: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give this interpreter an AppArmor profile with `userns,`.",
        )
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return f"{said}; unprivileged user namespaces are switched off", "As root: `sysctl kernel.unprivileged_userns_clone=1`."
    if _sysctl("user/max_user_namespaces") == "0":
        return f"{said}; the number of user namespaces is limited to 0", "As root: `sysctl user.max_user_namespaces=10000`."
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return (
            f"{said}; this is a container, whose default profile forbids it",
            "Start the container with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`.",
        )
    return (
        said,
        "Allow unprivileged user namespaces for this user; a seccomp profile, an LSM or `user.max_*_namespaces` forbids them.",
    )


def _sysctl(name: str) -> str | None:
    try:
        return Path(f"/proc/sys/{name}").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _limits(hierarchy: cgroup.Hierarchy) -> list[Mechanism]:
    """Who holds the limits: control groups, or a watchdog that samples."""
    if hierarchy.version == "none":
        why = "; ".join(f"{name}: {reason}" for name, reason in hierarchy.reasons.items()) or "not usable by this user"
        return [
            Mechanism(
                "cgroup", False, None, f"control groups: memory, processes and CPU of the whole tree — {why}", hierarchy.remedy
            ),
            Mechanism(
                "watchdog", True, None, "in place of control groups: rlimits, one CPU, and samples of the tree every 50 ms"
            ),
        ]
    return [Mechanism(name, True, None, "control group: a limit of the kernel's on the whole tree") for name in hierarchy.names]
