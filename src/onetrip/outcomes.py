"""What one run came to: the guest's account, checked, merged with what the kernel and our own clock say."""

import base64
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, cast

import msgspec

from onetrip import wire
from onetrip.model import DisplayData, Isolation, LimitHit, LimitName, Limits, ProgramError, Result, SessionSpec, Status, Usage
from onetrip.tiers.base import Exit

MAX_ACCOUNT_BYTES: Final = 8 << 20
DISPLAY_BYTES: Final = 512  # an event, a result's entry and their dictionaries
_TEXT_MIMES: Final = ("text/", "application/json", "application/javascript", "image/svg+xml")
_SIGNALS: Final = {int(known): known.name for known in signal.Signals}
_UNITS: Final[Mapping[LimitName, str]] = {
    "wall": "s",
    "cpu": "s",
    "memory": "MB",
    "processes": "processes",
    "disk": "MB",
    "output": "MB",
    "tool_calls": "calls",
}

Stopped = LimitName | Literal["interrupt"]
Outcome = tuple[Status, ProgramError | None, LimitHit | None]


class Account(msgspec.Struct, frozen=True):
    """The guest's own account of a run, as `wire.Done` describes it. Claims, every one of them."""

    text: str | None = None
    value: Any = None
    error: ProgramError | None = None
    interrupted: bool = False
    limit: Literal["memory", "disk", "processes"] | None = None
    variables: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=200)] = ()
    notes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=500)], ...], msgspec.Meta(max_length=50)] = ()


@dataclass(slots=True)
class Run:
    """What is known of the open run. `stopped` is the first reason for which it was interrupted."""

    id: str
    limits: Limits
    wall_s: float
    started: float
    late_interrupt: bool = False  # one may wait that was for the run before
    stopped: Stopped | None = None
    account: Account | None = None
    has_checkpoint: bool = False  # of the state before it
    went_back: bool = False  # the session did, to a state before it
    displays: list[DisplayData] = field(default_factory=list[DisplayData])


def read_account(message: wire.Done) -> Account:
    """Decode the account. Raises Violation for what is too long, no JSON, or of other types."""
    raw = message.parts[0]
    if len(raw) > MAX_ACCOUNT_BYTES:
        raise wire.Violation(f"an account of {len(raw)} bytes")
    try:
        return msgspec.json.decode(raw, type=Account)
    except (msgspec.DecodeError, RecursionError):
        pass  # perhaps only because of a lone surrogate, which programs make and JSON's escapes allow
    try:
        return msgspec.convert(_without_surrogates(json.loads(raw, parse_constant=lambda _: None)), Account)
    except (ValueError, RecursionError) as err:  # ValidationError is a ValueError, too
        raise wire.Violation("an account that is not what was agreed") from err


def _without_surrogates(value: Any) -> Any:
    """Show lone surrogates, which no UTF-8 can hold, as the replacement character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in cast("dict[Any, Any]", value).items()}
    return value


def display_size(message: wire.Display) -> int:
    """What a display counts as output: its content, its types, and what it costs us beyond, so that empty ones are bounded, too."""
    return DISPLAY_BYTES + sum(map(len, message.mimes)) + sum(map(len, message.parts))


def read_display(message: wire.Display) -> DisplayData:
    data: dict[str, str] = {}
    for mime, part in zip(message.mimes, message.parts, strict=True):
        is_text = mime.startswith(_TEXT_MIMES) or mime.endswith("+json")
        data[mime] = part.decode("utf-8", "replace") if is_text else base64.b64encode(part).decode("ascii")
    return DisplayData(data, message.is_result)


def from_account(account: Account, limits: Limits, wall_s: float, stopped: Stopped | None) -> Outcome:
    """The guest answered; `stopped` is why we had interrupted it, if we had."""
    if stopped == "interrupt" and account.error is not None:
        return "interrupted", account.error, None
    if stopped is not None and stopped != "interrupt":
        return "limit_exceeded", account.error or limit_error(limits, wall_s, stopped), limit_hit(limits, wall_s, stopped)
    if account.error is None:
        return "completed", None, None
    if account.limit is not None:
        return "limit_exceeded", account.error, limit_hit(limits, wall_s, account.limit)
    return "failed", account.error, None


def from_exit(how: Exit, limits: Limits, wall_s: float, stopped: Stopped | None) -> Outcome:
    """The guest's process ended without an answer."""
    if stopped == "interrupt":
        return "interrupted", ProgramError("KeyboardInterrupt", "it did not end after the interrupt and was killed"), None
    if stopped is not None:
        return "limit_exceeded", limit_error(limits, wall_s, stopped), limit_hit(limits, wall_s, stopped)
    if how.lost is not None:
        return "lost", ProgramError("SandboxLost", how.lost), None
    if how.signal is not None:
        name = _SIGNALS.get(how.signal, f"signal {how.signal}")
        return "failed", ProgramError("ProcessDied", f"the interpreter was killed by {name}"), None
    status = "" if how.code is None else f" with status {how.code}"  # nobody knows it of an orphan
    return "failed", ProgramError("ProcessDied", f"the interpreter ended{status} in the middle of the cell"), None


def never_began(run_id: str, session_id: str | None, queue_ms: float, spec: SessionSpec) -> Result:
    """The result of a run that was interrupted while it waited for its turn."""
    return Result(
        id=run_id,
        session_id=session_id,
        status="interrupted",
        error=ProgramError("KeyboardInterrupt", "interrupted before it began"),
        usage=Usage(queue_ms=queue_ms),
        isolation=Isolation("jail", spec.isolation_floor, ()),
    )


def from_violation(what: str) -> Outcome:
    return "failed", ProgramError("ProtocolViolation", f"the program interfered with the sandbox's own channel: {what}"), None


def limit_hit(limits: Limits, wall_s: float, name: LimitName) -> LimitHit:
    values: dict[LimitName, float] = {
        "wall": wall_s,
        "cpu": limits.cpu_s,
        "memory": limits.memory_mb,
        "processes": limits.processes,
        "disk": limits.disk_mb,
        "output": limits.output_mb,
        "tool_calls": limits.tool_calls,
    }
    return LimitHit(name, values[name], _UNITS[name])


def limit_error(limits: Limits, wall_s: float, name: LimitName) -> ProgramError:
    hit = limit_hit(limits, wall_s, name)
    return ProgramError("LimitExceeded", f"stopped: over the {name} limit of {hit.limit:g} {hit.unit}")
