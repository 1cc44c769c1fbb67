"""What every endpoint does first: who calls, may they, and what do they ask; decoded once into frozen types."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from onetrip.errors import BadRequest, TooLarge
from onetrip.service.service import Service
from onetrip.settings import Role
from onetrip.telemetry import note
from onetrip.tenants import Caller

MAX_KEY: Final = 255
T = TypeVar("T")
_AT: Final = re.compile(r"^(?P<what>.*) - at `(?P<path>.*)`$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>.*)`$", re.DOTALL)
_decoders: Final[dict[type, msgspec.json.Decoder[object]]] = {}


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def token(request: Request) -> str | None:
    """Of the `Authorization` header (RFC 6750)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() or None if scheme.lower() == "bearer" else None


def caller(request: Request, role: Role) -> Caller:
    """Who calls, with at least this role; counts the request. Raises Unauthorized, Forbidden, QuotaExceeded."""
    found = service(request).admit(token(request), role, f"{request.method} {request.scope['route'].path}")
    note(tenant=found.tenant)
    return found


def idempotency_key(request: Request) -> str | None:
    """Raises BadRequest for one that is empty, too long or not printable ASCII."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
        raise BadRequest(f"Idempotency-Key: 1 to {MAX_KEY} printable ASCII characters", field="Idempotency-Key")
    return key


async def body(request: Request, kind: type[T], *, may_be_empty: bool = False) -> T:
    """The JSON body. Raises TooLarge, BadRequest that names the field."""
    settings = service(request).settings
    raw = await read(request, settings.max_body_mb << 20, settings.stall_s)
    if not raw and may_be_empty:
        raw = b"{}"
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        found = decoder.decode(raw)
    except msgspec.ValidationError as err:
        message, field = _said(str(err))
        raise BadRequest(message, field=field) from err
    except msgspec.DecodeError as err:
        raise BadRequest(f"the body is not JSON: {err}", hint="Send one JSON object, in UTF-8.") from err
    except (UnicodeDecodeError, RecursionError) as err:
        raise BadRequest("the body is not JSON in UTF-8, or nested too deeply") from err
    assert isinstance(found, kind)
    return found


async def read(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises TooLarge, BadRequest when it does not come in time or whole."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLarge(f"the body has {length} bytes; at most {max_bytes} are taken")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise TooLarge(f"the body has more than {max_bytes} bytes")
                parts.append(part)
    except TimeoutError as err:
        raise BadRequest(f"the body did not arrive within {timeout_s:g} s") from err
    except ClientDisconnect as err:
        raise BadRequest("the body ended early") from err
    return b"".join(parts)


async def pieces(request: Request) -> AsyncGenerator[bytes]:
    """The body of an upload as it comes. Raises BadRequest when nothing comes for too long, or it ends early."""
    stream, stall_s = request.stream(), service(request).settings.stall_s
    while True:
        try:
            async with asyncio.timeout(stall_s):
                piece = await anext(stream, None)
        except TimeoutError as err:
            raise BadRequest(f"no more of the body arrived for {stall_s:g} s; the file is as it was") from err
        except ClientDisconnect as err:
            raise BadRequest("the body ended early; the file is as it was") from err
        if piece is None:
            return
        yield piece


def _said(message: str) -> tuple[str, str | None]:
    """msgspec's words, and the field that they are about as `a.b[0].c`."""
    found = _AT.match(message)
    what, path = (found["what"], found["path"].removeprefix("$").removeprefix(".")) if found else (message, "")
    for pattern, said in ((_UNKNOWN, "there is no such field"), (_MISSING, "is required")):
        if (named := pattern.match(what)) is not None:
            field = f"{path}.{named['name']}" if path else named["name"]
            return f"{field[:200]}: {said}", field[:200]
    return (f"{path}: {what}" if path else what), path or None


def whole_number(text: str | None, name: str, *, low: int, high: int, default: int) -> int:
    """A number in a query or header. Raises BadRequest."""
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or not low <= int(text) <= high:
        raise BadRequest(f"{name}: a whole number from {low} to {high}, not {text[:40]!r}", field=name)
    return int(text)
