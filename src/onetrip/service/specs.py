"""From what a request asks to what the engine is given: defaults filled in, caps held, what we cannot do refused by name."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from onetrip import checks
from onetrip.errors import BadRequest
from onetrip.model import Cell, Limits, Policy, SessionSpec, Tool
from onetrip.schema import CellRequest, DeclaredTool, FileContent, LimitsRequest, PolicyRequest, RunRequest, SessionRequest
from onetrip.schemas import Validator
from onetrip.settings import Settings

MAX_FILES: Final = 1000


def session_spec(request: SessionRequest, settings: Settings, server_tools: Sequence[Tool] = ()) -> SessionSpec:
    """Raises BadRequest that names the field."""
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
        tools=_tools(request.tools, server_tools),
        wait_s=request.wait_s or SessionSpec().wait_s,
    )


def shot_spec(request: RunRequest, settings: Settings, server_tools: Sequence[Tool] = ()) -> SessionSpec:
    """What a one-shot is made of. Raises BadRequest that names the field."""
    return SessionSpec(
        environment=request.environment or settings.environment,
        limits=_limits(request.limits, settings),
        policy=_policy(request.policy),
        metadata=request.metadata,
        isolation_floor=request.isolation_floor,
        threads=request.threads,
        checkpoints=0,
        tools=tuple(server_tools),
        wait_s=request.wait_s or SessionSpec().wait_s,
    )


def cell(request: CellRequest, *, final: bool) -> Cell:
    """Raises BadRequest that names the field."""
    if request.tool_choice is not None:
        raise BadRequest(
            "tool_choice: a program calls what it likes", field="tool_choice", hint="Leave it out, and name fewer tools."
        )
    checks.check_source(request.code)
    checks.check_inputs(request.inputs)
    checks.check_timeout(request.timeout_s)
    tools = _tools(request.tools)
    return Cell(code=request.code, inputs=request.inputs, timeout_s=request.timeout_s, final=final or request.final, tools=tools)


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


def _tools(declared: Sequence[DeclaredTool], server_tools: Sequence[Tool] = ()) -> tuple[Tool, ...]:
    """Server tools, and those that the caller declared, whose names win."""
    own = tuple(Tool(**msgspec.structs.asdict(tool)) for tool in declared)
    checks.check_tools(own)
    for i, tool in enumerate(own):
        Validator(tool.input_schema, field=f"tools[{i}].input_schema")
    names = {tool.name for tool in own}
    found = (*(tool for tool in server_tools if tool.name not in names), *own)
    checks.check_tools(found)
    return found
