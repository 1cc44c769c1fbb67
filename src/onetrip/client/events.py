"""Server-Sent Events as bytes come in (WHATWG HTML, section 9.2), and the events of a run that they carry. No I/O."""

from typing import Final

import msgspec

from onetrip.client import core
from onetrip.errors import PlatformError
from onetrip.model import Displayed, Done, Event, Result, Started, Stderr, Stdout, ToolAnswered, ToolCalled

MAX_BYTES: Final = 1 << 30  # of one record: more than the largest result that a server may be configured to give
_NAMES: Final = {
    "started": Started,
    "stdout": Stdout,
    "stderr": Stderr,
    "display": Displayed,
    "tool_call": ToolCalled,
    "tool_result": ToolAnswered,
}


class Record(msgspec.Struct, frozen=True):
    number: int | None  # `id`, where it is one of ours
    name: str
    data: bytes


class Records:
    """Feed it bytes as they come, cut anywhere; it gives the records that are whole. Raises PlatformError for one without end."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._line: list[bytes] = []  # pieces of the line that has no end yet
        self._size = 0
        self._after_cr = False  # the last byte was a CR: a LF that follows belongs to it
        self._is_first = True
        self._number: int | None = None
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Record]:
        found: list[Record] = []
        at = 0
        if self._after_cr and piece:
            self._after_cr = False
            at = 1 if piece[:1] == b"\n" else 0
        while (end := _line_end(piece, at)) >= 0:
            self._keep(piece[at:end])
            line, self._line = b"".join(self._line), []
            if (record := self._take(line)) is not None:
                found.append(record)
            at = end + 1
            if piece[end : end + 1] == b"\r":
                if at == len(piece):
                    self._after_cr = True
                elif piece[at : at + 1] == b"\n":
                    at += 1
        self._keep(piece[at:])
        return found

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_bytes:
            raise PlatformError(f"the server sent an event of more than {self._max_bytes} bytes")
        if part:
            self._line.append(part)

    def _take(self, line: bytes) -> Record | None:
        if self._is_first:
            line, self._is_first = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")  # a comment has no name
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._name = value.decode(errors="replace")
            case b"id":
                self._number = int(value) if value.isdigit() and len(value) <= 15 else None
            case _:
                self._size -= len(line)
        return None

    def _dispatch(self) -> Record | None:
        record = Record(self._number, self._name or "message", b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return record


def _line_end(piece: bytes, at: int) -> int:
    lf = piece.find(b"\n", at)
    cr = piece.find(b"\r", at, lf if lf >= 0 else len(piece))
    return lf if cr < 0 else cr


def event(record: Record) -> Event | None:
    """The event that a record is; None for one that only a newer server knows. Raises PlatformError."""
    if record.name == "done":
        return Done(core.decode(record.data, Result))
    kind = _NAMES.get(record.name)
    return None if kind is None else core.decode(record.data, kind)
