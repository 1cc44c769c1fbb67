"""What every endpoint does first: whose key or which sandbox it is, and what is asked; and how errors are told."""

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip.api import requests
from onetrip.compat.e2b.connect import MAX_MESSAGE_BYTES, RpcError, decode
from onetrip.compat.e2b.sandboxes import Sandbox, Sandboxes
from onetrip.errors import STATUS, BadRequest, NotFound, OnetripError, Unauthorized
from onetrip.service.service import Service
from onetrip.telemetry import note
from onetrip.tenants import Caller

T = TypeVar("T")


def service(request: Request) -> Service:
    return requests.service(request)


def sandboxes(request: Request) -> Sandboxes:
    found: Sandboxes = request.app.state.sandboxes
    return found


def caller(request: Request) -> Caller:
    """By `X-API-Key`, or a bearer token as in the native interface. Raises Unauthorized, Forbidden, QuotaExceeded."""
    key = request.headers.get("x-api-key") or request.headers.get("authorization", "").partition(" ")[2]
    found = service(request).admit(key.strip() or None, "user", f"{request.method} {request.scope['route'].path}")
    note(tenant=found.tenant)
    return found


class Gone(Exception):
    """The sandbox of a request is not there (any more), or does not run now. Clients know it by the status 502 and these words."""


def sandbox(request: Request) -> Sandbox:
    """That of `E2b-Sandbox-Id`, with one of its tokens. Raises Gone, Unauthorized, BadRequest, QuotaExceeded."""
    named = request.headers.get("e2b-sandbox-id")
    if not named:
        raise BadRequest("there is no E2b-Sandbox-Id", hint="Set E2B_SANDBOX_URL as well as E2B_API_URL.")
    try:
        found = sandboxes(request).get(named)
    except NotFound as err:
        raise Gone(f"The sandbox was not found: {named[:60]}") from err
    if not found.admits(request.headers.get("x-access-token"), request.headers.get("e2b-traffic-access-token")):
        raise Unauthorized("this is no token of the sandbox", hint="Connect to it with `Sandbox.connect(id)`.")
    if found.record.paused:
        raise Gone(f"The sandbox was not found: {named[:60]} is paused; connect to it to let it go on")
    note(tenant=found.caller.tenant)
    service(request).admission.request(found.caller)
    return found


async def body(request: Request, kind: type[T]) -> T:
    """A JSON body; unknown fields are left out. Raises BadRequest, TooLarge."""
    raw = await _read(request)
    try:
        return decode(raw, kind)
    except RpcError as err:
        raise BadRequest(str(err), field="body") from err


async def message(request: Request, kind: type[T]) -> T:
    """The message of a unary call. Raises RpcError, TooLarge."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if content_type != "application/json":
        raise RpcError("unimplemented", "only the JSON codec of Connect is spoken here")
    return decode(await _read(request), kind)


async def _read(request: Request) -> bytes:
    return await requests.read(request, MAX_MESSAGE_BYTES, service(request).settings.stall_s)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json", headers=headers)


def refused(err: OnetripError) -> Response:
    """As the control API, /files and /execute tell an error: a number and a text."""
    status = STATUS.get(err.code, (500, False))[0]
    headers = {} if err.retry_after_s is None else {"Retry-After": str(max(1, round(err.retry_after_s)))}
    return json({"code": status, "message": f"{err} {err.hint}"}, status, headers)


def rpc_refused(err: RpcError) -> Response:
    return json(err.body(), err.status)


def gone(err: Gone) -> Response:
    return json({"sandboxId": "", "message": str(err), "code": 502}, 502)
