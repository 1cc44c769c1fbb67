"""A response that streams, and notices at once when its client has gone: what makes it is then closed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

TAKE_S: Final = 300.0  # for a client to take the next piece; one that never reads is gone


class Stream(Response):
    """`pieces` is closed in any case. With `keepalive` that piece is sent whenever nothing else was for `every_s`."""

    def __init__(
        self, pieces: AsyncGenerator[bytes], *, media_type: str, keepalive: bytes | None = None, every_s: float = 50.0
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._pieces, self._keepalive, self._every_s = pieces, keepalive, every_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's interface
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait([sending, leaving])
        if not sending.cancelled() and (err := sending.exception()) is not None and not isinstance(err, OSError | TimeoutError):
            raise err

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._pieces) as pieces:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            coming = asyncio.ensure_future(anext(pieces, None))
            try:
                while True:
                    done, _ = await asyncio.wait([coming], timeout=None if self._keepalive is None else self._every_s)
                    piece = coming.result() if done else self._keepalive
                    async with asyncio.timeout(TAKE_S):
                        await send({"type": "http.response.body", "body": piece or b"", "more_body": piece is not None})
                    if piece is None:
                        return
                    if done:
                        coming = asyncio.ensure_future(anext(pieces, None))
            finally:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await coming


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
