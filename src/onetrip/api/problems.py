"""Errors as `application/problem+json` (RFC 9457), from the one table code → status."""

import math
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from onetrip.errors import STATUS, OnetripError
from onetrip.schema import Problem
from onetrip.telemetry import current

MEDIA_TYPE: Final = "application/problem+json"


class ProblemResponse(Response):
    media_type = MEDIA_TYPE


def request_id(scope: Any) -> str:
    """Of a request: the one that the middleware gave it, so that logs, traces and answers can be put together."""
    info = current()
    if info is not None:
        return info.request_id
    state: dict[str, Any] = scope.setdefault("state", {})
    found: str = state.setdefault("request_id", f"req_{secrets.token_hex(8)}")
    return found


def problem(error: OnetripError, request: str) -> ProblemResponse:
    status = STATUS.get(error.code, (500, False))[0]
    body = Problem(
        type=f"urn:onetrip:problem:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        code=error.code,
        hint=error.hint,
        request_id=request,
        field=error.field,
    )
    headers: dict[str, str] = {}
    if error.retry_after_s is not None or status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemResponse(msgspec.json.encode(body), status, headers)


def plain(status: int, detail: str, request: str, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    """An error of HTTP itself, such as a path that there is not."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "bad_request")
    body = Problem(
        type=f"urn:onetrip:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        hint="`/openapi.json` lists every path and method; `/docs` shows them.",
        request_id=request,
    )
    return ProblemResponse(msgspec.json.encode(body), status, headers)
