"""Endpoints of sessions: open, list, inspect, close, undo, redo, fork."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip.api.requests import body, caller, idempotency_key, service
from onetrip.api.runs import JSON
from onetrip.schema import ForkRequest, ForkResponse, SessionList, SessionRequest, UndoRequest


def _json(value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, JSON)


async def create_session(request: Request) -> Response:
    who = caller(request, "user")
    service(request).refuse_when_draining()
    asked = await body(request, SessionRequest, may_be_empty=True)
    session = await service(request).sessions.open(who, asked, idempotency_key=idempotency_key(request))
    return _json(session.info(), 201, {"Location": f"/v1/sessions/{session.id}"})


async def list_sessions(request: Request) -> Response:
    who = caller(request, "reader")
    return _json(SessionList(tuple(session.info() for session in service(request).sessions.of(who))))


async def get_session(request: Request) -> Response:
    who = caller(request, "reader")
    return _json(service(request).sessions.get(who, request.path_params["sid"]).info())


async def delete_session(request: Request) -> Response:
    who = caller(request, "user")
    await service(request).sessions.close(who, request.path_params["sid"])
    return Response(status_code=204)


async def undo(request: Request) -> Response:
    return await _rewind(request, forward=False)


async def redo(request: Request) -> Response:
    return await _rewind(request, forward=True)


async def _rewind(request: Request, *, forward: bool) -> Response:
    who = caller(request, "user")
    asked = await body(request, UndoRequest, may_be_empty=True)
    key = idempotency_key(request)
    sessions = service(request).sessions
    return _json(await sessions.undo(who, request.path_params["sid"], asked, forward=forward, idempotency_key=key))


async def fork(request: Request) -> Response:
    who = caller(request, "user")
    service(request).refuse_when_draining()
    asked = await body(request, ForkRequest, may_be_empty=True)
    key = idempotency_key(request)
    branches = await service(request).sessions.fork(who, request.path_params["sid"], asked, idempotency_key=key)
    return _json(ForkResponse(tuple(branch.info() for branch in branches)), 201)
