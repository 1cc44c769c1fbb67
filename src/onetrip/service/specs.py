"""From what a request asks to what the engine is given: defaults filled in, caps held, what we cannot do refused by name."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from onetrip import checks
from onetrip.errors import BadRequest
from onetrip.model import Cell, Limits, Policy, SessionSpec
from onetrip.schema import CellRequest, FileContent, LimitsRequest, PolicyRequest, RunRequest, SessionRequest
from onetrip.settings import Settings

MAX_FILES: Final = 1000
_LATER: Final = "This version runs programs without tools."


def session_spec(request: SessionRequest, settings: Settings) -> SessionSpec:
    """Raises BadRequest that names the field."""
    _refuse_tools(request.tools)
    return SessionSpec(
        environment=request.environment or settings.environment,
        limits=_limits(request.limits, settings),
        policy=_policy(request.policy),
        metadata=request.metadata,
        idle_timeout_s=request.idle_timeout_s or settings.idle_timeout_s,
        isolation_floor=request.isolation_floor,
        checkpoints=request.checkpoints,
        on_error=request.on_error,
        threads=request.threads,
    )


def shot_spec(request: RunRequest, settings: Settings) -> SessionSpec:
    """What a one-shot is made of. Raises BadRequest that names the field."""
    return SessionSpec(
        environment=request.environment or settings.environment,
        limits=_limits(request.limits, settings),
        policy=_policy(request.policy),
        metadata=request.metadata,
        isolation_floor=request.isolation_floor,
        threads=request.threads,
        checkpoints=0,
    )


def cell(request: CellRequest, *, final: bool) -> Cell:
    """Raises BadRequest that names the field."""
    _refuse_tools(request.tools)
    if request.tool_choice is not None:
        raise BadRequest("tool_choice: there are no tools", field="tool_choice", hint=_LATER)
    checks.check_source(request.code)
    checks.check_inputs(request.inputs)
    checks.check_timeout(request.timeout_s)
    return Cell(code=request.code, inputs=request.inputs, timeout_s=request.timeout_s, final=final or request.final)


def contents(files: Iterable[FileContent]) -> dict[str, bytes]:
    """Files by path. Raises BadRequest."""
    found: dict[str, bytes] = {}
    for number, file in enumerate(files):
        if number >= MAX_FILES:
            raise BadRequest(f"files: more than {MAX_FILES}", field="files", hint="Send an archive, or one file after the other.")
        if file.path in found:
            raise BadRequest(f"files[{number}].path: {file.path[:60]!r} is there twice", field=f"files[{number}].path")
        try:
            found[file.path] = (
                base64.b64decode(file.content, validate=True) if file.encoding == "base64" else file.content.encode()
            )
        except (binascii.Error, ValueError) as err:  # a lone surrogate is a UnicodeError, which is a ValueError
            raise BadRequest(f"files[{number}].content: {err}", field=f"files[{number}].content") from err
    return found


def fingerprint(kind: str, request: msgspec.Struct) -> str:
    """Tells whether two requests under one idempotency key are the same."""
    return hashlib.sha256(kind.encode() + b"\0" + msgspec.json.encode(request, order="sorted")).hexdigest()


def caps(settings: Settings) -> Limits:
    return Limits(**msgspec.structs.asdict(settings.caps))


def _limits(asked: LimitsRequest, settings: Settings) -> Limits:
    limits = asked.over(settings.limits)
    checks.check_limits(limits)
    highest = settings.caps
    for name in limits.__struct_fields__:
        if getattr(limits, name) > getattr(highest, name):
            raise BadRequest(
                f"limits.{name}: {getattr(limits, name):g} is over this server's cap of {getattr(highest, name):g}",
                field=f"limits.{name}",
                hint="Ask for less, or raise it under [caps] in the server's configuration.",
            )
    return limits


def _policy(asked: PolicyRequest) -> Policy:
    if asked.network != "off":
        raise BadRequest(
            "policy.network: programs have no network here",
            field="policy.network",
            hint="Fetch what the program needs before, and pass it as a file.",
        )
    return Policy(modules=asked.modules)


def _refuse_tools(tools: tuple[Mapping[str, object], ...]) -> None:
    if tools:
        raise BadRequest("tools: this server cannot carry tool calls yet", field="tools", hint=_LATER)
