"""What host and guest say to each other: one frozen type per message, and which of them each side may send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final


@dataclass(frozen=True, slots=True)
class Hello:
    """Host → guest, at most once and before the first cell: what this session's program may do, where that is not everything."""

    KIND: ClassVar = "hello"
    session: Mapping[str, Any]  # {"modules": {"allow": [...]|null, "deny": [...]}, "threads": count, "at_home": bool}
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Execute:
    """Host → guest: run one cell. One may be open at a time."""

    KIND: ClassVar = "execute"
    run: str  # nonce of this run; the answer must repeat it
    cell: int  # 1, 2, 3 …: names the cell in tracebacks
    final: bool  # a one-shot: join threads and run exit handlers before answering, as an ending program does
    parts: Sequence[bytes] = ()  # [source as UTF-8, inputs as a JSON object]
    late_interrupt: bool = False  # the cell before was interrupted, perhaps too late: an interrupt that waits is not for this one


@dataclass(frozen=True, slots=True)
class Tools:
    """Host → guest, between cells: what the program can call from now on. `parts[0]` is a JSON list of tools, as `model.Tool` has them."""

    KIND: ClassVar = "tools"
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Host → guest while a cell runs: what one call gave. `parts[0]` is its value as JSON, or with `failed` a `model.ToolFailure`."""

    KIND: ClassVar = "tool_result"
    run: str
    number: int  # of the call
    failed: bool
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Host → guest, between cells: fork. The parent stays behind as a checkpoint, the child goes on; `Kept` answers.

    A descriptor comes with the packet: the checkpoint's own socket, on which it waits for `Spawn`; its end ends the checkpoint.
    """

    KIND: ClassVar = "checkpoint"
    number: int  # of the checkpoint, counted by the host
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Spawn:
    """Host → checkpoint, on its own socket: fork a process that goes on from here; `Live` answers on the channel that it has.

    `branch`: channel, stdout and stderr of its own and a Landlock ruleset come with the packet; it works in the folder `workspace`.
    A sibling is told the same, with the folder that it shares.
    """

    KIND: ClassVar = "spawn"
    branch: bool
    workspace: str
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Host → guest: leave the loop. Only a courtesy; the host kills in any case."""

    KIND: ClassVar = "shutdown"
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """Guest → host, once: the jail is closed and the loop is waiting. Sent before any user code has run."""

    KIND: ClassVar = "ready"
    version: int
    python: str
    held: tuple[str, ...]  # mechanisms that this process applied to itself
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Guest → host instead of `Ready`: a step of the jail failed and the sandbox did not start."""

    KIND: ClassVar = "refused"
    step: str
    errno: int
    detail: str
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """Guest → host, the answer to `Checkpoint`. Process ids are the sandbox's own; the host checks them against the kernel."""

    KIND: ClassVar = "kept"
    number: int
    live: int  # the process that speaks and goes on
    checkpoint: int  # its parent, which is the checkpoint; 0: there is none
    why: str  # why there is none, or none that is worth keeping
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Live:
    """Guest → host, the answer to `Spawn`: this process goes on from the checkpoint."""

    KIND: ClassVar = "live"
    live: int
    note: str  # what could not be brought back, such as an open file that is gone
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Display:
    """Guest → host while a cell runs: one rich output, as MIME type → bytes (`mimes[i]` belongs to `parts[i]`)."""

    KIND: ClassVar = "display"
    run: str
    mimes: tuple[str, ...]
    is_result: bool
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Guest → host while a cell runs: the program calls a tool. `parts[0]` are its arguments, a JSON object.

    `path` names the task that calls and `ordinal` counts the calls of this task, so that a call is known whatever order calls arrive in.
    """

    KIND: ClassVar = "tool_call"
    run: str
    number: int  # 1, 2, 3 …: of this run's calls, in the order in which they are sent
    tool: str
    path: str
    ordinal: int
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class ToolDrop:
    """Guest → host while a cell runs: nobody in the program waits for this call any more."""

    KIND: ClassVar = "tool_drop"
    run: str
    number: int
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Blocked:
    """Guest → host while a cell runs: the whole program waits for answers. True of the moment with so many calls sent and answers taken."""

    KIND: ClassVar = "blocked"
    run: str
    asked: int
    answered: int
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Guest → host, exactly once per `Execute`. `parts[0]` is a JSON object, the guest's claims about the outcome:

    `text` repr of the last expression or null · `value` its JSON form or null · `has_value` whether there is one ·
    `error` null or {"type", "message", "traceback", "line"} · `interrupted` KeyboardInterrupt by the host's signal ·
    `limit` null or the limit that the program's own exception points to ("memory", "disk", "processes") · `notes` what was mended
    in the program.
    """

    KIND: ClassVar = "done"
    run: str
    parts: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Guest → host: the loop ended on `Shutdown`. End of file without it is a crash."""

    KIND: ClassVar = "goodbye"
    parts: Sequence[bytes] = ()


HostMessage = Hello | Tools | Execute | ToolResult | Checkpoint | Spawn | Shutdown
GuestMessage = Ready | Refused | Kept | Live | Display | ToolCall | ToolDrop | Blocked | Done | Goodbye
HOST_KINDS: Final = {
    "hello": Hello, "tools": Tools, "execute": Execute, "tool_result": ToolResult, "checkpoint": Checkpoint, "spawn": Spawn,
    "shutdown": Shutdown,
}  # fmt: skip
GUEST_KINDS: Final = {
    "ready": Ready, "refused": Refused, "kept": Kept, "live": Live, "display": Display, "tool_call": ToolCall, "tool_drop": ToolDrop,
    "blocked": Blocked, "done": Done, "goodbye": Goodbye,
}  # fmt: skip
