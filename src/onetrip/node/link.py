"""Frames over a Unix stream socket, with descriptors, for both ends: length, MessagePack, as much as fits at once.

Sending never waits: what the socket does not take is buffered, and `wait_room` lets a sender of much hold back. Reading is by callback.
"""

import asyncio
import collections
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

HIGH_BYTES: Final = 4 << 20  # buffered before `wait_room` waits
MAX_FRAME_BYTES: Final = 1 << 30
MAX_FDS: Final = 16  # in one read
READ_BYTES: Final = 256 << 10
_LENGTH: Final = 4


class Link:
    """One connection. `on_message` gets each decoded message and takes descriptors by `take_fds`; `on_closed` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[Any],
        on_message: Callable[[Any], None],
        on_closed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock, self._decoder = sock, decoder
        self._on_message, self._on_closed = on_message, on_closed
        self._loop = asyncio.get_running_loop()
        self._encoder = msgspec.msgpack.Encoder()
        self._out: collections.deque[tuple[memoryview, tuple[int, ...]]] = collections.deque()
        self._out_bytes = 0
        self._in = bytearray()
        self._fds: collections.deque[int] = collections.deque()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def fd(self) -> int:
        """Of the socket, to look at."""
        return self._sock.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send a frame; `fds` are the link's from now on. Does nothing on a closed link."""
        if self.closed:
            _close(fds)
            return
        body = self._encoder.encode(message)
        frame = memoryview(len(body).to_bytes(_LENGTH) + body)
        if not self._out:
            frame, fds = self._send_now(frame, tuple(fds))
            if not frame or self.closed:
                _close(fds)
                return
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._out.append((frame, tuple(fds)))
        self._out_bytes += len(frame)
        if self._out_bytes > HIGH_BYTES:
            self._room.clear()

    async def wait_room(self) -> None:
        """Until the other end has taken most of what was sent, or the link is closed."""
        await self._room.wait()

    def take_fds(self, count: int) -> list[int]:
        """The descriptors that came with the message at hand; they are the caller's from now on."""
        return [self._fds.popleft() for _ in range(min(count, len(self._fds)))]

    def close(self) -> None:
        """Closing twice does no harm; `on_closed` is called the first time."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._out:
            _close(fds)
        self._out.clear()
        _close(self._fds)
        self._room.set()
        self._on_closed()

    # ------------------------------------------------------------------ inside

    def _send_now(self, frame: memoryview, fds: tuple[int, ...]) -> tuple[memoryview, tuple[int, ...]]:
        """Send what the socket takes; give back the rest."""
        try:
            while frame:
                if fds:
                    sent = socket.send_fds(self._sock, [frame], fds)
                    _close(fds)
                    fds = ()
                else:
                    sent = self._sock.send(frame)
                frame = frame[sent:]
        except BlockingIOError:
            pass
        except OSError:  # the other end is gone
            self.close()
        return frame, fds

    def _writable(self) -> None:
        while self._out and not self.closed:
            frame, fds = self._out[0]
            before = len(frame)
            frame, fds = self._send_now(frame, fds)
            if self.closed:
                _close(fds)
                return
            self._out_bytes -= before - len(frame)
            if frame:
                self._out[0] = frame, fds
                break
            self._out.popleft()
        if self._out_bytes <= HIGH_BYTES // 2:
            self._room.set()
        if not self._out:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._sock, READ_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds.extend(fds)
        if not data:
            self.close()
            return
        buffer = self._in
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH and not self.closed:
            size = int.from_bytes(buffer[at : at + _LENGTH])
            if size > MAX_FRAME_BYTES:
                self.close()
                return
            if len(buffer) - at - _LENGTH < size:
                break
            try:
                message = self._decoder.decode(memoryview(buffer)[at + _LENGTH : at + _LENGTH + size])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.close()
                return
            at += _LENGTH + size
            self._on_message(message)
        del buffer[:at]


def _close(fds: Sequence[int] | collections.deque[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
