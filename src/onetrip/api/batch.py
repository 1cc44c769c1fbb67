"""The endpoint of batches: many calls and cells in one request; their results together, or one by one as they come."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from onetrip.api.events import PING_S, stop, wait_left
from onetrip.api.requests import body, caller, idempotency_key, service
from onetrip.errors import Unavailable
from onetrip.tools.batch import BatchRequest, BatchResult, ItemResult

_encode: Final = msgspec.json.Encoder().encode


class BatchDone(msgspec.Struct, frozen=True):
    """The last event of a stream: how many items there were, and how many did not succeed."""

    items: int
    failed: int


async def create_batch(request: Request) -> Response:
    who = caller(request, "user")
    service(request).refuse_when_draining()
    asked = await body(request, BatchRequest)
    results = service(request).batches.run(who, asked, idempotency_key=idempotency_key(request))
    if asked.stream or "text/event-stream" in request.headers.get("accept", ""):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(results), media_type="text/event-stream", headers=headers)
    collecting = asyncio.create_task(_collect(results))
    left = asyncio.create_task(wait_left(request.receive))
    try:
        await asyncio.wait([collecting, left], return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise Unavailable("the caller went away")  # nobody reads this
        found = {result.id: result for result in collecting.result()}
    finally:
        await stop(collecting)
        await stop(left)
    ordered = BatchResult(tuple(found[item.id] for item in asked.items))
    return Response(_encode(ordered), media_type="application/json")


async def _collect(results: AsyncGenerator[ItemResult]) -> list[ItemResult]:
    async with contextlib.aclosing(results):
        return [result async for result in results]


async def _events(results: AsyncGenerator[ItemResult]) -> AsyncGenerator[bytes]:
    """Server-Sent Events: `item` for each, then `done`."""
    number = failed = 0
    waiting: asyncio.Future[ItemResult | None] | None = None
    try:
        async with contextlib.aclosing(results):
            while True:
                waiting = asyncio.ensure_future(anext(results, None))
                while not (await asyncio.wait([waiting], timeout=PING_S))[0]:
                    yield b": still here\n\n"
                if (result := waiting.result()) is None:
                    break
                number, failed = number + 1, failed + (result.status != "ok")
                yield b"id: %d\nevent: item\ndata: %b\n\n" % (number, _encode(result))
        yield b"id: %d\nevent: done\ndata: %b\n\n" % (number + 1, _encode(BatchDone(number, failed)))
    finally:
        if waiting is not None:
            await stop(waiting)
