"""A session's files, seen from the host: every path opened beneath the workspace, never through a link, only regular files.

The guest owns the directory and may change anything in it at any moment, so nothing is decided by looking at a path: a file is
opened first (openat2(2), RESOLVE_BENEATH) and judged by its descriptor. Where we are root we act with the guest's own file-system
uid, so that the kernel checks each access as if the program had made it.
"""

import contextlib
import errno
import os
import secrets
import stat
import struct
from collections.abc import Callable, Generator, Sequence
from typing import Final, Self, cast

import msgspec

from .beneath import NO_SYMLINKS, Owner, as_owner, open_beneath, printable, walk
from .errors import BadRequest, NotFound, PlatformError, WorkspaceFull
from .model import FileChange, FileInfo
from .rows import Rows

MAX_PATH_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 255  # NAME_MAX
MAX_ENTRIES: Final = 10_000  # of a listing; a sandbox can hold more inodes than anybody wants to read
MAX_READ_BYTES: Final = 512 << 20
_STAMP: Final = struct.Struct("=QqqQ")  # size, mtime, ctime, inode


class Snapshot:
    """Regular files with what tells a change of each, in two blocks of memory; `rows` tells why."""

    __slots__ = ("_paths", "_stamps")

    def __init__(self) -> None:
        self._paths = bytearray()  # each ended by a zero byte, which no path has
        self._stamps = Rows(_STAMP)

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, path: bytes, status: os.stat_result) -> None:
        self._paths += path
        self._paths.append(0)
        self._stamps.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))

    def index(self) -> dict[bytes, int]:
        """Raw path → row, for `stamp`. Made anew, and not to be kept."""
        return {path: row for row, path in enumerate(bytes(self._paths).split(b"\0")[:-1])}

    def stamp(self, row: int) -> tuple[int, int, int, int]:
        """What is another after each change; the first is the size."""
        return cast("tuple[int, int, int, int]", self._stamps[row])


