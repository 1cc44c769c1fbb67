"""The frozen types that travel between the layers: what a caller asks for and what a run gave.

Names and defaults are those of the native interface. Units are in the names. Decoding and validation of requests happens
once, at the edge, by `msgspec`; nothing below this file sees a dictionary.
"""

from typing import Any, Literal

import msgspec

Status = Literal["completed", "failed", "limit_exceeded", "waiting", "interrupted", "lost"]
LimitName = Literal["wall", "cpu", "memory", "processes", "disk", "output", "tool_calls"]
Level = Literal["strict", "reduced"]
Effect = Literal["pure", "read", "write"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one run, and the whole process tree behind it, may use. Defaults are the product's; policy may cap them."""

    wall_s: float = 60.0
    cpu_s: float = 60.0  # of all processes of the sandbox together
    memory_mb: int = 1024  # everything the sandbox holds in memory, its files included
    processes: int = 64  # processes and threads
    disk_mb: int = 512  # the workspace, and again the scratch directories
    output_mb: int = 10  # stdout + stderr of one run
    tool_calls: int = 1000


class ModulePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Top-level module names a program may import. Guidance to the model that writes it, not a wall."""

    allow: tuple[str, ...] | None = None  # None: everything that is not denied
    deny: tuple[str, ...] = ()


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    modules: ModulePolicy = ModulePolicy()
    network: Literal["off"] = "off"


# ---------------------------------------------------------------------------------------------------- tools


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A function that a program can call, as its writer needs to know it; a client tool is declared as this."""

    name: str  # identifiers, joined by dots: "get_weather", "shop.find"; what comes before the last dot is its namespace
    description: str = ""
    input_schema: dict[str, Any] = {}  # JSON Schema of an object, its properties in the order of the parameters; {}: anything
    output_schema: dict[str, Any] | None = None
    effect: Effect = "write"  # what a call changes: nothing and always the same · nothing · something
    approval: Literal["never", "required"] = "never"  # whether somebody must allow each call before it is made
    timeout_s: float | None = None  # of one call; None: the default of whoever answers it
    side: Literal["server", "client"] = "client"  # who answers: we, or whoever asked for the run


class ToolRequest(msgspec.Struct, frozen=True):
    """One call that somebody has to answer. What the arguments say is the program's, and already known to be a JSON object."""

    id: str  # the same for the same call of the same run, in whatever order calls arrive; an idempotency key for what the tool does
    tool: str
    arguments: bytes  # JSON
    run_id: str
    session_id: str | None = None


class ToolFailure(msgspec.Struct, frozen=True):
    """Why a call has no value. The program gets `ToolError`, `ToolTimeout`, `ToolDenied` or `ToolArgumentError`."""

    message: str
    type: Literal["error", "timeout", "denied", "arguments"] = "error"
    retryable: bool = False  # whether the same call may succeed later
    code: str | None = None  # a stable word for programs, such as "circuit_open"


class ToolAnswer(msgspec.Struct, frozen=True):
    """What a call gave: a value as JSON, or a failure."""

    id: str
    value: bytes = b"null"
    error: ToolFailure | None = None


class SessionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a session, or a one-shot, is made of."""

    environment: str = "default"
    limits: Limits = Limits()
    policy: Policy = Policy()
    metadata: dict[str, str] = {}
    idle_timeout_s: float | None = None
    isolation_floor: Level = "strict"
    checkpoints: int = 8  # how many cells can be undone; 0: none, and a cell that is killed ends the session
    on_error: Literal["keep", "rollback"] = "keep"  # what becomes of the state when a cell raises
    tools: tuple[Tool, ...] = ()  # that its programs can call
    wait_s: float = 24 * 3600.0  # how long a call waits for the caller's answer
    siblings: int = 0  # how many more interpreters may work beside it, on its files; then its home folder is its workspace
    threads: int = 1  # of OpenMP and BLAS; more than one means no checkpoints, as such threads do not survive a fork


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of source to run. `inputs` become variables; they are JSON values."""

    code: str
    inputs: dict[str, Any] = {}
    timeout_s: float | None = None  # overrides `limits.wall_s` for this cell
    final: bool = False  # a one-shot: behaves at its end as an ending program does
    tools: tuple[Tool, ...] = ()  # for this cell, beside those of its session; answered by whoever asked for it


# ---------------------------------------------------------------------------------------------------- the result


class Truncated(msgspec.Struct, frozen=True):
    stdout: bool = False
    stderr: bool = False


class DisplayData(msgspec.Struct, frozen=True):
    """One rich output: MIME type → text, or base64 where the type is binary."""

    data: dict[str, str]
    is_result: bool = False


class ProgramError(msgspec.Struct, frozen=True):
    """What the program raised, or how its process died."""

    type: str
    message: str
    traceback: str = ""  # the program's own frames only
    line: int | None = None  # line of the cell, counted from 1


class LimitHit(msgspec.Struct, frozen=True):
    name: LimitName
    limit: float
    unit: str


class FileChange(msgspec.Struct, frozen=True, gc=False):
    path: str  # relative to the workspace
    size: int
    change: Literal["created", "modified", "deleted"]


class FileInfo(msgspec.Struct, frozen=True, gc=False):
    """A file of a session, as a listing has it."""

    path: str  # relative to the workspace
    size: int
    modified_ns: int


class ToolCall(msgspec.Struct, frozen=True):
    """A line of the ledger: one call that a program made."""

    id: str
    tool: str
    arguments: Any
    status: Literal["ok", "error", "denied", "timeout", "pending", "cancelled"]
    started_ms: float  # since the run began
    duration_ms: float
    preview: str | None = None  # the beginning of the value, or of what went wrong
    reused: bool = False  # it was not made again: an earlier program that failed had made it


class PendingCall(msgspec.Struct, frozen=True):
    """A call that waits for whoever asked for the run: for its answer, or for the permission to make it."""

    id: str
    tool: str
    arguments: Any
    kind: Literal["call", "approval"] = "call"


class SessionState(msgspec.Struct, frozen=True):
    """What became of the session. `note` says why there is no checkpoint, what could not be brought back, or how it ended.

    `variables` is told of a cell that failed and was not rolled back: the names that the next one finds, as the program says.
    """

    survived: bool
    rolled_back: bool = False  # the state is that before this cell
    checkpoint: bool = False  # there was a checkpoint of the state before this cell
    note: str | None = None
    variables: tuple[str, ...] = ()


class Rewound(msgspec.Struct, frozen=True):
    """What `undo` or `redo` did: how many cells the state now has behind it, and what could not be brought back."""

    cells: int
    note: str | None = None


class Usage(msgspec.Struct, frozen=True):
    queue_ms: float = 0.0
    start_ms: float = 0.0
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    peak_memory_bytes: int = 0
    output_bytes: int = 0


class Isolation(msgspec.Struct, frozen=True):
    tier: str
    level: Level
    mechanisms: tuple[str, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one run gave. A program that fails is a result, never an exception."""

    id: str
    session_id: str | None
    status: Status
    text: str | None = None
    value: Any = None
    stdout: str = ""
    stderr: str = ""
    truncated: Truncated = Truncated()
    displays: tuple[DisplayData, ...] = ()
    error: ProgramError | None = None
    limit: LimitHit | None = None
    pending: tuple[PendingCall, ...] = ()  # with status `waiting`: answers may come in any order, some or all
    tool_calls: tuple[ToolCall, ...] = ()
    loop_detected: bool = False  # the same failure again and again: another program will not help
    notes: tuple[str, ...] = ()  # what was mended in the program, and hints for its next version
    files: tuple[FileChange, ...] = ()
    session: SessionState = SessionState(survived=True)
    usage: Usage = Usage()
    isolation: Isolation

    @property
    def ok(self) -> bool:
        return self.status == "completed"


# ---------------------------------------------------------------------------------------------------- events of a run


class Started(msgspec.Struct, frozen=True, tag="started"):
    run_id: str


class Stdout(msgspec.Struct, frozen=True, tag="stdout"):
    text: str


class Stderr(msgspec.Struct, frozen=True, tag="stderr"):
    text: str


class Displayed(msgspec.Struct, frozen=True, tag="display"):
    display: DisplayData


class ToolCalled(msgspec.Struct, frozen=True, tag="tool_call"):
    call: ToolCall  # with status `pending`


class ToolAnswered(msgspec.Struct, frozen=True, tag="tool_result"):
    call: ToolCall


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The last event; with status `waiting` the run goes on when its calls are answered, and so do the events."""

    result: Result


Event = Started | Stdout | Stderr | Displayed | ToolCalled | ToolAnswered | Done


# ---------------------------------------------------------------------------------------------------- what the host can do


class Mechanism(msgspec.Struct, frozen=True):
    """One mechanism that isolates or limits: whether it works here, and if not, why and what to do."""

    name: str
    works: bool
    needed_for: Level | None  # the level that cannot be had without it; None: it only helps
    detail: str  # what was found, or why it does not work
    remedy: str | None = None


class Support(msgspec.Struct, frozen=True):
    """What a tier can give on this host. `level` None: nothing that we would start."""

    tier: str
    level: Level | None
    mechanisms: tuple[Mechanism, ...]
