"""The protocol between host and guest: bytes in, messages out; no I/O, no clock.

Theory of operation
-------------------
Host and guest share one `SOCK_SEQPACKET` socket, so the kernel keeps packet boundaries: a packet arrives whole or not at all,
and a host that dies and comes back never finds itself in the middle of one.  A *frame* is one message: a JSON header and any
number of raw parts (source, image bytes, JSON bodies).  A frame larger than `PACKET_BYTES` is cut into packets; the first
packet announces the sizes, so that they are refused before anything is allocated.

    packet  = flags(1) [header_len(4) payload_len(4) when FIRST, big endian] body
    body    = consecutive bytes of header + payload
    header  = {"kind": str, "parts": [length of each part], ...fields}

The guest shares its address space with code nobody trusts.  Everything it sends is checked here against `GUEST_KINDS`
and against the order of messages in `HostProtocol`; whatever does not fit raises `Violation`, which ends that sandbox and no
other.  Every answer carries the `run` nonce of its own `Execute`, so a leftover of an earlier cell cannot answer a later one.

stdout and stderr are not messages: they are two pipes that the host reads itself (docs/decisions/003).
Standard library only: this package also runs inside the sandbox.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json import JSONDecoder, dumps  # bound now: inside the sandbox the program may replace them in their module
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, Literal, cast

from .messages import (
    GUEST_KINDS,
    HOST_KINDS,
    Blocked,
    Checkpoint,
    Display,
    Done,
    Execute,
    Goodbye,
    GuestMessage,
    Hello,
    HostMessage,
    Kept,
    Live,
    Ready,
    Refused,
    Shutdown,
    Spawn,
    ToolCall,
    ToolDrop,
    ToolResult,
    Tools,
)

VERSION: Final = 1
PACKET_BYTES: Final = 64 * 1024  # below net.core.wmem_default (208 KiB), so that every kernel takes a packet whole
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024  # one frame: a figure, a value, the source of a cell
MAX_PARTS: Final = 64
_FIRST, _LAST = 1, 2
_PREFIX: Final = 9  # flags + two lengths
_read: Final = JSONDecoder().raw_decode  # text → value and the place behind it


class Violation(Exception):
    """The peer broke the protocol. The sandbox it belongs to must be ended; nothing else is affected."""


# ---------------------------------------------------------------------------------------------------- encoding


def packets(message: HostMessage | GuestMessage) -> Iterator[bytes]:
    """Cut one message into packets, to be sent in order and each in one `send`. Raises ValueError when it is too large."""
    parts = [bytes(part) for part in message.parts]
    fields = "".join([f', "{name}": {_text(getattr(message, name))}' for name in _FIELDS[type(message)]])
    header = f'{{"kind": "{message.KIND}", "parts": {list(map(len, parts))}{fields}}}'.encode("ascii")
    size = sum(map(len, parts))
    if len(header) > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES or len(parts) > MAX_PARTS:
        raise ValueError(f"a frame of {len(header)} + {size} bytes in {len(parts)} parts is over the protocol's limits")
    prefix = len(header).to_bytes(4) + size.to_bytes(4)
    if len(header) + size <= PACKET_BYTES - _PREFIX:
        return iter((b"".join((b"\x03", prefix, header, *parts)),))
    return _cut(prefix, b"".join((header, *parts)))


def _cut(prefix: bytes, body: bytes) -> Iterator[bytes]:
    room = PACKET_BYTES - _PREFIX
    yield b"\x01" + prefix + body[:room]
    step = PACKET_BYTES - 1
    for start in range(room, len(body), step):
        yield (b"\x02" if start + step >= len(body) else b"\x00") + body[start : start + step]


def _text(value: object) -> str:
    """A field as JSON; of the usual types without an encoder, which costs more than the rest of a small message."""
    if type(value) is str:
        return _quoted(value)
    return str(value) if type(value) is int else dumps(value)


class _Reassembler:
    """Packets → (header bytes, payload). Holds at most one frame, whose size was checked before it was allocated."""

    def __init__(self) -> None:
        self._buffer: bytearray | None = None
        self._header_len = 0
        self._total = 0

    def feed(self, packet: bytes) -> tuple[bytes, memoryview] | None:
        if not packet:
            raise Violation("an empty packet")
        flags = packet[0]
        if flags == _FIRST | _LAST and self._buffer is None and len(packet) >= _PREFIX:  # by far the most
            end = _PREFIX + self._sizes(packet)
            if (over := len(packet) - _PREFIX - self._total) != 0:
                raise Violation(f"a frame {'longer' if over > 0 else 'shorter'} than announced")
            return packet[_PREFIX:end], memoryview(packet)[end:]
        if flags > (_FIRST | _LAST):
            raise Violation(f"unknown packet flags {flags:#x}")
        if flags & _FIRST:
            if self._buffer is not None:
                raise Violation("a frame began inside another")
            if len(packet) < _PREFIX:
                raise Violation("a first packet without its sizes")
            self._sizes(packet)
            self._buffer = bytearray()
            body = packet[_PREFIX:]
        else:
            if self._buffer is None:
                raise Violation("a continuation without a first packet")
            body = packet[1:]
            if not body:
                raise Violation("a continuation without bytes")  # else a frame could be fed empty packets for ever
        buffer = self._buffer
        if len(buffer) + len(body) > self._total:
            raise Violation("a frame longer than announced")
        buffer += body
        if not flags & _LAST:
            if len(buffer) == self._total:
                raise Violation("a frame went on after its last byte")
            return None
        if len(buffer) != self._total:
            raise Violation("a frame shorter than announced")
        self._buffer = None
        whole = memoryview(bytes(buffer))
        return bytes(whole[: self._header_len]), whole[self._header_len :]

    def _sizes(self, packet: bytes) -> int:
        """Read what a first packet announces. Returns the header's length."""
        header_len, size = int.from_bytes(packet[1:5]), int.from_bytes(packet[5:9])
        if not 2 <= header_len <= MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
            raise Violation(f"a frame of {header_len} + {size} bytes is over the limit")
        self._header_len, self._total = header_len, header_len + size
        return header_len


