"""What a workspace looks like at one moment: every entry with its kind, mode and stamps, and which copy has its content."""

import contextlib
import os
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Final

import msgspec

from onetrip.beneath import MAX_DEPTH, by_fd, held, open_beneath, printable, walk
from onetrip.copies import Copies, Copy, Stamp
from onetrip.rows import Rows

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


_SEEN: Final = struct.Struct("=IQQqqQQ")  # the numbers of a `Seen`, in order
_STAMP: Final = slice(4, 36)  # among them, as `copies` packs it
_LINKS: Final = slice(36, 44)
_ONE_LINK: Final = struct.pack("=Q", 1)


class Listing(MutableMapping[bytes, Seen]):
    """Entries by path, in two blocks of memory (`rows` tells why); a `Seen` is made when one is asked for.

    Asking by path needs an index, which is made for the first who asks: two objects for each entry, so it is not to stay.
    """

    __slots__ = ("_index", "_names", "_rows", "_targets")

    def __init__(self) -> None:
        self._names = bytearray()  # each ended by a zero byte, which no path has
        self._rows = Rows(_SEEN)
        self._targets: dict[int, bytes] = {}
        self._index: dict[bytes, int] | None = None  # if there is one, it says what is in the listing

    def __setitem__(self, path: bytes, seen: Seen) -> None:
        row = len(self._rows)
        self._names += path
        self._names.append(0)
        self._rows.append((seen.mode, seen.inode, seen.size, seen.mtime_ns, seen.ctime_ns, seen.links, seen.data_bytes))
        if seen.target:
            self._targets[row] = seen.target
        if self._index is not None:
            self._index[path] = row

    def __getitem__(self, path: bytes) -> Seen:
        return self.seen(self.row(path))

    def __delitem__(self, path: bytes) -> None:
        del self.index()[path]

    def __contains__(self, path: object) -> bool:
        return path in self.index()

    def __iter__(self) -> Iterator[bytes]:
        return self._paths() if self._index is None else iter(self._index)

    def __len__(self) -> int:
        return len(self._rows) if self._index is None else len(self._index)

    def row(self, path: bytes) -> int:
        return self.index()[path]

    def seen(self, row: int) -> Seen:
        target = self._targets.get(row, b"") if self._targets else b""
        mode, inode, size, mtime_ns, ctime_ns, links, data_bytes = self._rows[row]
        return Seen(mode, inode, size, mtime_ns, ctime_ns, links, data_bytes, target)

    def find(self, path: bytes) -> Seen | None:
        row = self.index().get(path)
        return None if row is None else self.seen(row)

    def raw(self, row: int) -> bytes | None:
        return self._rows.raw(row)

    def append_raw(self, path: bytes, raw: bytes) -> None:
        """As `raw` of another listing gave it. Precondition: there is no index yet, and it is no symbolic link."""
        self._names += path
        self._names.append(0)
        self._rows.append_raw(raw)

    def each(self) -> Iterator[tuple[bytes, Seen]]:
        """All of them, without an index if there is none."""
        return ((path, self.seen(row)) for path, row in self.rows())

    def rows(self) -> Iterator[tuple[bytes, int]]:
        """All of them with their rows, also without an index."""
        return ((path, row) for row, path in enumerate(self._paths())) if self._index is None else iter(self._index.items())

    def forget_index(self) -> None:
        """Precondition: nothing was replaced or removed."""
        self._index = None

    def index(self) -> dict[bytes, int]:
        """Path → row; to be read only."""
        if self._index is None:
            self._index = dict(self.rows())
        return self._index

    def _paths(self) -> Iterator[bytes]:
        at = 0
        while at < len(self._names):
            end = self._names.index(0, at)
            yield bytes(self._names[at:end])
            at = end + 1


class Kept(msgspec.Struct, frozen=True, gc=False):
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


