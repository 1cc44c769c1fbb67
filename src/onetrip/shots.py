"""What a workspace looks like at one moment: every entry with its kind, mode and stamps, and which copy has its content."""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from onetrip.beneath import MAX_DEPTH, by_fd, held, open_beneath, printable, walk
from onetrip.copies import Copy, Stamp

MAX_NAMED: Final = 1000  # paths that a shot or a restoring names; the rest is a number
MAX_NAMES_BYTES: Final = 8 << 20  # of paths and link texts of one workspace, as they are kept in our memory
TOO_DEEP: Final = f"is more than {MAX_DEPTH} folders deep, and not looked into"

CLOCK: Final = 5  # CLOCK_REALTIME_COARSE, time.h: the clock that the kernel stamps files with


class Seen(msgspec.Struct, frozen=True, gc=False):
    """One entry as a walk found it."""

    mode: int  # with the kind
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int
    data_bytes: int  # what it takes in the workspace, less than `size` where it has holes
    target: bytes = b""  # of a symbolic link

    @property
    def stamp(self) -> Stamp:
        return self.inode, self.size, self.mtime_ns, self.ctime_ns


class Kept(msgspec.Struct, frozen=True):
    """One entry of a shot. A regular file without a copy was left out, and `why` says why."""

    seen: Seen
    copy: Copy | None = None
    why: str = ""

    def is_surely(self, here: Seen) -> bool:
        """Whether a regular file is as it was, by its stamp. The copy's stamp says nothing of the mode: another shot may share it."""
        copy, then = self.copy, self.seen
        return bool(
            copy and copy.settled and copy.stamp == here.stamp and (then.mode, then.mtime_ns) == (here.mode, here.mtime_ns)
        )


class Shot(msgspec.Struct, frozen=True, eq=False):
    """One recorded state of a workspace; belongs to the shelf that took it, which frees its copies when it is dropped."""

    entries: Mapping[bytes, Kept]  # by path; the workspace itself is b""
    whole: bool  # False: there was more than is looked at, so what is unknown is not taken for new
    left_out: tuple[str, ...]  # paths of which the content is not kept; at most `MAX_NAMED`
    left_out_count: int
    why: str  # reasons with numbers, for people; empty if nothing was left out

    def copies(self) -> set[Copy]:
        return {kept.copy for kept in self.entries.values() if kept.copy}


class Restored(msgspec.Struct, frozen=True):
    """What restoring did. Paths are relative, by path; a folder that was removed stands for everything in it."""

    changed: tuple[str, ...]  # made, changed or removed; at most `MAX_NAMED`
    changed_count: int
    failed: tuple[tuple[str, str], ...]  # path and why it is not as it was; at most `MAX_NAMED`
    failed_count: int


class Look(msgspec.Struct, frozen=True):
    entries: dict[bytes, Seen]
    whole: bool
    closed: dict[bytes, int]  # folders whose mode was widened to look into them, with the mode they had
    blind: dict[bytes, str]  # folders that were not looked into, and why


def look(workspace: int, max_entries: int, needed_mode: int) -> Look:
    """Walk a workspace, as its owner. Folders of which the owner denied himself `needed_mode` have it until `shut`.

    Raises OSError if the workspace itself cannot be opened.
    """
    top = os.fstat(workspace)
    found = {b"": seen_of(top)}
    closed: dict[bytes, int] = {}
    blind: dict[bytes, str] = {}
    names_bytes = 0
    if top.st_mode & needed_mode != needed_mode:
        closed[b""] = stat.S_IMODE(top.st_mode)
        os.chmod(by_fd(workspace), closed[b""] | needed_mode)
    root = open_beneath(workspace, b".", os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.closing(walk(root)) as entries:
        for folder, path, status in entries:
            target = b""
            if stat.S_ISLNK(status.st_mode):
                with contextlib.suppress(OSError):  # gone or something else meanwhile
                    target = os.readlink(path.rpartition(b"/")[2], dir_fd=folder)
            names_bytes += len(path) + len(target)
            if len(found) > max_entries or names_bytes > MAX_NAMES_BYTES:
                return Look(found, whole=False, closed=closed, blind=blind)
            found[path] = seen_of(status, target)
            if not stat.S_ISDIR(status.st_mode):
                continue
            if path.count(b"/") >= MAX_DEPTH:
                blind[path] = TOO_DEEP
            elif status.st_mode & needed_mode != needed_mode:
                try:
                    with held(folder, path.rpartition(b"/")[2], os.O_DIRECTORY) as hold:
                        mode = stat.S_IMODE(os.fstat(hold).st_mode)
                        os.chmod(by_fd(hold), mode | needed_mode)
                        closed[path] = mode
                except OSError as err:  # it is somebody else's, or gone
                    blind[path] = f"cannot be opened: {err.strerror}"
    return Look(found, whole=True, closed=closed, blind=blind)


def shut(workspace: int, closed: Mapping[bytes, int]) -> None:
    """Give folders the modes that they had, the deepest first."""
    for path in sorted(closed, reverse=True):
        with contextlib.suppress(OSError), held(workspace, path or b".", os.O_DIRECTORY) as hold:
            os.chmod(by_fd(hold), closed[path])


def first_names(paths: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(printable(path) for path in sorted(paths)[:MAX_NAMED])


def is_settled(ctime_ns: int, looked_ns: int) -> bool:
    """Whether a change after the look must have given the file another stamp. `looked_ns` is of `CLOCK`, read before the look.

    The kernel stamps with a clock that stands still for up to 10 ms: a file that was changed, copied and changed again within
    one tick would look unchanged (git calls such an entry racily clean). The ctime cannot be forged, unlike the mtime. A file
    system that keeps whole seconds shows itself by a ctime of whole seconds.
    """
    grain_ns = 0 if ctime_ns % 1_000_000_000 else 1_000_000_000
    return ctime_ns + grain_ns < looked_ns


def seen_of(status: os.stat_result, target: bytes = b"") -> Seen:
    return Seen(
        status.st_mode,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_nlink,
        min(status.st_size, status.st_blocks * 512),
        target,
    )
