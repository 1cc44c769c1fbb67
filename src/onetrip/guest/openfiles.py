"""Regular files that the session has open: where it stands in each and what it has locked, so that both go along in time.

A forked process shares the position of an open file with its parent (fork(2)); what one reads, the other has read. Record locks
are the other way round: they stay with the parent, and the child, which believes that it has them, would wait for its elder for ever.
So nobody holds them but the process that goes on.
"""

import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, lockf
from os import O_CLOEXEC, SEEK_CUR, SEEK_SET, fstat, lseek
from stat import S_ISREG
from typing import Final, NamedTuple

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_FIRST: Final = 4  # 0 to 3 are ours
_MAX: Final = 1024
_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


class OpenFile(NamedTuple):
    fd: int
    position: int
    path: str
    flags: int
    locks: tuple[tuple[int, int, int], ...]  # of this process on the file: kind, first byte, bytes (0: to the end)


def record() -> list[OpenFile]:
    """Every regular file that is open now."""
    found: list[OpenFile] = []
    for name in os.listdir("/proc/self/fd")[:_MAX]:
        fd = int(name)
        if fd < _FIRST:
            continue
        try:
            if S_ISREG(fstat(fd).st_mode):
                flags, locks = _info(fd)
                found.append(OpenFile(fd, lseek(fd, 0, SEEK_CUR), os.readlink(f"/proc/self/fd/{fd}"), flags, locks))
        except OSError:
            continue  # the descriptor of this listing itself, or one that cannot be positioned
    return found


def _info(fd: int) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Flags and record locks, from proc_pid_fdinfo(5): `lock: 1: POSIX ADVISORY WRITE 359 00:13:11691 0 EOF`."""
    flags = 0
    locks: list[tuple[int, int, int]] = []
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            words = line.split()
            if words[:1] == ["flags:"]:
                flags = int(words[1], 8)
            elif words[:1] == ["lock:"] and words[2] == "POSIX":
                first = int(words[7])
                size = 0 if words[8] == "EOF" else int(words[8]) - first + 1
                locks.append((LOCK_EX if words[4] == "WRITE" else LOCK_SH, first, size))
    return flags, tuple(locks)


def unlock(files: list[OpenFile]) -> None:
    """Let go of the record locks, for the process that goes on to take (`lock`). Whole files: a process has no other locks."""
    for file in files:
        if file.locks:
            try:
                lockf(file.fd, LOCK_UN)
            except OSError:
                continue


def lock(files: list[OpenFile]) -> None:
    """Take the record locks that were recorded. What is not to be had any more is left."""
    for file in files:
        for kind, first, size in file.locks:
            try:
                lockf(file.fd, kind | LOCK_NB, size, first)
            except OSError:
                continue  # also where this descriptor is open for reading only: then another one of the file is not


def restore(files: list[OpenFile]) -> None:
    """Go back to where they stood, with the locks that were held."""
    for file in files:
        try:
            lseek(file.fd, file.position, SEEK_SET)
        except OSError:
            continue
    lock(files)


def reopen(files: list[OpenFile], moved: tuple[str, str]) -> list[str]:
    """Open each anew, so that nobody else's reading moves it: what lies below the first folder of `moved` from below the second.

    Returns the paths that are not there to be opened; those stay shared with the process that they came from.
    """
    missing: list[str] = []
    origin, here = moved
    for file in files:
        path = here + file.path.removeprefix(origin) if file.path.startswith(f"{origin}/") else file.path
        try:
            fd = os.open(path, file.flags & _KEPT_FLAGS | O_CLOEXEC)
        except OSError:
            missing.append(file.path)
            continue
        os.dup2(fd, file.fd, inheritable=not file.flags & O_CLOEXEC)
        os.close(fd)
    restore(files)
    return missing