class Entries(Mapping[bytes, Kept]):
    """Those of a shot, as `Listing` has them. `add` each once; then they stay as they are."""

    __slots__ = ("_copies", "_whys", "listing", "numbers")

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self.listing = Listing()
        self.numbers = array("q")  # of the copy of each row; -1: it has none
        self._whys: dict[int, str] = {}

    def add(self, path: bytes, kept: Kept) -> None:
        if kept.why:
            self._whys[len(self.numbers)] = kept.why
        self.numbers.append(-1 if kept.copy is None else kept.copy.number)
        self.listing[path] = kept.seen

    def take_over(self, path: bytes, row: int, found: Listing, old: "Entries") -> bool:
        """Add a regular file of one name that is surely as it was, as most are. False: it may be another one."""
        then = old.listing.index().get(path)
        number = -1 if then is None else old.numbers[then]
        if then is None or number < 0:
            return False
        raw = found.raw(row)
        if raw is None or raw != old.listing.raw(then) or raw[_LINKS] != _ONE_LINK:
            return False
        if not self._copies.is_settled_as(number, raw[_STAMP]):
            return False
        self.numbers.append(number)
        self.listing.append_raw(path, raw)
        return True

    def __getitem__(self, path: bytes) -> Kept:
        row = self.listing.row(path)
        return self._kept(row, self.listing.seen(row))

    def __contains__(self, path: object) -> bool:
        return path in self.listing

    def find(self, path: bytes) -> Kept | None:
        row = self.listing.index().get(path)
        return None if row is None else self._kept(row, self.listing.seen(row))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.listing)

    def __len__(self) -> int:
        return len(self.listing)

    def each(self) -> Iterator[tuple[bytes, Kept]]:
        """All of them, without an index if there is none."""
        return ((path, self._kept(row, self.listing.seen(row))) for path, row in self.listing.rows())

    def reasons(self) -> dict[bytes, str]:
        """Why, of those that were left out."""
        return {path: self._whys[row] for path, row in self.listing.rows() if row in self._whys} if self._whys else {}

    def copies(self) -> Iterator[Copy]:
        """Each once."""
        return (self._copies.copy(number) for number in sorted(set(self.numbers) - {-1}))

    def forget_index(self) -> None:
        """The shot will lie there for a while."""
        self.listing.forget_index()

    def _kept(self, row: int, seen: Seen) -> Kept:
        number = self.numbers[row]
        return Kept(seen, None if number < 0 else self._copies.copy(number), self._whys.get(row, "") if self._whys else "")


class Shot(msgspec.Struct, frozen=True, eq=False):
    """One recorded state of a workspace; belongs to the shelf that took it, which frees its copies when it is dropped."""

    entries: Entries  # by path; the workspace itself is b""
    whole: bool  # False: there was more than is looked at, so what is unknown is not taken for new
    left_out: tuple[str, ...]  # paths of which the content is not kept; at most `MAX_NAMED`
    left_out_count: int
    why: str  # reasons with numbers, for people; empty if nothing was left out

    def copies(self) -> Iterator[Copy]:
        return self.entries.copies()


class Restored(msgspec.Struct, frozen=True):
    """What restoring did. Paths are relative, by path; a folder that was removed stands for everything in it."""

    changed: tuple[str, ...]  # made, changed or removed; at most `MAX_NAMED`
    changed_count: int
    failed: tuple[tuple[str, str], ...]  # path and why it is not as it was; at most `MAX_NAMED`
    failed_count: int


class Look(msgspec.Struct, frozen=True):
    entries: Listing
    whole: bool
    closed: dict[bytes, int]  # folders whose mode was widened to look into them, with the mode they had
    blind: dict[bytes, str]  # folders that were not looked into, and why


def look(workspace: int, max_entries: int, needed_mode: int) -> Look:
    """Walk a workspace, as its owner. Folders of which the owner denied himself `needed_mode` have it until `shut`.

    Raises OSError if the workspace itself cannot be opened.
    """
    top = os.fstat(workspace)
    found = Listing()
    found[b""] = seen_of(top)
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
