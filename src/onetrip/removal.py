"""Folders on the host's disk that a program could write to: how full they are, and how to remove them, also a dead host's."""

import contextlib
import fcntl
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

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
        pending = [entry.name for entry in os.scandir(top)]
        while pending:
            name = pending.pop()
            try:
                os.unlink(name, dir_fd=top)
                continue
            except (IsADirectoryError, PermissionError):
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                os.fchmod(folder, 0o700)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            moved = f".moved-{secrets.token_hex(8)}"
                            os.rename(entry.name, moved, src_dir_fd=folder, dst_dir_fd=top)
                            pending.append(moved)
                        else:
                            os.unlink(entry.name, dir_fd=folder)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)