class Workspace:
    """The files below one directory descriptor, which stays the caller's. Every method may block on the disk, briefly."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        owner = os.fstat(fd)
        self.owner = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 and owner.st_uid else None

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, and the folders above it. The new content appears whole or not at all."""
        with self.upload(path) as upload:
            upload.write(data)
            upload.finish()

    def upload(self, path: str) -> "Upload":
        """Begin to create or replace a file piece by piece. Raises BadRequest for a path that leaves the workspace, WorkspaceFull."""
        parts = _checked(path)
        with as_owner(self.owner), _errors_for(path):
            folder = self._make_folders(parts[:-1])
            try:
                temporary = f".upload-{secrets.token_hex(8)}"
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
            except BaseException:
                os.close(folder)
                raise
        return Upload(self.owner, path, folder, temporary, parts[-1], fd)

    def read(self, path: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The content of a regular file. Raises NotFound, or BadRequest for anything else and for more than `max_bytes`."""
        with self.open(path) as opened:
            if opened.size > max_bytes:
                raise BadRequest(f"{path!r} has {opened.size} bytes, more than {max_bytes}", field="path")
            chunks: list[bytes] = []
            left = max_bytes
            while left > 0 and (chunk := os.read(opened.fd, min(left, 1 << 20))):
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)

    def open(self, path: str) -> "Opened":
        """A regular file to read from. Raises NotFound, or BadRequest for anything else."""
        parts = _checked(path)
        with as_owner(self.owner), _errors_for(path):
            # A FIFO or a device is not even opened: that alone can do something. O_PATH only takes hold of it.
            held = self._open("/".join(parts), os.O_PATH)
            try:
                status = os.fstat(held)
                if not stat.S_ISREG(status.st_mode):
                    raise BadRequest(f"{path!r} is not a regular file", field="path")
                fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(held)
        return Opened(fd, status.st_size, status.st_mtime_ns, status.st_ino)

    def list(self) -> list[FileInfo]:
        """Regular files, by path; at most `MAX_ENTRIES`."""
        found: dict[bytes, FileInfo] = {}

        def add(path: bytes, status: os.stat_result) -> None:
            found[path] = FileInfo(printable(path), status.st_size, status.st_mtime_ns)

        self._visit(add)
        return [found[path] for path in sorted(found)]

    def delete(self, path: str) -> None:
        """Remove one file or link (not what it points to), or an empty folder."""
        parts = _checked(path)
        with as_owner(self.owner), _errors_for(path):
            folder = self._open("/".join(parts[:-1]) or ".", os.O_PATH | os.O_DIRECTORY)
            try:
                try:
                    os.unlink(parts[-1], dir_fd=folder)
                except IsADirectoryError:
                    os.rmdir(parts[-1], dir_fd=folder)
            finally:
                os.close(folder)

    def snapshot(self) -> Snapshot:
        """Every regular file with what tells a change; at most `MAX_ENTRIES`."""
        found = Snapshot()
        self._visit(found.add)
        return found

    def _visit(self, visit: Callable[[bytes, os.stat_result], None]) -> None:
        """Call for every regular file, found by a walk that follows no link, until there were `MAX_ENTRIES`."""
        left = MAX_ENTRIES
        with as_owner(self.owner):
            try:
                root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            except PermissionError:  # the program took the workspace from itself, and from us
                os.fchmod(self.fd, 0o755)
                try:
                    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
                except PermissionError:  # and does it again and again: then there is nothing to see
                    return
            with contextlib.closing(walk(root)) as entries:
                for _, path, status in entries:
                    if stat.S_ISREG(status.st_mode):
                        visit(path, status)
                        left -= 1
                        if not left:
                            break

    def top_moment(self) -> tuple[int, int]:
        """When the top folder last changed. A workspace without files and folders cannot get any without that."""
        status = os.fstat(self.fd)
        return status.st_mtime_ns, status.st_ctime_ns

    def _make_folders(self, parts: Sequence[str]) -> int:
        at = self._open(".", os.O_PATH | os.O_DIRECTORY)
        for number in range(1, len(parts) + 1):
            below = "/".join(parts[:number])
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[number - 1], 0o755, dir_fd=at)
            finally:
                os.close(at)
            at = self._open(below, os.O_PATH | os.O_DIRECTORY, NO_SYMLINKS)
        return at

    def _open(self, path: str, flags: int, resolve: int = 0) -> int:
        return open_beneath(self.fd, path.encode(), flags, resolve)


class Opened(msgspec.Struct, frozen=True):
    """A regular file that was opened, as it was then: a program may change it while it is read. Close it, or use it in a `with`."""

    fd: int
    size: int
    modified_ns: int
    inode: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Upload:
    """A file on its way into a workspace. `finish` makes it appear; leaving the `with` before that leaves nothing."""

    def __init__(self, owner: Owner | None, path: str, folder: int, temporary: str, name: str, fd: int) -> None:
        self._owner, self._path, self._folder = owner, path, folder
        self._temporary, self._name, self._fd = temporary, name, fd
        self._finished = False
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        try:
            if not self._finished:
                with as_owner(self._owner), contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._folder)
        finally:
            os.close(self._folder)

    def write(self, data: bytes) -> None:
        """Raises WorkspaceFull."""
        with as_owner(self._owner), _errors_for(self._path):
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
        self.size += len(data)

    def finish(self) -> None:
        """Put it in its place. Replaces a link, pipe or device of that name instead of following it; raises BadRequest on a folder."""
        with as_owner(self._owner), _errors_for(self._path):
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._finished = True


class Changes:
    """What changes in a workspace from one look to the next."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._snapshot = Snapshot()
        self._top_moment: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        """The workspace is empty."""
        self._top_moment = self._workspace.top_moment()

    def note(self) -> None:
        """What it is like now is no change."""
        self._top_moment = self._workspace.top_moment()
        self._snapshot = self._workspace.snapshot()

    def take(self) -> tuple[FileChange, ...]:
        """What changed since the last look."""
        top_moment = self._workspace.top_moment()
        if not self._snapshot and top_moment == self._top_moment:
            return ()  # an empty file system does not get a file without its top folder changing
        now = self._workspace.snapshot()
        changes = diff(self._snapshot, now)
        self._snapshot, self._top_moment = now, top_moment
        return changes

    def forget(self) -> None:
        """Nobody will look again."""
        self._snapshot = Snapshot()


def diff(before: Snapshot, after: Snapshot) -> tuple[FileChange, ...]:
    """What was created, modified and deleted between two snapshots, by path."""
    old, new = before.index(), after.index()
    changes: list[FileChange] = []
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if now is None:
            changes.append(FileChange(printable(path), 0, "deleted"))
        elif was is None:
            changes.append(FileChange(printable(path), after.stamp(now)[0], "created"))
        elif before.stamp(was) != after.stamp(now):
            changes.append(FileChange(printable(path), after.stamp(now)[0], "modified"))
    return tuple(changes)


def _checked(path: str) -> list[str]:
    """The parts of a relative path. Raises BadRequest for what cannot be, or would leave the workspace."""
    reason = None
    parts: list[str] = []
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the path {path!r} is not text", field="path") from None
    if not path:
        reason = "is empty"
    elif len(raw) > MAX_PATH_BYTES:
        reason = f"has {len(raw)} bytes, more than {MAX_PATH_BYTES}"
    elif path.startswith("/"):
        reason = "is absolute; names of files are relative to the workspace"
    elif any(ord(char) < 32 or ord(char) == 127 for char in path):
        reason = "has control characters"
    else:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            reason = "leaves the workspace"
        elif not parts or path.endswith("/"):
            reason = "names no file"
        elif any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
            reason = f"has a part of more than {MAX_NAME_BYTES} bytes"
    if reason:
        raise BadRequest(f"the path {path[:100]!r} {reason}", field="path")
    return parts


@contextlib.contextmanager
def _errors_for(path: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as err:
        shown = repr(path[:100])
        match err.errno:
            case errno.ENOENT:
                raise NotFound(f"there is no file {shown} in the workspace", field="path") from err
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                raise WorkspaceFull(f"no space for {shown} in the workspace") from err
            case errno.EXDEV | errno.ELOOP:
                raise BadRequest(f"{shown} leads out of the workspace", field="path") from err
            case errno.EISDIR | errno.ENOTDIR | errno.ENOTEMPTY | errno.EEXIST:
                raise BadRequest(f"{shown} is, or goes through, a folder or a file of the other kind", field="path") from err
            case errno.EACCES | errno.EPERM | errno.ENXIO | errno.ENODEV:
                raise BadRequest(f"{shown} may not be opened: {err.strerror}", field="path") from err
            case _:
                raise PlatformError(f"{shown}: {err.strerror}") from err
