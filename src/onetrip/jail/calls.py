"""Lists of system calls that run in one go, with nothing of Python between them: the steps of a process that was just forked.

Theory of operation
-------------------
A process that was just forked shares its memory with its parent, page by page, until one of the two writes to a page; that copy
costs some 4 µs here. Python writes wherever it looks (reference counts), so entering the jail in Python cost 270 such copies. A
list of calls is prepared *before* the fork, as a table of plain numbers, and walked by 181 bytes of machine code, which write to
nothing but the results. It is the shape that other jails give this moment for another reason: after the fork no allocation, no
lock, no code that could fail in a new way (go-sandbox, pkg/forkexec; Chromium, docs/linux/zygote.md).

    entry   = number and flags, six arguments, where the result goes       8 words of 64 bits
    POINTER   the first argument is not a number but where to find it, in 32 bits: an earlier call's result, such as a descriptor
    FORK      when the result is not 0 the walk ends here: this is the parent
    SPLIT     when the result is 0 the walk goes on in another list: this is the child (`CallList.add_split`)
    MAY_FAIL  goes on after an error       LEAVE   on an error the process exits at once (a child that shares our memory)
    NOT_ZERO  a result of 0 ends the walk  REPEAT  after this call the walk begins again

The walk ends at the first error, and the name of that call's step is known by its place. The machine code is for x86-64 and
aarch64, the two that the system call filter knows; its source is in docs/decisions/014.
"""

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .steps import StepFailed

POINTER, FORK, MAY_FAIL, LEAVE, NOT_ZERO, _SPLIT, REPEAT = (1 << bit for bit in range(32, 39))
_ENTRY_BYTES: Final = 64
_MACHINE: Final = platform.machine()

# Name → number. asm/unistd.h for x86-64, asm-generic/unistd.h for aarch64.
_NUMBERS: Final = {
    "capset": (126, 91), "chdir": (80, 49), "clone": (56, 220), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23),
    "dup3": (292, 24), "execveat": (322, 281), "fchdir": (81, 50), "fchownat": (260, 54), "getrandom": (318, 278), "ioctl": (16, 29),
    "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444), "landlock_restrict_self": (446, 446),
    "mkdirat": (258, 34), "mount": (165, 40), "openat": (257, 56), "prctl": (157, 167), "prlimit64": (302, 261), "recvmsg": (47, 212),
    "rt_sigaction": (13, 134), "sched_setaffinity": (203, 122), "seccomp": (317, 277), "sendmsg": (46, 211),
    "setgroups": (116, 159), "setns": (308, 268), "setresgid": (119, 149), "setresuid": (117, 147), "setsid": (112, 157),
    "socket": (41, 198), "umask": (95, 166), "unshare": (272, 97), "write": (1, 64),
}  # fmt: skip
_COLUMN: Final = {"x86_64": 0, "aarch64": 1}.get(_MACHINE, -1)

