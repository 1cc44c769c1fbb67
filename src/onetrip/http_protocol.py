"""uvicorn's HTTP protocol with bounds on what a client may hold of us: time and bytes for a head, time in which it takes nothing.

A connection on which no request begins in time is closed (slow loris), so is one whose head, trailers or chunk framing never end
(header bombs), and one to which we have something to say and which does not listen.
"""

import asyncio
from functools import partial
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LINGER_S: Final = 2.0
MAX_HEAD_BYTES: Final = 64 << 10
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 32\r\nconnection: close\r\n\r\nThe head of the request is large"
)


class Protocol(HttpToolsProtocol):
    """`head_s`: for the head of a request to arrive, from its first byte or from the connection; `stall_s`: in which nothing is taken."""

    def __init__(self, *args: Any, head_s: float, stall_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_s, self._stall_s = head_s, stall_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes, when we last looked
        self._idle_bytes = 0  # that came and were neither of a body nor the end of a head
        self._refused = False
        self._active: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._head_s, self._too_slow)
        self._watch_timer = self.loop.call_later(self._stall_s, self._watch)

    def data_received(self, data: bytes) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if self._head_timer is None and (cycle is None or cycle.response_complete):
            self._head_timer = self.loop.call_later(self._head_s, self._too_slow)
        if self._refused:
            return
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        self._stop_timer()
        if not self._refused and len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        if not self._refused:
            super().on_message_complete()

    def _refuse(self) -> None:
        """Too much of a head, or of what frames a body: hear no more of this connection."""
        self._refused = True
        cycle: Any = self.cycle
        if self.transport.is_closing():
            return
        if cycle is None or cycle.response_complete:
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_response_complete(self) -> None:
        active = self._active
        super().on_response_complete()
        if active is not None and active.more_body and not self.transport.is_closing():
            # Answered before the body was there, such as with 413. What is still sent is thrown away for a moment, so that the answer is
            # not lost by a reset; then the connection ends, for a body that may never come.
            self._refused = True
            self._unset_keepalive_if_required()
            self._stop_timer()
            self._head_timer = self.loop.call_later(min(LINGER_S, self._head_s), self._too_slow)
            self.transport.write_eof()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, partial(_saying_so, cycle, app))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        active = self._active  # not `cycle` where another request is waiting behind it: the one that works must hear of it
        if active is not None and not active.response_complete:
            active.disconnected = True
            active.message_event.set()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _watch(self) -> None:
        """Drop a connection that takes nothing: closing it would wait for ever for what is still to be sent."""
        unsent = self.transport.get_write_buffer_size()
        held = self.flow.write_paused or self.transport.is_closing()  # nobody adds to it, so the same size is no progress
        if unsent and unsent == self._unsent and held:
            self.transport.abort()
            return
        self._unsent = unsent
        self._watch_timer = self.loop.call_later(self._stall_s, self._watch)


async def _saying_so(cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """An answer before the body is there says that the connection ends with it: else the next request might be sent into the end."""

    said = False

    async def telling(message: Any) -> None:
        nonlocal said
        early = message["type"] == "http.response.start" and cycle.more_body and cycle.keep_alive
        if early:
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)
        if early:
            said = cycle.keep_alive = True  # for us: `on_response_complete` ends it, after a while for what is still sent
        if said and cycle.response_complete and not cycle.more_body:  # it has come meanwhile, so nothing has to be waited for
            cycle.transport.close()

    await app(scope, receive, telling)


def protocol(head_s: float, stall_s: float) -> Any:
    """The protocol's class for uvicorn, which passes it its own arguments."""
    return partial(Protocol, head_s=head_s, stall_s=stall_s)
