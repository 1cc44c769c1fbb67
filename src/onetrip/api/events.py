"""A run's events as Server-Sent Events (WHATWG HTML, section 9.2), at the reader's pace.

A reader that goes away does not end the run, unless it asked for that. One that stays and does not read slows the program down to its
limits, and is dropped when it has taken nothing for `stall_s`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from onetrip.errors import OnetripError
from onetrip.node.messages import Item

PING_S: Final = 15.0  # of silence, before a comment shows that we are there: proxies cut silent connections after 60


def record(item: Item) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (item.number, item.name.encode(), item.data)


class EventStream(Response):
    """`first` is the first event, which somebody has waited for already so that errors before it could still have a status of their own."""

    media_type = "text/event-stream"

    def __init__(
        self, items: AsyncGenerator[Item], first: asyncio.Future[Item | None], *, stall_s: float,
        on_leave: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._items, self._next, self._stall_s, self._on_leave = items, first, stall_s, on_leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI's interface
        left = asyncio.create_task(wait_left(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait([left, sending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = sending.done() and not sending.cancelled() and sending.exception() is None
            for task in (left, sending, self._next):
                await stop(task)
            await self._items.aclose()
            if not ended and self._on_leave is not None:
                await self._on_leave()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while True:
            done, _ = await asyncio.wait([self._next], timeout=PING_S)
            if not done:
                await self._body(send, b": still here\n\n")
                continue
            try:
                item = self._next.result()
            except OnetripError as err:
                # Too late for a status. The reader may ask for the result, which says the same.
                await self._body(send, b": the events cannot be read any further: %b\n\n" % err.code.encode())
                break
            if item is None:
                break
            # What is sent counts as taken only when the next one is asked for.
            await self._body(send, record(item))
            self._next = asyncio.ensure_future(anext(self._items, None))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, send: Send, data: bytes) -> None:
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": data, "more_body": True})


async def wait_left(receive: Receive) -> None:
    """Until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop(task: asyncio.Future[Any]) -> None:
    """Cancel it, wait, and let its end be."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