_WALK: Final = bytes.fromhex(
    {
        "x86_64":
        "5355415441554889fb4889f54989fc4989f54885ed0f8481000000488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b30480f"
        "bae02073028b3f89c00f05488b4b38488901488b0b4885c0783c741f480fbae1217241480fbae12672094883c34048ffcdeba74c89e34c89"
        "edeb9f480fbae1247222480fbae12573da488b5b30488b2b4883c340eb84480fbae12272c6480fbae123720d4889c24889e8415d415c5d5b"
        "c3bf7f000000b8e70000000f05",
        "aarch64":
        "e90300aaea0301aaee0300aaef0301aa0b0080d2ea0300b4280140f9208540a9228d41a9249542a9480000b6000040b9e803082a010000d4"
        "eb0300aa2c1d40f9800100f92d0140f90002f8b7200100b40d0208b78d0030b7290101914a0500d1edffff17e9030eaaea030faaeaffff17"
        "0d0120b70dff2fb6291940f92a0140f929010191e4ffff176dfe17b78d0018b7e1030baae0030aaac0035fd6e00f80d2c80b80d2010000d4",
    }.get(_MACHINE, "")
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Data:
    """Bytes that calls read or write. `pointers`: offset → what to point to there."""

    content: bytes
    pointers: Mapping[int, "Place"] = field(default_factory=dict[int, "Place"])
    list: "CallList | None" = None  # instead: the image of a list

    def at(self, offset: int) -> "Place":
        return Place(self, offset)


@dataclass(frozen=True, eq=False)
class Place:
    """An address inside of `Data`."""

    data: Data
    offset: int = 0


@dataclass(frozen=True)
class Result:
    """What an earlier call of the same list returned. Only the first argument of a call can be one."""

    index: int


@dataclass(frozen=True)
class Later:
    """A number that is known only when the list is run: see `Prepared.run`."""

    name: str


Argument = int | bytes | Place | Result | Later


class CallList:
    """Calls in their order, each with the name of its step. Text is given as bytes; a NUL is put behind it."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, int, tuple[Argument, ...], Place | None]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, step: str, name: str, *arguments: Argument, flags: int = 0, store: Place | None = None) -> Result:
        """`store`: where the result goes, 8 bytes; else it is kept where `Result` finds it."""
        if arguments and isinstance(arguments[0], Result):
            flags |= POINTER
        self._calls.append((step, _NUMBERS[name][_COLUMN] | flags, arguments, store))
        return Result(len(self._calls) - 1)

    def add_pointed(self, step: str, name: str, first: Place, *others: Argument, flags: int = 0) -> Result:
        """The same, with the first argument to be found at a place."""
        return self.add(step, name, first, *others, flags=flags | POINTER)

    def add_split(self, step: str, name: str, *arguments: Argument, child: Data, store: Place | None = None) -> Result:
        """A call that forks, with at most five arguments: in the child the walk goes on with the list that is `child`."""
        return self.add(step, name, *arguments, *[0] * (5 - len(arguments)), child.at(0), flags=_SPLIT, store=store)

    def step_at(self, index: int) -> str:
        return self._calls[index][0]

    def image(self, base: int, known: "dict[Data, int] | None" = None) -> tuple[bytearray, dict[str, list[int]]]:
        """The list as it lies in memory at `base`: a count, then from byte 64 on the entries; and where each `Later` goes.

        `known`: addresses of data that lies outside of this image already; what this image holds is added.
        """
        image = bytearray(_ENTRY_BYTES * (1 + len(self._calls)) + 8 * len(self._calls))
        struct.pack_into("<Q", image, 0, len(self._calls))
        results = base + _ENTRY_BYTES * (1 + len(self._calls))
        later: dict[str, list[int]] = {}
        texts: dict[bytes, Data] = {}
        addresses = {} if known is None else known

        def address(data: Data) -> int:
            if data not in addresses:
                image.extend(bytes(-len(image) % 16))
                at = len(image)
                addresses[data] = base + at
                if data.list is None:
                    image.extend(data.content)
                else:
                    inner, inner_later = data.list.image(base + at, addresses)
                    image.extend(inner)
                    for name, places in inner_later.items():
                        later.setdefault(name, []).extend(at + place for place in places)
                for offset, target in data.pointers.items():
                    struct.pack_into("<Q", image, at + offset, address(target.data) + target.offset)
            return addresses[data]

        for index, (_step, number, arguments, store) in enumerate(self._calls):
            entry = _ENTRY_BYTES * (1 + index)
            words = [0] * 6
            for at, argument in enumerate(arguments):
                match argument:
                    case int():
                        words[at] = argument & 0xFFFFFFFFFFFFFFFF
                    case bytes():
                        words[at] = address(texts.setdefault(argument, Data(argument + b"\0")))
                    case Place():
                        words[at] = address(argument.data) + argument.offset
                    case Result():
                        words[at] = results + 8 * argument.index
                    case Later():
                        later.setdefault(argument.name, []).append(entry + 8 * (1 + at))
            goes_to = results + 8 * index if store is None else address(store.data) + store.offset
            struct.pack_into("<8Q", image, entry, number, *words, goes_to)
        image.extend(bytes(8))  # a result of 8 bytes may be stored over the last 4 of `Data`
        return image, later

    def prepare(self) -> "Prepared":
        return Prepared(self)


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a walk ended: `step` and what its call returned, a negative errno after an error."""

    step: str
    result: int

    @property
    def failure(self) -> StepFailed | None:
        return failure(self.step, -self.result) if self.result < 0 else None


class Prepared:
    """A list in this process's memory, to be run any number of times."""

    def __init__(self, calls: CallList) -> None:
        self._calls = calls
        # A mapping of its own: what a forked child writes to is these pages and no others.
        size = len(calls.image(0)[0])
        self._memory = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._addresses: dict[Data, int] = {}
        image, self._later = calls.image(self._address, self._addresses)
        self._memory[: len(image)] = bytes(image)

    def run(self, **numbers: int) -> int:
        """Do the calls, each `Later` with its number. 0 when the list came to its end, else what `stop` explains.

        A call marked FORK or SPLIT makes it return in two processes: ask `getpid` which one this is.
        """
        for name, value in numbers.items():
            for at in self._later[name]:
                struct.pack_into("<q", self._memory, at, value)
        return _walk(self._address + _ENTRY_BYTES, len(self._calls))

    def stop(self, left: int, child: Data | None = None) -> Stop:
        """Where the walk ended: in this list, or in that of `child`."""
        calls, at = self._calls, 0
        if child is not None and child.list is not None:
            calls, at = child.list, self._addresses[child] - self._address
        index = len(calls) - left
        (result,) = struct.unpack_from("<q", self._memory, at + _ENTRY_BYTES * (1 + len(calls)) + 8 * index)
        return Stop(calls.step_at(index), result)

    def bytes_at(self, data: Data) -> memoryview:
        """The data as it lies in memory, to be read and written."""
        at = self._addresses[data] - self._address
        return memoryview(self._memory)[at : at + len(data.content)]


def failure(step: str, errno: int) -> StepFailed:
    return StepFailed(step, errno, os.strerror(errno))


def _load() -> Any:
    """Put the machine code into memory that can be executed and, from then on, not written."""
    if not _WALK:
        raise StepFailed("load the list of calls", 0, f"no machine code for {_MACHINE}")
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(_WALK)] = _WALK
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _kept.append(memory)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
        errno = ctypes.get_errno()
        raise failure("load the list of calls", errno)
    if _MACHINE == "aarch64":  # there instructions have a cache of their own
        getattr(ctypes.CDLL("libgcc_s.so.1"), "__clear_cache")(ctypes.c_void_p(address), ctypes.c_void_p(address + len(_WALK)))
    # Keeps the interpreter's lock: another thread of state has no meaning in a child that libc did not fork.
    return ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(address)


_kept: Final[list[Any]] = []
_loaded: Final[list[Any]] = []


def load() -> None:
    """Make ready to run lists here; before forking. Raises StepFailed where memory may not be made executable."""
    if not _loaded:
        _loaded.append(_load())


def _walk(address: int, count: int) -> int:
    load()
    left: int = _loaded[0](address, count)
    return left
