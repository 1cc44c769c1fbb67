"""Copies of a session's workspace, one per checkpoint: take one, make the workspace equal to one, start a branch from one.

Theory of operation. A shot is a list of everything in the workspace (`shots`) in which each regular file points to a copy of its
content (`copies`). Files that did not change since the shot before share its copy, so a shot costs one walk and what changed. A
copy knows the stamp (inode, size, mtime, ctime) of the workspace's file that has its content. Three cases:

- the stamp is the same, and old enough that any later change would have moved it: the content is the same;
- inode, size and mtime are the same, but the stamp is too young, or only the ctime moved (chmod, rename, link), or the caller says
  that the stamp cannot be relied upon: the file is compared with the copy;
- anything else: the file is copied.

What stamps cannot show are stores through a shared mapping. On a tmpfs they move the mtime at most once, when a page that was not
mapped yet is first written to. `always` names files that a process has or had mapped like that; they are compared each time.

The program is expected to stand still meanwhile. If it does not, its own files may come out torn, and no more than that: nothing
is opened outside of the workspace, through a link, or that is not a regular file or a folder, and time and bytes are bounded.
"""

import contextlib
import errno
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from onetrip.beneath import Owner, as_owner, held, open_held
from onetrip.copies import Copies, Copy, NotCopied
from onetrip.rewind import Rewind
from onetrip.shots import CLOCK, Entries, Kept, Look, Restored, Seen, Shot, first_names, is_settled, look, seen_of, shut

LOOK_MODE: Final = 0o500  # what looking into a folder needs of its owner's bits
MAX_REASONS: Final = 5
NO_CONTENT: Final = "is a pipe, socket or device, which is not kept"

__all__ = ["Restored", "Shelf", "Shot"]


