"""Landlock: which files the process may use at all, whatever their modes and mounts say.

It needs no privilege, and in the strict level it is the second wall behind the mounts; in the reduced level it is the first.
Everything that the kernel's ABI can refuse is refused, except what a path below allows.

What this layer does not do: `chmod`, `chown`, `utime`, `stat`, `chdir` and locks are outside of it (kernel documentation,
userspace-api/landlock, "Current limitations"), and before ABI 9 so is connecting to a unix socket by path; the reduced system
call filter refuses those that change anything.
"""

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from typing import Final

from . import calls, syscalls

# linux/landlock.h, LANDLOCK_ACCESS_FS_*
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV, RESOLVE_UNIX = 1 << 14, 1 << 15, 1 << 16
# How many of the rights, which are numbered in order of appearance, an ABI knows.
_RIGHTS_OF_ABI: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16, 9: 17}
_NEWEST_ABI: Final = max(_RIGHTS_OF_ABI)
_FOR_FILES: Final = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX
)  # the others make sense for folders only
_NEVER: Final = MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV | RESOLVE_UNIX
_TCP_BIND_AND_CONNECT: Final = 0b11  # LANDLOCK_ACCESS_NET_*, from ABI 4
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 0b01, 0b10  # from ABI 6
_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH


def abi() -> int:
    """The kernel's Landlock ABI, 0 where there is none (not built in, not enabled at boot, or refused by a filter)."""
    try:
        return syscalls.landlock_create_ruleset(None, 1)
    except OSError as err:
        if err.errno in (ENOSYS, EOPNOTSUPP):
            return 0
        raise


@dataclass(frozen=True, slots=True)
class Rules:
    """What a ruleset says: `attributes` is what the kernel is asked to refuse, `paths` what is allowed beneath which file.

    `held` names what holds once a process is under them.
    """

    attributes: bytes  # struct landlock_ruleset_attr, as much of it as this kernel knows
    paths: tuple[tuple[str, int], ...]
    held: tuple[str, ...]

    def add_to(self, steps: calls.CallList, step: str) -> calls.Result:
        """Add the calls that make the ruleset; the result is its descriptor. The paths are looked up when the list runs."""
        attributes = calls.Data(self.attributes)
        ruleset = steps.add(step, "landlock_create_ruleset", attributes.at(0), len(self.attributes), 0)
        for path, allowed in self.paths:
            rule = calls.Data(struct.pack("=QiI", allowed, -1, 0))  # struct landlock_path_beneath_attr
            steps.add(step, "openat", syscalls.AT_FDCWD, os.fsencode(path), os.O_PATH | os.O_CLOEXEC, store=rule.at(8))
            steps.add(step, "landlock_add_rule", ruleset, _PATH_BENEATH, rule.at(0), 0)
            steps.add_pointed(step, "close", rule.at(8))
        return ruleset


def rules(*, readonly: Sequence[str], writable: Sequence[str], nodes: Sequence[str] = (), tcp: bool = False) -> Rules:
    """Rules for this kernel.

    `readonly` folders: read, list and execute. `writable` folders: everything but device nodes and ioctls on devices. `nodes`:
    existing devices, to be read and written. `tcp`: also refuse every TCP bind and connect (held from ABI 4 on).
    A path may also be a file. Raises OSError where there is no Landlock, or for a path that is not there.
    """
    known = min(abi(), _NEWEST_ABI)
    if not known:
        raise OSError(ENOSYS, "landlock_create_ruleset: the kernel has no Landlock")
    handled = (1 << _RIGHTS_OF_ABI[known]) - 1
    attributes, held = _attributes(known, handled, tcp=tcp)
    paths: list[tuple[str, int]] = []
    for listed, allowed in (
        (readonly, EXECUTE | READ_FILE | READ_DIR),
        (writable, handled & ~_NEVER),
        (nodes, READ_FILE | WRITE_FILE | TRUNCATE),
    ):
        for path in listed:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            paths.append((path, allowed & handled if is_folder else allowed & handled & _FOR_FILES))
    return Rules(attributes, tuple(paths), held)


def make(asked: Rules) -> int:
    """The ruleset's descriptor, ready for `enforce`. Its rules belong to the files that the paths lead to at this moment."""
    fd = syscalls.landlock_create_ruleset(asked.attributes, 0)
    try:
        for path, allowed in asked.paths:
            _add(fd, path, allowed)
    except BaseException:
        os.close(fd)
        raise
    return fd


def enforce(ruleset_fd: int) -> None:
    """Put the calling thread, and all that it forks or executes, under the ruleset for good. Precondition: no_new_privs is set."""
    syscalls.landlock_restrict_self(ruleset_fd)


def restrict(
    *, readonly: Sequence[str], writable: Sequence[str], nodes: Sequence[str] = (), tcp: bool = False
) -> tuple[str, ...]:
    """Build a ruleset and enforce it, as described at `rules`. Returns the names of what holds from here on."""
    asked = rules(readonly=readonly, writable=writable, nodes=nodes, tcp=tcp)
    fd = make(asked)
    try:
        enforce(fd)
    finally:
        os.close(fd)
    return asked.held


def _attributes(known: int, handled: int, *, tcp: bool) -> tuple[bytes, tuple[str, ...]]:
    net = _TCP_BIND_AND_CONNECT if tcp and known >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if known >= 6 else 0
    # A kernel knows a prefix of `struct landlock_ruleset_attr`: 8 bytes, from ABI 4 on 16, from ABI 6 on 24.
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    attributes = struct.pack("QQQ", handled, net, scoped)[:size]
    try:
        os.close(syscalls.landlock_create_ruleset(attributes, 0))
    except OSError as err:
        if err.errno != EINVAL or not scoped:
            raise
        # Red Hat's 5.14 kernels announce ABI 6 and lack the scope of signals.
        scoped = _SCOPE_ABSTRACT_UNIX
        attributes = struct.pack("QQQ", handled, net, scoped)
    held = [f"landlock-abi{known}"]
    held += ["landlock-tcp"] if net else []
    held += ["landlock-abstract-unix"] if scoped & _SCOPE_ABSTRACT_UNIX else []
    held += ["landlock-signals"] if scoped & _SCOPE_SIGNAL else []
    return attributes, tuple(held)


def _add(ruleset_fd: int, path: str, allowed: int) -> None:
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscalls.landlock_add_path(ruleset_fd, allowed, path_fd)
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err
    finally:
        os.close(path_fd)