def _decode(kinds: Mapping[str, Any], header: bytes, payload: memoryview) -> Any:
    try:
        text = header.decode("ascii")
        decoded, end = _read(text)
    except (ValueError, RecursionError) as err:
        raise Violation("a header that is not JSON") from err
    if end != len(text):
        raise Violation("a header with something behind it")
    if type(decoded) is not dict:
        raise Violation("a header that is not an object")
    raw = cast("dict[str, Any]", decoded)
    kind, parts_lengths = raw.pop("kind", None), raw.pop("parts", None)
    cls = kinds.get(kind) if type(kind) is str else None
    if cls is None:
        raise Violation(f"unknown kind {str(kind)[:40]!r}")
    lengths = cast("list[int]", parts_lengths)
    if type(parts_lengths) is not list or len(lengths) > MAX_PARTS or not all(type(n) is int and n >= 0 for n in lengths):
        raise Violation("part lengths that are not small whole numbers")
    if sum(lengths) != len(payload):
        raise Violation("part lengths that do not add up")
    fields = _FIELDS[cls]
    if raw.keys() != fields.keys():
        raise Violation(f"{kind}: wrong fields")
    for name, wanted in fields.items():
        value = raw[name]
        if wanted is tuple:
            raw[name] = _names(cls.KIND, name, value)
        elif type(value) is not wanted or (wanted is str and len(value) > _MAX_TEXT):
            raise Violation(f"{cls.KIND}.{name}: wrong type or size")
    parts: list[bytes] = []
    at = 0
    for n in lengths:
        parts.append(bytes(payload[at : at + n]))
        at += n
    return cls(**raw, parts=tuple(parts))


_TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(("run", "python", "step", "detail", "why", "note", "workspace", "tool", "path"), str),
    **dict.fromkeys(("cell", "version", "errno", "number", "live", "checkpoint", "ordinal", "asked", "answered"), int),
    **dict.fromkeys(("final", "late_interrupt", "is_result", "branch", "failed"), bool),
    **dict.fromkeys(("held", "mimes"), tuple),  # of names
    "session": dict,
}
# of each message: its fields beside `parts`
_FIELDS: Final[Mapping[type, Mapping[str, type]]] = {
    cls: {name: _TYPES[name] for name in cls.__slots__ if name != "parts"}
    for cls in (*HOST_KINDS.values(), *GUEST_KINDS.values())
}
_MAX_TEXT: Final = 4096  # characters of any text field in a header; long texts travel as parts


def is_name(text: str) -> bool:
    """Whether this may be a name in a message, such as a MIME type."""
    return len(text) <= 200 and text.isascii() and text.isprintable()


def _names(kind: str, name: str, value: Any) -> tuple[str, ...]:
    listed = cast("list[str]", value)
    # ASCII in one line: MIME types go into headers and JSON elsewhere
    if type(value) is not list or len(listed) > MAX_PARTS or not all(type(v) is str and is_name(v) for v in listed):
        raise Violation(f"{kind}.{name}: not a list of names")
    return tuple(listed)


# ---------------------------------------------------------------------------------------------------- the two ends

HostState = Literal["starting", "idle", "running", "moving", "ended"]


