"""The requests and responses of the native HTTP interface: what the server decodes, the client encodes and the OpenAPI document shows.

Unknown fields are refused by name. Names are those of the interface; units are in them.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from onetrip.model import Effect, FileChange, Isolation, Level, Limits, Mechanism, ModulePolicy

Encoding = Literal["utf-8", "base64"]
OnDisconnect = Literal["continue", "interrupt"]
Name = Annotated[str, Meta(max_length=256)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    pass


class LimitsRequest(Request, frozen=True):
    """What a run may use; a limit that is not named is the server's default. Above the server's caps: 400."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_mb: int | None = None
    processes: int | None = None
    disk_mb: int | None = None
    output_mb: int | None = None
    tool_calls: int | None = None

    def over(self, defaults: Limits) -> Limits:
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(defaults, **given)


class NetworkAllow(Request, frozen=True):
    allow: tuple[str, ...] = ()


class PolicyRequest(Request, frozen=True):
    modules: ModulePolicy = ModulePolicy()
    network: Literal["off"] | NetworkAllow = "off"


class FileContent(Request, frozen=True):
    """A file that is there before the first cell. `path` is relative to the workspace."""

    path: str
    content: str
    encoding: Encoding = "utf-8"


class DeclaredTool(Request, frozen=True):
    """A tool of the caller's: programs call it, the run waits, and the caller answers. See `model.Tool`."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] | None = None
    effect: Effect = "write"
    approval: Literal["never", "required"] = "never"


Patterns = tuple[Annotated[str, Meta(max_length=200)], ...]
WaitS = Annotated[float, Meta(gt=0, le=30 * 86_400)]


class SessionRequest(Request, frozen=True):
    environment: str | None = None
    tools: tuple[DeclaredTool, ...] = ()
    server_tools: Patterns | None = None  # which of the server's tools, such as "shop.*"; none named: all that the key may use
    wait_s: WaitS | None = None  # how long a call waits for the caller; a day, if it is not said
    limits: LimitsRequest = LimitsRequest()
    policy: PolicyRequest = PolicyRequest()
    files: tuple[FileContent, ...] = ()
    metadata: dict[Name, Name] = {}
    idle_timeout_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] | None = None
    isolation_floor: Level = "strict"
    checkpoints: Annotated[int, Meta(ge=0, le=64)] = 8
    on_error: Literal["keep", "rollback"] = "keep"
    threads: Annotated[int, Meta(ge=1, le=256)] = 1


class CellRequest(Request, frozen=True):
    """One cell of a session."""

    code: str
    inputs: dict[str, Any] = {}
    timeout_s: float | None = None
    stream: bool = False
    on_disconnect: OnDisconnect = "continue"
    final: bool = False  # behave at the end as an ending program does: threads joined, exit handlers run
    tools: tuple[DeclaredTool, ...] = ()  # for this cell; whoever asks for it answers their calls
    tool_choice: Any = None


class RunRequest(CellRequest, frozen=True):
    """A one-shot: a cell, and what the session is made of that is made for it."""

    environment: str | None = None
    server_tools: Patterns | None = None
    wait_s: WaitS | None = None
    limits: LimitsRequest = LimitsRequest()
    policy: PolicyRequest = PolicyRequest()
    files: tuple[FileContent, ...] = ()
    metadata: dict[Name, Name] = {}
    isolation_floor: Level = "strict"
    threads: Annotated[int, Meta(ge=1, le=256)] = 1


class Pending(msgspec.Struct, frozen=True):
    """A run that has no result yet."""

    id: str
    session_id: str | None
    status: Literal["queued", "running"]


class ToolFailed(Request, frozen=True):
    """Why a call has no value."""

    message: Annotated[str, Meta(max_length=100_000)]
    type: Literal["error", "timeout", "denied", "arguments"] = "error"
    retryable: bool = False
    code: Annotated[str, Meta(max_length=100)] | None = None


class ToolResult(Request, frozen=True):
    """The answer to one pending call: a value, or an error. Of a call that waits for approval: `approved`, or an error."""

    id: Annotated[str, Meta(max_length=100)]
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # none: null
    approved: bool | None = None
    error: ToolFailed | None = None


class ToolResultsRequest(Request, frozen=True):
    """Answers to calls that a run waits for: any subset, in any order. All are taken or none.

    `wait`: answer with the run's next result; without, at once, with 202.
    """

    results: Annotated[tuple[ToolResult, ...], Meta(min_length=1, max_length=10_000)]
    stream: bool = False
    wait: bool = True


class UndoRequest(Request, frozen=True):
    cells: Annotated[int, Meta(ge=1, le=1000)] = 1


class ForkRequest(Request, frozen=True):
    count: Annotated[int, Meta(ge=1, le=1000)] = 1


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created_at: float  # seconds since 1970
    last_used_at: float
    expires_at: float  # when it ends if nothing is asked of it before
    environment: str
    limits: Limits
    metadata: dict[str, str] = {}
    running: int = 0  # runs that are on their way


class SessionList(msgspec.Struct, frozen=True):
    sessions: tuple[SessionInfo, ...]


class Rewinding(msgspec.Struct, frozen=True):
    """What undo or redo did: how many cells the state now has behind it, and what could not be brought back."""

    cells: int
    note: str | None = None


class ForkResponse(msgspec.Struct, frozen=True):
    sessions: tuple[SessionInfo, ...]


class FileEntry(msgspec.Struct, frozen=True):
    path: str
    size: int
    modified_ns: int


class FileList(msgspec.Struct, frozen=True):
    files: tuple[FileEntry, ...]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with a stable `code`, what to do (`hint`), and which part of the request was wrong (`field`)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    request_id: str
    field: str | None = None


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok", "starting", "draining", "failing"]
    detail: str | None = None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What isolation and limits hold here."""

    version: str
    level: Level | None
    isolation: tuple[Mechanism, ...]
    limits: Limits  # defaults
    caps: Limits
    environments: tuple[str, ...]
    tools: bool = False
    network: bool = False


class ToolInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    effect: Effect
    approval: Literal["never", "required"]
    timeout_s: float | None


class ToolList(msgspec.Struct, frozen=True):
    tools: tuple[ToolInfo, ...] = ()


__all__ = [
    "Capabilities",
    "CellRequest",
    "FileChange",
    "FileContent",
    "FileEntry",
    "FileList",
    "ForkRequest",
    "ForkResponse",
    "Health",
    "Isolation",
    "LimitsRequest",
    "Pending",
    "Problem",
    "Rewinding",
    "RunRequest",
    "SessionInfo",
    "SessionList",
    "SessionRequest",
    "ToolList",
    "UndoRequest",
]
