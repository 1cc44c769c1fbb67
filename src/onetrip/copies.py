"""Copies of files of a program's, kept in one anonymous file of the host's: put in, compared, written back, freed.

One anonymous file holds all copies of a shelf: a descriptor per copy would be up to ten thousand per session, and making a file for
each costs more than copying it. A copy lies there in parts, each beginning at a block of its own, so that a hole can be punched where
it was (fallocate(2)) and its space is free again. Nothing has a name, so nothing is left when the process dies.

What is known of the copies lies in columns of numbers, and a `Copy` is made when somebody looks at one: `rows` tells why.

The file that is copied belongs to a program that may change it meanwhile: how much is read is settled before, by its size and its
holes, and reading past its end just ends. What comes out may be torn then, but only the program's own file is.
"""

import ctypes
import errno
import os
import struct
import tempfile
from array import array
from pathlib import Path
from typing import Final, cast

from onetrip.rows import Rows

BLOCK_BYTES: Final = 4096  # a page, and a block of every usual file system: what can be freed by itself
SMALL_BYTES: Final = 64 << 10  # up to here one read and one write cost less than looking for holes and sendfile(2)
MAX_PARTS: Final = 4096  # of one file; a file of more pieces than this is not copied, as each costs four system calls
CHUNK_BYTES: Final = 256 << 10  # for comparing: both chunks stay in the cache of the processor

_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
_libc: Final = ctypes.CDLL(None, use_errno=True)

Stamp = tuple[int, int, int, int]  # inode, size, mtime, ctime
Parts = tuple[tuple[int, int, int], ...]  # offset in the file, offset among the copies, length; what is between them is a hole

_STAMP: Final = struct.Struct("=QQqq")  # `shots` packs it in the same way


class NotCopied(Exception):
    """Why a file has no copy, in words; what was copied of it is freed again."""


class _Columns:
    """What is known of each copy, by its number."""

    __slots__ = ("parts", "settled", "sizes", "spare", "stamps", "starts", "users")

    def __init__(self) -> None:
        self.sizes = array("Q")
        self.starts = array("Q")  # where among the copies it lies
        self.parts: dict[int, Parts] = {}  # of those that do not lie there in one part
        self.stamps = Rows(_STAMP)
        self.settled = bytearray()
        self.users = array("I")
        self.spare = array("Q")  # numbers that are free again

    def add(self, size: int, start: int, parts: Parts) -> int:
        if self.spare:
            number = self.spare.pop()
            self.sizes[number], self.starts[number], self.users[number] = size, start, 0
        else:
            number = len(self.sizes)
            self.sizes.append(size)
            self.starts.append(start)
            self.users.append(0)
            self.stamps.append((0, 0, 0, 0))
            self.settled.append(0)
        if parts != _one_part(size, start):
            self.parts[number] = parts
        return number

    def remove(self, number: int) -> None:
        self.parts.pop(number, None)
        self.spare.append(number)


class Copy:
    """The content of one file, as it is in the columns. Equal to another look at the same one of the same shelf."""

    __slots__ = ("_columns", "number")

    def __init__(self, columns: _Columns, number: int) -> None:
        self._columns = columns
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Copy) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    @property
    def size(self) -> int:
        return self._columns.sizes[self.number]

    @property
    def parts(self) -> Parts:
        columns, number = self._columns, self.number
        parts = columns.parts.get(number)
        return _one_part(columns.sizes[number], columns.starts[number]) if parts is None else parts

    @property
    def room_bytes(self) -> int:
        return sum(_blocks(length) for _, _, length in self.parts)

    @property
    def stamp(self) -> Stamp:
        """That of the file in the workspace which last had this content."""
        return cast("Stamp", self._columns.stamps[self.number])

    @stamp.setter
    def stamp(self, stamp: Stamp) -> None:
        self._columns.stamps[self.number] = stamp

    @property
    def settled(self) -> bool:
        """Whether every later change must give the file another stamp."""
        return bool(self._columns.settled[self.number])

    @settled.setter
    def settled(self, settled: bool) -> None:
        self._columns.settled[self.number] = settled

    @property
    def users(self) -> int:
        """Shots that it is part of."""
        return self._columns.users[self.number]

    @users.setter
    def users(self, users: int) -> None:
        self._columns.users[self.number] = users


