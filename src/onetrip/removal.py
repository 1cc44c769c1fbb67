"""Folders on the host's disk that a program could write to: how full they are, and how to remove them, also a dead host's."""

import contextlib
import errno
import fcntl
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from onetrip.beneath import by_fd, held
from onetrip.errors import Unavailable

_PREFIX: Final = "onetrip-"
_LOCK: Final = "owner.lock"


class RunFolder:
    """A temporary folder of this process for sockets and open rooms, locked for as long as the process lives.

    Whoever makes the next one removes those whose owner is gone: nothing stays behind after a `kill -9`.
    """

    def __init__(self) -> None:
        """Raises Unavailable where no folder can be made."""
        try:
            _sweep(Path(tempfile.gettempdir()))
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as err:
            raise Unavailable(
                f"no temporary folder could be made: {err}", hint="Set TMPDIR to a folder with free space."
            ) from err

    def remove(self) -> None:
        remove_tree(self.path)
        os.close(self._lock)


def used_bytes(folder: Path) -> int:
    """What the files below a folder take on the disk. Follows no link; what cannot be looked at, or is gone, counts nothing."""
    total = 0
    for _, _, names, fd in os.fwalk(folder, onerror=None, follow_symlinks=False):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    return total


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # Not ours, in use, or being made at this moment: no lock to be had, so leave it.
        with contextlib.suppress(OSError):
            fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(folder)
            finally:
                os.close(fd)


def remove_tree(path: os.PathLike[str]) -> None:
    """Remove a folder that a program could write to, whatever it made of it: links are not followed, depth does not matter.

    Folders below the first level are moved up before they are emptied, so neither recursion nor long paths are needed.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        empty_folder(top)
    finally:
        os.close(top)
    os.rmdir(path)


def empty_folder(top: int, *, max_entries: int | None = None) -> None:
    """Remove everything in a folder; see `remove_tree`. Raises OSError where there is more than `max_entries`, or a program interferes."""
    pending = os.listdir(top)
    seen = len(pending)
    while pending:
        name = pending.pop()
        try:
            os.unlink(name, dir_fd=top)
            continue
        except (IsADirectoryError, PermissionError):
            folder = _opened(name, top)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    seen += 1
                    if max_entries is not None and seen > max_entries:
                        raise OSError(errno.E2BIG, f"more than {max_entries} files and folders")
                    if entry.is_dir(follow_symlinks=False):
                        os.close(_opened(entry.name, folder))  # its owner cannot move a folder that he cannot write to
                        moved = f".moved-{secrets.token_hex(8)}"
                        os.rename(entry.name, moved, src_dir_fd=folder, dst_dir_fd=top)
                        pending.append(moved)
                    else:
                        os.unlink(entry.name, dir_fd=folder)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _opened(name: str, above: int) -> int:
    """A folder that may now be read, searched and written to, whatever its owner had made of its mode."""
    with held(above, os.fsencode(name), os.O_DIRECTORY) as hold:
        os.chmod(by_fd(hold), 0o700)
        return os.open(by_fd(hold), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
