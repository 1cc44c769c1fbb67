"""Opening what lies beneath a folder that a program owns: never out of it, never through a link, with no more than the program's rights.

The program may change anything below the folder at any moment, so nothing is decided by looking at a path: something is taken hold
of first (O_PATH, which does nothing to a pipe or a device), judged by its descriptor, and only then opened.
"""

import contextlib
import ctypes
import os
import stat
from collections.abc import Generator
from typing import Final

MAX_DEPTH: Final = 32  # folders within folders that a walk goes down; it holds a descriptor for each
NO_SYMLINKS: Final = 0x04  # RESOLVE_NO_SYMLINKS: also links that stay in the folder are not followed

_SYS_OPENAT2: Final = 437  # the same number on every architecture
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x01, 0x02, 0x08
_BENEATH: Final = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
_libc: Final = ctypes.CDLL(None, use_errno=True)

Owner = tuple[int, int]  # uid and gid


def open_beneath(folder: int, path: bytes, flags: int, resolve: int = 0) -> int:
    """A new descriptor, by openat2(2). Links that stay beneath are followed unless `resolve` says `NO_SYMLINKS`.

    Raises OSError: EXDEV for what leads out, ELOOP for a link that is not followed.
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, _BENEATH | resolve)
    fd = _libc.syscall(_SYS_OPENAT2, folder, path, how, ctypes.c_size_t(24))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


@contextlib.contextmanager
def held(folder: int, path: bytes, flags: int = 0) -> Generator[int, None, None]:
    """A hold (O_PATH) on whatever has this name: a link itself, not what it points to."""
    fd = open_beneath(folder, path, flags | os.O_PATH | os.O_NOFOLLOW, NO_SYMLINKS)
    try:
        yield fd
    finally:
        os.close(fd)


def by_fd(fd: int) -> str:
    """A path for what a descriptor holds, for calls that take no O_PATH descriptor."""
    return f"/proc/self/fd/{fd}"


def open_held(hold: int, flags: int) -> int:
    """Open the regular file of a hold, also one that its owner closed to himself; the mode is as before when this returns.

    Never waits: where the program holds a lease on the file (fcntl(2), F_SETLEASE) it fails with EWOULDBLOCK, instead of blocking
    for /proc/sys/fs/lease-break-time, 45 s.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(by_fd(hold), flags)
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(hold).st_mode)
        os.chmod(by_fd(hold), mode | 0o600)
        try:
            return os.open(by_fd(hold), flags)
        finally:
            os.chmod(by_fd(hold), mode)


@contextlib.contextmanager
def as_owner(owner: Owner | None) -> Generator[None, None, None]:
    """Act with the guest's ids on this thread (setfsuid(2)): root's own cannot even create a file in a foreign tmpfs. None: as we are."""
    if owner is None:
        yield
        return
    uid, gid = owner
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(os.getegid())


def walk(top: int) -> Generator[tuple[int, bytes, os.stat_result], None, None]:
    """Everything below a folder: the descriptor of the folder that it lies in, its path from the top, its status. Takes over `top`.

    Links are not followed. The entries of a folder come before anything below them. Left out without a word: what vanishes
    meanwhile, what lies in folders that may not be opened, and what lies deeper than `MAX_DEPTH`.
    """
    return _walk(top, b"", 0)


def _walk(folder: int, prefix: bytes, depth: int) -> Generator[tuple[int, bytes, os.stat_result], None, None]:
    below: list[bytes] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone meanwhile
                name = os.fsencode(entry.name)
                yield folder, prefix + name, status
                if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                    below.append(name)
        for name in below:
            try:
                fd = open_beneath(folder, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, NO_SYMLINKS)
            except OSError:
                continue  # gone, replaced by a link, or made unreadable by the program itself
            yield from _walk(fd, prefix + name + b"/", depth + 1)
    finally:
        os.close(folder)


def printable(path: bytes) -> str:
    return path.decode("utf-8", "replace")