class Copies:
    """All copies of one shelf, in at most `max_bytes`. Not for several threads at once."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._fd = -1
        self._end = 0
        self._living = 0
        self._columns = _Columns()
        self.used_bytes = 0

    def copy(self, number: int) -> Copy:
        return Copy(self._columns, number)

    def is_settled_as(self, number: int, raw_stamp: bytes) -> bool:
        """Whether the stamp of a copy is settled and, as it is packed, this one."""
        return bool(self._columns.settled[number]) and self._columns.stamps.raw(number) == raw_stamp

    def prepare(self) -> None:
        """Make the anonymous file if there is none yet; to be called with the host's own rights. Raises OSError."""
        if self._fd < 0:
            self._fd = _anonymous_file(self._folder)

    def add(self, fd: int, size: int) -> Copy:
        """Copy a file. Raises NotCopied for what does not fit, cannot be read, or finds the disk full."""
        try:
            segments = _segments(fd, size)
            room = sum(_blocks(length) for _, length in segments)
            if self.used_bytes + room > self._max_bytes:
                raise NotCopied(f"does not fit into {self._max_bytes} bytes for all copies of the session")
            parts: list[tuple[int, int, int]] = []
            at = self._end
            for offset, length in segments:
                parts.append((offset, at, length))
                at += _blocks(length)
            try:
                whole = [_transfer(fd, offset, self._fd, kept_at, length) for offset, kept_at, length in parts]
                if not all(whole):  # it shrank meanwhile; what was not there is zeros, not the end of our file
                    os.ftruncate(self._fd, at)
            except OSError:
                _punch(self._fd, self._end, room)
                raise
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NotCopied("the disk for copies is full") from err
            raise NotCopied(f"cannot be read: {err.strerror}") from err
        number = self._columns.add(size, self._end, tuple(parts))
        self._end += room
        self.used_bytes += room
        self._living += 1
        copy = self.copy(number)
        copy.stamp, copy.settled = (0, 0, 0, 0), False
        return copy

    def equals(self, copy: Copy, fd: int, size: int) -> bool:
        """Whether a file has this content, holes included. False also where it cannot be read."""
        if size != copy.size:
            return False
        try:
            if _segments(fd, size) != [(offset, length) for offset, _, length in copy.parts]:
                return False
            return all(self._same(fd, offset, kept_at, length) for offset, kept_at, length in copy.parts)
        except (OSError, NotCopied):
            return False

    def write(self, copy: Copy, fd: int) -> None:
        """Give a file this content, in place: who holds or maps it sees the new one. Raises OSError, and leaves it between the two."""
        os.ftruncate(fd, copy.size)  # first, as it may free space
        if os.fstat(fd).st_blocks:
            at = 0
            for offset, _, length in (*copy.parts, (copy.size, 0, 0)):
                if offset > at:
                    _make_hole(fd, at, offset - at)
                at = offset + length
        for offset, kept_at, length in copy.parts:
            _transfer(self._fd, kept_at, fd, offset, length)

    def free(self, copy: Copy) -> None:
        self._living -= 1
        # Where the file system cannot punch holes (some network file systems), the space comes back when the last copy goes.
        if not any(_punch(self._fd, kept_at, _blocks(length)) for _, kept_at, length in copy.parts):
            self.used_bytes -= copy.room_bytes
        self._columns.remove(copy.number)
        if not self._living:
            os.ftruncate(self._fd, 0)
            self._end = self.used_bytes = 0
            self._columns = _Columns()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._living, self.used_bytes = -1, 0, 0, 0
        self._columns = _Columns()

    def _same(self, fd: int, offset: int, kept_at: int, length: int) -> bool:
        while length > 0:
            chunk = min(length, CHUNK_BYTES)
            theirs = os.pread(fd, chunk, offset)
            if len(theirs) != chunk or theirs != os.pread(self._fd, chunk, kept_at):
                return False
            offset, kept_at, length = offset + chunk, kept_at + chunk, length - chunk
        return True


def _one_part(size: int, start: int) -> Parts:
    return ((0, start, size),) if size else ()


def _segments(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file has data: offset and length, in order. Raises NotCopied where it is in more than `MAX_PARTS` pieces."""
    if size <= SMALL_BYTES:
        return [(0, size)] if size else []
    found: list[tuple[int, int]] = []
    at = 0
    try:
        while at < size:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            if end <= start:
                break
            if len(found) == MAX_PARTS:
                raise NotCopied(f"lies in more than {MAX_PARTS} pieces")
            found.append((start, end - start))
            at = end
    except OSError as err:
        if err.errno != errno.ENXIO:  # no data from here on
            raise
    return found


def _transfer(source: int, offset: int, target: int, target_offset: int, length: int) -> bool:
    """Copy bytes; False where the source ended before. Leaves the target's file offset anywhere."""
    if length <= SMALL_BYTES:
        data = memoryview(os.pread(source, length, offset))
        whole = len(data) == length
        while data:
            written = os.pwrite(target, data, target_offset)
            data, target_offset = data[written:], target_offset + written
        return whole
    os.lseek(target, target_offset, os.SEEK_SET)
    while length > 0 and (sent := os.sendfile(target, source, offset, length)):
        offset, length = offset + sent, length - sent
    return length == 0


def _make_hole(fd: int, at: int, length: int) -> None:
    if _punch(fd, at, length) == errno.EOPNOTSUPP:
        size = os.fstat(fd).st_size
        os.ftruncate(fd, at)  # what comes after is written next
        os.ftruncate(fd, size)


def _punch(fd: int, at: int, length: int) -> int:
    """Free a range, which reads as zeros then; 0, or the number of the error."""
    if length and _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(length)):
        return ctypes.get_errno()
    return 0


def _blocks(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def _anonymous_file(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(dir=folder)  # an older overlay, or a network file system
    os.unlink(path)
    return fd
