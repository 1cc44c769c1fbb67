"""Regular files that the session has open: where it stands in each, so that going back in time goes back there, too.

A forked process shares the position of an open file with its parent (fork(2)); what one reads, the other has read.
"""

import os
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


def record() -> list[OpenFile]:
    """Every regular file that is open now."""
    found: list[OpenFile] = []
    for name in os.listdir("/proc/self/fd")[:_MAX]:
        fd = int(name)
        if fd < _FIRST:
            continue
        try:
            if S_ISREG(fstat(fd).st_mode):
                with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
                    flags = int(next(line for line in info if line.startswith("flags:")).split()[1], 8)
                found.append(OpenFile(fd, lseek(fd, 0, SEEK_CUR), os.readlink(f"/proc/self/fd/{fd}"), flags))
        except OSError:
            continue  # the descriptor of this listing itself, or one that cannot be positioned
    return found


def restore(files: list[OpenFile]) -> None:
    """Go back to where they stood."""
    for file in files:
        try:
            lseek(file.fd, file.position, SEEK_SET)
        except OSError:
            continue


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