class Shelf:
    """Copies of one session's workspace, one per checkpoint; unchanged files share one copy.

    Every method blocks for as long as the disk and the copying take, and may be called from any thread; one runs at a time.
    `workspace_fd` is a descriptor of the workspace and stays the caller's. `owner` is the guest's uid and gid where the host is
    root and the guest is not, so that the kernel checks every access as if the program had made it; else None.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_files: int = 20_000) -> None:
        """`folder` is a private one on a file system with room for `max_bytes`, which bound all copies together; in it lies an
        anonymous file, so nothing is left when the process dies. `max_files` bounds files, folders and links of each shot.
        """
        self._copies = Copies(folder, max_bytes)
        self._max_files = max_files
        self._shots: set[Shot] = set()
        self._lock = threading.Lock()
        self._is_retired = False

    @property
    def used_bytes(self) -> int:
        """What all copies take, in whole blocks of 4096 bytes."""
        return self._copies.used_bytes

    def take(self, workspace_fd: int, *, owner: Owner | None, before: Shot | None = None, always: Collection[str] = ()) -> Shot:
        """Record the workspace as it is now. `before` is the latest shot of it that is known; `always` as in `restore`.

        Never raises for what is in the workspace or for a full disk: what cannot be kept is left out, the largest files first,
        and named.
        """
        with self._lock:
            try:
                with as_owner(owner):
                    found = look(workspace_fd, self._max_files, LOOK_MODE)
            except OSError as err:
                shot = Shot(Entries(self._copies), False, (".",), 1, f"the workspace cannot be opened: {err.strerror}")
                self._shots.add(shot)
                return shot
            try:
                return self._record(workspace_fd, owner, found, before, _names(always))
            finally:
                with as_owner(owner):
                    shut(workspace_fd, found.closed)

    def unchanged(self, workspace_fd: int, shot: Shot, *, owner: Owner | None, always: Collection[str] | None = ()) -> bool:
        """Whether restoring the shot would do nothing. One walk, and comparing what stamps do not decide; see `restore` for `always`."""
        names = None if always is None else _names(always)
        with self._lock, as_owner(owner):
            try:
                found = look(workspace_fd, self._max_files, LOOK_MODE)
            except OSError:
                return False
            try:
                return (
                    found.whole
                    and shot.whole
                    and found.entries.keys() == shot.entries.keys()
                    and all(
                        self._is_as_kept(workspace_fd, path, seen, shot.entries[path], names is None or path in names)
                        for path, seen in found.entries.items()
                    )
                )
            finally:
                shot.entries.forget_index()
                shut(workspace_fd, found.closed)

    def restore(self, workspace_fd: int, shot: Shot, *, owner: Owner | None, always: Collection[str] | None = ()) -> Restored:
        """Make the workspace equal to the shot; never raises for what is in it.

        A file that is still the same inode is rewritten in place, so that a process which holds it open sees the old content;
        it is found also where it was renamed. `always` names files whose content is compared whatever their stamps say, as
        they may have been changed through a mapping; None compares every file, for when nobody knows (a process that was killed).
        Raises ValueError for a shot that is not, or no longer, on this shelf.
        """
        names = None if always is None else _names(always)
        return self._rewind(workspace_fd, shot, owner, Rewind(self._copies, shot, self._max_files, always=names))

    def copy_into(self, workspace_fd: int, shot: Shot, *, owner: Owner | None) -> Restored:
        """Fill the workspace of another session, a branch. What was in it is removed. Raises ValueError as `restore`."""
        return self._rewind(workspace_fd, shot, owner, Rewind(self._copies, shot, self._max_files, same_workspace=False))

    def again(self, shot: Shot) -> Shot:
        """The same shot once more, to be dropped by itself. Raises ValueError for one that is not, or no longer, on this shelf."""
        with self._lock:
            if shot not in self._shots:
                raise ValueError("this shot is not on the shelf")
            twin = msgspec.structs.replace(shot)
            for copy in twin.copies():
                copy.users += 1
            self._shots.add(twin)
            return twin

    def drop(self, shot: Shot) -> None:
        """Free the copies that no other shot shares. Dropping again, or after `close`, does no harm."""
        with self._lock:
            if shot not in self._shots:
                return
            self._shots.remove(shot)
            for copy in shot.copies():
                copy.users -= 1
                if not copy.users:
                    self._copies.free(copy)
            if self._is_retired and not self._shots:
                self._copies.close()

    def retire(self) -> None:
        """Close as soon as the last shot is dropped: branches may still need some."""
        with self._lock:
            self._is_retired = True
            if not self._shots:
                self._copies.close()

    def close(self) -> None:
        """Free everything; the shots are gone. The shelf can be used again."""
        with self._lock:
            self._shots.clear()
            self._copies.close()

    def _rewind(self, workspace_fd: int, shot: Shot, owner: Owner | None, rewind: Rewind) -> Restored:
        with self._lock:
            if shot not in self._shots:
                raise ValueError("this shot is not on the shelf")
            try:
                with as_owner(owner):
                    return rewind.run(workspace_fd)
            finally:
                shot.entries.forget_index()

    def _record(self, workspace: int, owner: Owner | None, found: Look, before: Shot | None, always: frozenset[bytes]) -> Shot:
        old = before.entries if before is not None and before in self._shots else Entries(self._copies)
        entries = self._entries(workspace, owner, found, old, always)
        for listing in (found.entries, old):
            listing.forget_index()
        shot = _shot(entries, found)
        for copy in shot.copies():
            copy.users += 1
        self._shots.add(shot)
        return shot

    def _entries(self, workspace: int, owner: Owner | None, found: Look, old: Entries, always: frozenset[bytes]) -> Entries:
        entries = Entries(self._copies)
        by_inode: dict[int, Copy] = {}  # of files with more names than one
        open_cases: list[bytes] = []
        for path, row in found.entries.index().items():
            if path not in always and entries.take_over(path, row, found.entries, old):
                continue
            seen, known = found.entries.seen(row), old.find(path)
            if not stat.S_ISREG(seen.mode):
                why = found.blind.get(path) or ("" if stat.S_IFMT(seen.mode) in (stat.S_IFDIR, stat.S_IFLNK) else NO_CONTENT)
                entries.add(path, Kept(seen, why=why))
            elif known and known.copy and known.is_surely(seen) and path not in always:
                entries.add(path, known)
                if seen.links > 1:
                    by_inode[seen.inode] = known.copy
            else:
                open_cases.append(path)
        problem = ""
        if open_cases:
            try:
                self._copies.prepare()
            except OSError as err:
                problem = _disk_words(err)
        open_cases.sort()
        open_cases.sort(key=lambda path: found.entries[path].data_bytes)  # so what does not fit is the largest
        with as_owner(owner):
            for path in open_cases:
                seen = found.entries[path]
                kept = Kept(seen, why=problem) if problem else self._keep(workspace, path, seen, old.find(path), by_inode)
                if kept is not None:
                    entries.add(path, kept)
        return entries

    def _keep(self, workspace: int, path: bytes, seen: Seen, known: Kept | None, by_inode: dict[int, Copy]) -> Kept | None:
        """The file with a copy of its content, or why it has none; None if it is gone."""
        try:
            with held(workspace, path) as hold:
                if not stat.S_ISREG(os.fstat(hold).st_mode):
                    return Kept(seen, why="was replaced meanwhile")
                fd = open_held(hold, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as err:
            busy = err.errno == errno.EWOULDBLOCK
            return Kept(seen, why="is leased by a process" if busy else f"cannot be opened: {err.strerror}")
        try:
            looked_ns = time.clock_gettime_ns(CLOCK)
            status = os.fstat(fd)
            stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            copy = by_inode.get(status.st_ino)  # another name of the same file
            if copy is None and known and known.copy and known.copy.stamp[:3] == stamp[:3]:
                if self._copies.equals(known.copy, fd, status.st_size):
                    copy = known.copy
                else:
                    known.copy.settled = False  # its stamp is that of another content
            if copy is None:
                copy = self._copies.add(fd, status.st_size)
            copy.stamp, copy.settled = stamp, is_settled(status.st_ctime_ns, looked_ns)
            if status.st_nlink > 1:
                by_inode[status.st_ino] = copy
            return Kept(seen_of(status), copy)
        except NotCopied as err:
            return Kept(seen, why=str(err))
        finally:
            os.close(fd)

    def _is_as_kept(self, workspace: int, path: bytes, seen: Seen, kept: Kept, distrusted: bool) -> bool:
        then, copy = kept.seen, kept.copy
        if (seen.mode, seen.mtime_ns, seen.target) != (then.mode, then.mtime_ns, then.target):
            return False
        if not stat.S_ISREG(seen.mode):
            return True
        if copy is None:
            return seen.stamp == then.stamp
        if kept.is_surely(seen) and not distrusted:
            return True
        if seen.stamp[:3] != copy.stamp[:3]:
            return False
        with contextlib.suppress(OSError), held(workspace, path) as hold:
            fd = open_held(hold, os.O_RDONLY) if stat.S_ISREG(os.fstat(hold).st_mode) else -1
            if fd >= 0:
                try:
                    return self._copies.equals(copy, fd, seen.size)
                finally:
                    os.close(fd)
        return False


def _shot(entries: Entries, found: Look) -> Shot:
    left_out = entries.reasons()
    reasons = [f"{count} × {why}" for why, count in Counter(left_out.values()).most_common(MAX_REASONS)]
    if not found.whole:
        reasons.append(f"more than {len(found.entries) - 1} files and folders, or too long names; the rest is not recorded")
    return Shot(
        entries=entries,
        whole=found.whole,
        left_out=first_names(left_out),
        left_out_count=len(left_out),
        why="; ".join(reasons),
    )


def _names(paths: Collection[str]) -> frozenset[bytes]:
    return frozenset(os.fsencode(path) for path in paths)


def _disk_words(err: OSError) -> str:
    full = err.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk for copies is full" if full else f"the folder for copies cannot be used: {err.strerror}"
