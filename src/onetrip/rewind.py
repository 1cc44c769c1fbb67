"""Makes a workspace equal to a shot: what was made since goes, what is gone comes back, what changed is as it was.

The order is that of `Rewind.run`. What is in the way is removed first and not replaced by a rename: a workspace is bounded, and may
have no room for both. Of what is written, files that get smaller come first, for the same reason.

Each step takes hold of what it changes, looks at what it holds, and may fail by itself; then it is named and the rest goes on.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator
from typing import Final

from onetrip.beneath import NO_SYMLINKS, by_fd, held, open_beneath, open_held, printable
from onetrip.copies import Copies, Copy
from onetrip.removal import empty_folder
from onetrip.shots import (
    CLOCK,
    MAX_NAMED,
    Kept,
    Listing,
    Restored,
    Seen,
    Shot,
    first_names,
    is_settled,
    look,
    seen_of,
    shut,
)

CHANGE_MODE: Final = 0o700  # what changing a folder needs of its owner's bits
MAX_LOOKS: Final = 4  # each finds as many new files as a shot may have; a program that makes more keeps some
MAX_REMOVED: Final = 200_000  # entries of one folder that was made since; below a bounded number of inodes it is never reached
SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class Rewind:
    """One run. `same_workspace` is False for a branch: then stamps and inodes of the shot mean nothing."""

    def __init__(
        self,
        copies: Copies,
        shot: Shot,
        max_files: int,
        *,
        always: frozenset[bytes] | None = frozenset(),
        same_workspace: bool = True,
    ) -> None:
        self._copies = copies
        self._shot = shot
        self._max_files = max_files
        self._always = always
        self._same = same_workspace
        self._here = Listing()  # what is in the workspace and may stay
        self._closed: dict[bytes, int] = {}
        self._strays: dict[int, bytes] = {}  # inode → the name in the workspace itself under which a renamed file waits
        self._asides: set[bytes] = set()  # all such names
        self._homes: dict[Copy, bytes] = {}  # the first path that has this content again
        self._parent: tuple[bytes, int] | None = None  # the last folder that was opened
        self._changed: set[bytes] = set()
        self._failed: dict[bytes, str] = {}

    def run(self, workspace: int) -> Restored:
        """To be called with the guest's rights."""
        self._workspace = workspace
        try:
            self._clear()
            folders = [path for path, kept in self._shot.entries.each() if stat.S_ISDIR(kept.seen.mode)]
            for path in sorted(folders):
                if path not in self._here:
                    self._attempt(path, self._make_folder)
            for path in sorted(self._shot.entries.keys() - set(folders), key=self._growth):
                self._attempt(path, self._bring_back)
            for name in self._strays.values():
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=workspace)
            self._forget_parent()
            for path in sorted(folders, reverse=True):
                self._attempt(path, self._finish_folder)
            shut(workspace, {path: mode for path, mode in self._closed.items() if path not in self._shot.entries})
        except OSError as err:
            self._failed[b"."] = f"the workspace cannot be opened: {err.strerror}"
        finally:
            self._forget_parent()
        failed = sorted(self._failed.items())[:MAX_NAMED]
        return Restored(
            changed=first_names(self._changed),
            changed_count=len(self._changed),
            failed=tuple((printable(path), why) for path, why in failed),
            failed_count=len(self._failed),
        )

    # ------------------------------------------------------------------------------------------------ what has to go

    def _clear(self) -> None:
        for _ in range(MAX_LOOKS):
            found = look(self._workspace, self._max_files, CHANGE_MODE)
            self._failed.clear()
            self._closed = found.closed | self._closed
            self._here = found.entries
            self._forget_parent()
            self._set_strays_aside()
            if not found.whole:
                self._look_for_the_rest()
            gone: set[bytes] = set()
            for path in sorted(path for path, seen in self._here.each() if self._is_unwanted(path, seen)):
                if path.rpartition(b"/")[0] not in gone:
                    self._attempt(path, self._remove)
                if path not in self._failed:
                    gone.add(path)
            for path in gone:
                del self._here[path]
            if found.whole:
                if not self._shot.whole:
                    self._failed[b"."] = "the shot does not know all of it, so nothing was taken for new"
                return
        self._failed[b"."] = f"more than {self._max_files} files and folders; what was made since may be among the rest"

    def _look_for_the_rest(self) -> None:
        for path in self._shot.entries.keys() - self._here.keys():
            with contextlib.suppress(OSError), held(self._workspace, path) as hold:
                status = os.fstat(hold)
                target = os.readlink(b"", dir_fd=hold) if stat.S_ISLNK(status.st_mode) else b""
                self._here[path] = seen_of(status, target)

    def _is_unwanted(self, path: bytes, seen: Seen) -> bool:
        kept = self._shot.entries.find(path)
        if kept is None:
            return self._shot.whole and path not in self._asides
        if stat.S_IFMT(seen.mode) != stat.S_IFMT(kept.seen.mode):
            return True
        if stat.S_ISREG(seen.mode):
            # Another inode may be another of our files that was renamed: writing into it would change that one.
            return not self._same or (kept.copy is not None and seen.inode != kept.copy.stamp[0])
        return stat.S_ISLNK(seen.mode) and seen.target != kept.seen.target

    def _set_strays_aside(self) -> None:
        """Keep a file of the shot that has another name, for processes that hold it open: as log files are when they rotate."""
        if not self._same:
            return
        wanted = {kept.copy.stamp[0] for _, kept in self._shot.entries.each() if kept.copy} - self._strays.keys()
        unwanted: dict[bytes, int] = {}
        placed: set[int] = set()
        for path, seen in self._here.each():
            if stat.S_ISREG(seen.mode) and seen.inode in wanted:
                if self._is_unwanted(path, seen):
                    unwanted[path] = seen.inode
                else:
                    placed.add(seen.inode)
        for path, inode in unwanted.items():
            if inode not in placed:
                placed.add(inode)
                aside = f".restored-{secrets.token_hex(8)}".encode()
                with contextlib.suppress(OSError):  # then it comes back as another inode
                    os.rename(path.rpartition(b"/")[2], aside, src_dir_fd=self._folder_of(path), dst_dir_fd=self._workspace)
                    self._strays[inode] = aside
                    self._asides.add(aside)
                    self._changed.add(path)
                    del self._here[path]

    def _remove(self, path: bytes) -> None:
        folder, name = self._folder_of(path), path.rpartition(b"/")[2]
        if stat.S_ISDIR(self._here[path].mode):
            with held(folder, name, os.O_DIRECTORY) as hold:
                os.chmod(by_fd(hold), CHANGE_MODE)
                fd = os.open(by_fd(hold), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    empty_folder(fd, max_entries=MAX_REMOVED)
                finally:
                    os.close(fd)
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
        self._changed.add(path)

    # ------------------------------------------------------------------------------------------------ what has to come back

    def _growth(self, path: bytes) -> tuple[int, bytes]:
        kept, here = self._shot.entries[path], self._here.find(path)
        return (kept.copy.room_bytes if kept.copy else 0) - (here.data_bytes if here else 0), path

    def _make_folder(self, path: bytes) -> None:
        os.mkdir(path.rpartition(b"/")[2], CHANGE_MODE, dir_fd=self._folder_of(path))
        self._changed.add(path)
        if why := self._shot.entries[path].why:
            self._failed[path] = why

    def _bring_back(self, path: bytes) -> None:
        kept, here = self._shot.entries[path], self._here.find(path)
        if stat.S_ISLNK(kept.seen.mode):
            self._bring_back_link(path, kept.seen, here)
        elif kept.copy is None:
            if here is None or (stat.S_ISREG(here.mode) and here.stamp != kept.seen.stamp):
                self._failed[path] = kept.why
        elif kept.copy in self._homes:
            if here is None:
                self._give_name(path, self._homes[kept.copy])
        else:
            distrusted = self._always is None or path in self._always
            if here is None or distrusted or not kept.is_surely(here):
                self._bring_back_file(path, kept, kept.copy)
            self._homes[kept.copy] = path

    def _bring_back_link(self, path: bytes, then: Seen, here: Seen | None) -> None:
        if here is not None and here.mtime_ns == then.mtime_ns:
            return
        folder, name = self._folder_of(path), path.rpartition(b"/")[2]
        if here is None:
            os.symlink(then.target, name, dir_fd=folder)
        os.utime(name, ns=(then.mtime_ns, then.mtime_ns), dir_fd=folder, follow_symlinks=False)
        self._changed.add(path)

    def _give_name(self, path: bytes, home: bytes) -> None:
        with held(self._workspace, home) as hold:
            # Through the descriptor: the name could be something else meanwhile.
            os.link(by_fd(hold), path.rpartition(b"/")[2], dst_dir_fd=self._folder_of(path), follow_symlinks=True)
        self._changed.add(path)

    def _bring_back_file(self, path: bytes, kept: Kept, copy: Copy) -> None:
        looked_ns = time.clock_gettime_ns(CLOCK)
        with self._file(path, copy) as (fd, is_new):
            status = os.fstat(fd)
            wrote = is_new or not self._copies.equals(copy, fd, status.st_size)
            if wrote:
                try:
                    self._copies.write(copy, fd)
                except OSError:
                    if is_new:  # better none than a part
                        os.unlink(path.rpartition(b"/")[2], dir_fd=self._folder_of(path))
                    raise
            status = os.fstat(fd)
            if stat.S_IMODE(status.st_mode) != stat.S_IMODE(kept.seen.mode):
                # Never make a program set-uid: on the host's disk (level reduced) others could run it.
                os.fchmod(fd, stat.S_IMODE(kept.seen.mode) & ~SET_ID)
                if kept.seen.mode & SET_ID:
                    self._failed[path] = "its set-uid and set-gid bits are not given back"
                wrote = True
            if wrote or status.st_mtime_ns != kept.seen.mtime_ns:
                os.utime(fd, ns=(status.st_atime_ns, kept.seen.mtime_ns))
                self._changed.add(path)
            if self._same:
                status = os.fstat(fd)
                copy.stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
                copy.settled = is_settled(status.st_ctime_ns, looked_ns)

    @contextlib.contextmanager
    def _file(self, path: bytes, copy: Copy) -> Generator[tuple[int, bool], None, None]:
        """The regular file of this path, open for reading and writing, and whether it is new: the same inode if there still is one."""
        folder, name = self._folder_of(path), path.rpartition(b"/")[2]
        stray = self._strays.pop(copy.stamp[0], None) if path not in self._here else None
        if stray is not None:
            os.rename(stray, name, src_dir_fd=self._workspace, dst_dir_fd=folder)
            self._changed.add(path)
        fd = -1
        if stray is not None or path in self._here:
            try:
                with held(folder, name) as hold:
                    status = os.fstat(hold)
                    if not (self._same and stat.S_ISREG(status.st_mode) and status.st_ino == copy.stamp[0]):
                        raise OSError(errno.EBUSY, "was replaced meanwhile")
                    fd = open_held(hold, os.O_RDWR)
            except OSError as err:
                if err.errno not in (errno.ETXTBSY, errno.EWOULDBLOCK):  # a process runs it, or has a lease on it
                    raise
                os.unlink(name, dir_fd=folder)
        is_new = fd < 0
        if is_new:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            yield fd, is_new
        finally:
            os.close(fd)

    def _finish_folder(self, path: bytes) -> None:
        then = self._shot.entries[path].seen
        with held(self._workspace, path or b".", os.O_DIRECTORY) as hold:
            status = os.fstat(hold)
            mode = stat.S_IMODE(then.mode)
            if status.st_mtime_ns != then.mtime_ns:
                os.utime(by_fd(hold), ns=(status.st_atime_ns, then.mtime_ns))
                self._changed.add(path)
            if stat.S_IMODE(status.st_mode) != mode:
                os.chmod(by_fd(hold), mode)
            if self._closed.get(path, stat.S_IMODE(status.st_mode)) != mode:
                self._changed.add(path)

    # ------------------------------------------------------------------------------------------------ how

    def _attempt(self, path: bytes, step: Callable[[bytes], None]) -> None:
        try:
            step(path)
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            self._failed[path] = "no space in the workspace" if full else f"{err.strerror}"

    def _folder_of(self, path: bytes) -> int:
        """The folder that something lies in; open until the next is asked for, as neighbours follow each other."""
        folder = path.rpartition(b"/")[0]
        if self._parent is None or self._parent[0] != folder:
            self._forget_parent()
            fd = open_beneath(self._workspace, folder or b".", os.O_PATH | os.O_DIRECTORY, NO_SYMLINKS)
            self._parent = folder, fd
        return self._parent[1]

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None
