"""Connect's `process.Process`: commands started, followed, spoken to and ended; see `processes`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from onetrip.compat.e2b import connect, filesystem
from onetrip.compat.e2b.connect import Envelopes, RpcError
from onetrip.compat.e2b.processes import Process, Processes, Reader
from onetrip.compat.e2b.requests import json, message, sandbox, service
from onetrip.compat.e2b.shapes import PathRequest, Start, Streamed, ToProcess
from onetrip.compat.e2b.streams import Stream
from onetrip.errors import OnetripError

STREAM: Final = "application/connect+json"
INPUT_S: Final = 600.0  # between two messages of an input stream
MAX_TIMEOUT_MS: Final = 10**10
T = TypeVar("T")


async def start(request: Request) -> Response:
    """The command goes on when its client leaves; its deadline ends it."""
    box = sandbox(request)
    process, reader = await box.processes.start(await _first(request, Start), _timeout_s(request))
    return _follow(request, box.processes, process, reader)


async def connect_to(request: Request) -> Response:
    box = sandbox(request)
    process = box.processes.find((await _first(request, ToProcess)).process)
    reader = Reader()
    process.readers.add(reader)
    return _follow(request, box.processes, process, reader)


def _follow(request: Request, processes: Processes, process: Process, reader: Reader) -> Response:
    async def pieces() -> AsyncGenerator[bytes]:
        updates = processes.updates(process, reader)
        async with contextlib.aclosing(updates):
            async for update in updates:
                yield connect.envelope({"event": update})

    return _stream(request, pieces(), {"event": {"keepalive": {}}})


async def watch_dir(request: Request) -> Response:
    box, asked = sandbox(request), await _first(request, PathRequest)
    return _stream(request, filesystem.watch_dir(box, asked), filesystem.KEEPALIVE)


def _stream(request: Request, pieces: AsyncGenerator[bytes], keepalive: object) -> Response:
    async def ended() -> AsyncGenerator[bytes]:
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except RpcError as err:
            yield connect.end(err)
        except OnetripError as err:
            yield connect.end(RpcError.of(err))
        else:
            yield connect.end()

    asked = request.headers.get("keepalive-ping-interval", "")
    every_s = min(max(float(asked), 1.0), 600.0) if asked.isdecimal() and len(asked) < 6 else 90.0
    return Stream(ended(), media_type=STREAM, keepalive=connect.envelope(keepalive), every_s=every_s)


async def _first(request: Request, kind: type[T]) -> T:
    """The one message of a stream's request."""
    envelopes = Envelopes()
    _check_stream(request)
    try:
        async with asyncio.timeout(service(request).settings.stall_s):
            async for piece in request.stream():
                for found in envelopes.feed(piece):
                    return connect.decode(found, kind)
    except ClientDisconnect as err:
        raise RpcError("canceled", "the request ended early") from err
    except TimeoutError as err:
        raise RpcError("deadline_exceeded", "the request did not arrive in time") from err
    raise RpcError("invalid_argument", "the request holds no whole message")


def _check_stream(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip() != STREAM:
        raise RpcError("unimplemented", "only the JSON codec of Connect is spoken here")


def _timeout_s(request: Request) -> float | None:
    given = request.headers.get("connect-timeout-ms")
    if given is None:
        return None
    if not given.isdecimal() or not 0 < int(given[:12]) <= MAX_TIMEOUT_MS:
        raise RpcError("invalid_argument", "Connect-Timeout-Ms: a number of milliseconds")
    return int(given) / 1e3


async def list_all(request: Request) -> Response:
    box = sandbox(request)
    await message(request, ToProcess)
    return json({"processes": box.processes.list()})


async def send_input(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, ToProcess)
    await _send(box.processes, box.processes.find(asked.process), asked)
    return json({})


async def _send(processes: Processes, process: Process, asked: ToProcess) -> None:
    if asked.input.pty is not None:
        raise RpcError("unimplemented", "sandboxes have no terminals (pty)")
    await processes.send(process, asked.input.stdin or b"")


async def stream_input(request: Request) -> Response:
    """Many messages: the process first, then what it gets. The answer is one empty message."""
    box = sandbox(request)
    _check_stream(request)
    envelopes = Envelopes()
    process: Process | None = None
    stream = request.stream()
    try:
        while (piece := await _next(stream)) is not None:
            for found in envelopes.feed(piece):
                asked = connect.decode(found, Streamed)
                if asked.start is not None:
                    process = box.processes.find(asked.start.process)
                elif asked.data is not None:
                    if process is None:
                        raise RpcError("invalid_argument", "the first message names the process")
                    await _send(box.processes, process, asked.data)
    except ClientDisconnect as err:
        raise RpcError("canceled", "the request ended early") from err
    return Response(connect.envelope({}) + connect.end(), media_type=STREAM)


async def _next(stream: AsyncGenerator[bytes]) -> bytes | None:
    """The next piece; a client that has nothing to say says that it is still there."""
    try:
        async with asyncio.timeout(INPUT_S):
            return await anext(stream, None)
    except TimeoutError as err:
        raise RpcError("deadline_exceeded", f"no input for {INPUT_S:.0f} s") from err


async def send_signal(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, ToProcess)
    await box.processes.signal(box.processes.find(asked.process), asked.signal)
    return json({})


async def close_stdin(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, ToProcess)
    await box.processes.close_stdin(box.processes.find(asked.process))
    return json({})


async def update(request: Request) -> Response:
    sandbox(request)
    raise RpcError("unimplemented", "sandboxes have no terminals (pty), so there is no size to change")