@dataclass(slots=True)
class HostProtocol:
    """The host's end: checks what the guest sends and when it sends it.

    starting ─Ready→ idle ─execute()→ running ─Done→ idle;  Refused and Goodbye end it.  Display and calls of tools only while running.
    idle ─checkpoint()→ moving ─Kept→ idle;  any but ended ─start_over()→ moving ─Live→ idle.
    """

    state: HostState = "starting"
    run: str | None = None
    number: int | None = None  # of the checkpoint that is being made
    calls: int = 0  # of tools, in this run
    _frames: _Reassembler = field(default_factory=_Reassembler)

    def execute(self, message: Execute) -> Iterator[bytes]:
        """Packets that open a run. Raises RuntimeError when one is open already: that is the host's own mistake."""
        if self.state != "idle":
            raise RuntimeError(f"cannot execute while {self.state}")
        out = packets(message)
        self.state, self.run, self.calls = "running", message.run, 0
        return out

    def tool_result(self, number: int, *, failed: bool, body: bytes) -> Iterator[bytes]:
        """Packets that answer a call of the open run. Raises RuntimeError when there is none, ValueError for what is too large."""
        if self.state != "running" or self.run is None:
            raise RuntimeError(f"cannot answer a call while {self.state}")
        return packets(ToolResult(self.run, number, failed, (body,)))

    def checkpoint(self, message: Checkpoint) -> Iterator[bytes]:
        """Packets that ask for a checkpoint. Raises RuntimeError when the guest is not idle."""
        if self.state != "idle":
            raise RuntimeError(f"cannot make a checkpoint while {self.state}")
        self.state, self.number = "moving", message.number
        return packets(message)

    def start_over(self) -> None:
        """The process that spoke is gone, and all that it had in the channel was thrown away; the next one says `Live` first."""
        self.state, self.run, self.number, self._frames = "moving", None, None, _Reassembler()

    def receive(self, packet: bytes) -> GuestMessage | None:
        """One packet from the guest → the message it completes, or None. Raises Violation; the sandbox is then ended."""
        if self.state == "ended":
            raise Violation("a packet after the end")
        frame = self._frames.feed(packet)
        if frame is None:
            return None
        message: GuestMessage = _decode(GUEST_KINDS, *frame)
        match message:
            case Ready():
                if self.state != "starting" or message.version != VERSION:
                    raise Violation("a second Ready, or one of another version")
                self.state = "idle"
            case Refused():
                if self.state not in ("starting", "moving"):
                    raise Violation("Refused after Ready")
                if self.state == "starting":
                    self.state = "ended"
            case Kept():
                if self.state != "moving" or message.number != self.number or min(message.live, message.checkpoint) < 0:
                    raise Violation("a Kept that nobody waits for")
                self.state, self.number = "idle", None
            case Live():
                if self.state != "moving" or self.number is not None or message.live < 2:
                    raise Violation("a Live that nobody waits for")
                self.state = "idle"
            case Display():
                if self.state != "running" or message.run != self.run or len(message.mimes) != len(message.parts):
                    raise Violation("a Display outside of its run")
            case ToolCall():
                if self.state != "running" or message.run != self.run or len(message.parts) != 1 or message.ordinal < 0:
                    raise Violation("a ToolCall outside of its run")
                self.calls += 1
                if message.number != self.calls:
                    raise Violation("calls that are not counted")
            case ToolDrop():
                if self.state != "running" or message.run != self.run or not 1 <= message.number <= self.calls:
                    raise Violation("a ToolDrop of no call")
            case Blocked():
                if self.state != "running" or message.run != self.run or not 0 <= message.answered <= message.asked <= self.calls:
                    raise Violation("a Blocked that cannot be")
            case Done():
                if self.state != "running" or message.run != self.run or len(message.parts) != 1:
                    raise Violation("a Done that nobody waits for")
                self.state, self.run = "idle", None
            case Goodbye():
                if self.state != "idle":
                    raise Violation("Goodbye inside of a run")
                self.state = "ended"
        return message


class GuestProtocol:
    """The guest's end: packets from the host → messages. The host is trusted; only nonsense is refused."""

    def __init__(self) -> None:
        self._frames = _Reassembler()

    def receive(self, packet: bytes) -> HostMessage | None:
        frame = self._frames.feed(packet)
        return None if frame is None else _decode(HOST_KINDS, *frame)


__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_PARTS",
    "MAX_PAYLOAD_BYTES",
    "PACKET_BYTES",
    "VERSION",
    "Blocked",
    "Checkpoint",
    "Display",
    "Done",
    "Execute",
    "Goodbye",
    "GuestMessage",
    "GuestProtocol",
    "Hello",
    "HostMessage",
    "HostProtocol",
    "HostState",
    "Kept",
    "Live",
    "Ready",
    "Refused",
    "Shutdown",
    "Spawn",
    "ToolCall",
    "ToolDrop",
    "ToolResult",
    "Tools",
    "Violation",
    "is_name",
    "packets",
]
