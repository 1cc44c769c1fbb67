"""Connect RPC as far as E2B's clients use it: JSON, no compression; unary calls, and streams in envelopes. Bytes in and out, no I/O.

An envelope is a flag byte, the length (4 bytes, big endian) and a JSON message; the last one of a stream has flag 2 and tells how it
ended. Errors have a name, which decides the HTTP status of a unary call.
"""

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from onetrip.errors import OnetripError

T = TypeVar("T")
MAX_MESSAGE_BYTES: Final = 48 << 20  # base64 of the largest input that a cell takes
END: Final = 2
_HEAD: Final = 5
STATUS: Final = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
}
# By the code of our error. What is missing is our fault: "internal".
_OF: Final = {
    "bad_request": "invalid_argument",
    "not_found": "not_found",
    "conflict": "already_exists",
    "too_large": "invalid_argument",
    "unauthorized": "unauthenticated",
    "forbidden": "permission_denied",
    "quota_exceeded": "resource_exhausted",
    "overloaded": "resource_exhausted",
    "workspace_full": "resource_exhausted",
    "unavailable": "failed_precondition",
    "isolation_unavailable": "unimplemented",
    "session_gone": "unavailable",
}


class RpcError(Exception):
    """An answer that is an error, by Connect's name for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code if code in STATUS else "internal"

    @classmethod
    def of(cls, err: OnetripError) -> "RpcError":
        return cls(_OF.get(err.code, "internal"), f"{err} {err.hint}")

    @property
    def status(self) -> int:
        return STATUS[self.code]

    def body(self) -> dict[str, str]:
        return {"code": self.code, "message": str(self)}


def decode(data: bytes, kind: type[T]) -> T:
    """A message of this kind. Raises RpcError for anything else. Fields that we do not know are left out, as protobuf has it."""
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise RpcError("invalid_argument", f"the message is not what was agreed: {err}") from err


def envelope(message: Any, *, flags: int = 0) -> bytes:
    body = msgspec.json.encode(message)
    return bytes((flags,)) + len(body).to_bytes(4) + body


def end(error: RpcError | None = None) -> bytes:
    """The last envelope of a stream."""
    return envelope({} if error is None else {"error": error.body()}, flags=END)


class Envelopes:
    """Bytes of a request's stream → messages. Holds at most one message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now; the last envelope of a stream is none. Raises RpcError for what is compressed or too large."""
        self._buffer += data
        while len(self._buffer) >= _HEAD:
            flags, size = self._buffer[0], int.from_bytes(self._buffer[1:_HEAD])
            if flags not in (0, END):
                raise RpcError("unimplemented", "compressed messages are not supported")
            if size > MAX_MESSAGE_BYTES:
                raise RpcError("invalid_argument", f"a message of {size} bytes; the most is {MAX_MESSAGE_BYTES}")
            if len(self._buffer) < _HEAD + size:
                return
            message = bytes(self._buffer[_HEAD : _HEAD + size])
            del self._buffer[: _HEAD + size]
            if flags == 0:
                yield message

    @property
    def rest(self) -> int:
        """Bytes of a message that is not whole."""
        return len(self._buffer)
