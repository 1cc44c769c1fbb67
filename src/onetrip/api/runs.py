"""Endpoints of runs: one-shots, cells, results, events, interrupts."""

import asyncio
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip.api.events import PING_S, EventStream, stop, wait_left
from onetrip.api.requests import body, caller, idempotency_key, service, whole_number
from onetrip.calls import NOT_APPROVED
from onetrip.errors import BadRequest, OnetripError
from onetrip.model import ToolAnswer, ToolFailure
from onetrip.schema import CellRequest, Pending, RunRequest, ToolResult, ToolResultsRequest
from onetrip.service import specs
from onetrip.service.records import Run
from onetrip.telemetry import note
from onetrip.tenants import Caller

MAX_WAIT_S: Final = 60
Asked = TypeVar("Asked", bound=CellRequest)
JSON: Final = "application/json"


async def create_run(request: Request) -> Response:
    who = caller(request, "user")
    service(request).refuse_when_draining()
    asked = _streamed(request, await body(request, RunRequest))
    run = service(request).runs.begin_shot(who, asked, idempotency_key=idempotency_key(request))
    return await _answer(request, who, run, asked)


async def create_cell(request: Request) -> Response:
    who = caller(request, "user")
    service(request).refuse_when_draining()
    asked = _streamed(request, await body(request, CellRequest))
    run = service(request).runs.begin_cell(who, request.path_params["sid"], asked, idempotency_key=idempotency_key(request))
    return await _answer(request, who, run, asked)


def _streamed(request: Request, asked: Asked) -> Asked:
    """With what the `Accept` header says."""
    return msgspec.structs.replace(asked, stream=True) if "text/event-stream" in request.headers.get("accept", "") else asked


async def _answer(request: Request, who: Caller, run: Run, asked: CellRequest) -> Response:
    note(run_id=run.id, session_id=run.session_id)
    interrupts = asked.on_disconnect == "interrupt"
    if asked.stream:
        return await _stream(request, who, run.id, 0, interrupts=interrupts)
    if interrupts:
        await _or_interrupt(request, who, run)
    return Response(await run.wait(), media_type=JSON, headers={"Location": f"/v1/runs/{run.id}"})


async def _or_interrupt(request: Request, who: Caller, run: Run) -> None:
    """Wait for the end of the run, or of the connection, which ends the run."""

    left = asyncio.create_task(wait_left(request.receive))
    settled = asyncio.create_task(run.settled.wait())
    try:
        await asyncio.wait([left, settled], return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            await service(request).runs.interrupt(who, run.id)
    finally:
        await stop(left)
        await stop(settled)


async def _stream(request: Request, who: Caller, run_id: str, after: int, *, interrupts: bool = False) -> Response:
    runs = service(request).runs
    items = runs.events(who, run_id, after)
    first = asyncio.ensure_future(anext(items, None))
    left = asyncio.create_task(wait_left(request.receive))
    try:  # what cannot begin still gets a status of its own, unless that takes long
        await asyncio.wait([first, left], timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
        nothing = first.done() and first.result() is None
    except BaseException:
        await stop(first)
        await items.aclose()
        raise
    finally:
        await stop(left)
    if nothing:  # it ended before: 204 tells a browser's EventSource not to ask again
        await items.aclose()
        return Response(status_code=204)

    async def interrupt() -> None:
        await runs.interrupt(who, run_id)

    return EventStream(items, first, stall_s=service(request).settings.stall_s, on_leave=interrupt if interrupts else None)


async def get_run(request: Request) -> Response:
    who = caller(request, "reader")
    wait_s = whole_number(request.query_params.get("wait_s"), "wait_s", low=0, high=MAX_WAIT_S, default=0)
    found = await service(request).runs.result(who, request.path_params["rid"], wait_s=wait_s)
    if isinstance(found, bytes):
        return Response(found, media_type=JSON)
    pending = Pending(found.id, found.session_id, found.state)
    return Response(msgspec.json.encode(pending), 202, {"Retry-After": "1"}, JSON)


async def get_events(request: Request) -> Response:
    who = caller(request, "reader")
    last = request.headers.get("last-event-id", request.query_params.get("after"))
    after = whole_number(last, "Last-Event-ID", low=0, high=10**12, default=0)
    return await _stream(request, who, request.path_params["rid"], after)


async def interrupt_run(request: Request) -> Response:
    who = caller(request, "user")
    await service(request).runs.interrupt(who, request.path_params["rid"])
    return Response(status_code=204)


async def answer_tools(request: Request) -> Response:
    who, run_id = caller(request, "user"), request.path_params["rid"]
    try:
        asked = await body(request, ToolResultsRequest)
        answers = tuple(_answer_of(result, f"results[{i}]") for i, result in enumerate(asked.results))
        fingerprint, key = specs.fingerprint(f"answers {run_id}", asked), idempotency_key(request)
    except OnetripError as err:
        service(request).tools.refused(run_id, err)
        raise
    streamed = asked.stream or "text/event-stream" in request.headers.get("accept", "")
    run, number = await service(request).runs.answer(who, run_id, answers, fingerprint, idempotency_key=key)
    if streamed:
        return await _stream(request, who, run_id, number)
    if asked.wait:
        return Response(await run.wait(), media_type=JSON)
    return Response(msgspec.json.encode(Pending(run_id, None, "running")), 202, {"Retry-After": "1"}, JSON)


def _answer_of(result: ToolResult, field: str) -> ToolAnswer:
    if result.error is not None:
        failed = result.error
        return ToolAnswer(result.id, error=ToolFailure(failed.message, failed.type, failed.retryable, failed.code))
    if result.approved is not None:
        return ToolAnswer(result.id, b"true") if result.approved else ToolAnswer(result.id, error=NOT_APPROVED)
    value = b"null" if isinstance(result.value, msgspec.UnsetType) else bytes(result.value)
    try:
        msgspec.json.decode(value)  # a raw value was skipped over, not checked
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRequest(f"{field}.value: not JSON: {err}", field=f"{field}.value") from err
    return ToolAnswer(result.id, value)
