"""What server and node say to each other: frozen types, as MessagePack, in frames on a Unix stream socket.

Both ends are ours and of the same user; what does not decode is a bug, or a node of another version, and ends the connection.
The server sends calls, each with a number; the node sends, per call, any number of `Item`s, the last of which ends it, or one `Answer` or
`Failed`.
A call with items is slowed by `WINDOW_BYTES` that are not yet acknowledged (`Ack`). Descriptors travel with the frame that says `fds`.
"""

from typing import Any, Final

import msgspec

from onetrip.model import Cell, Level, SessionSpec, ToolAnswer, ToolRequest

VERSION: Final = 4  # of this file: a node of another one is not adopted
WINDOW_BYTES: Final = 1 << 20
ACK_BYTES: Final = 128 << 10  # a reader acknowledges so much at once


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


# ---------------------------------------------------------------------------------------------------- server → node


class Describe(Message, frozen=True):
    """→ `Described`: what this node holds."""


class Start(Message, frozen=True):
    """Warm up an environment. → None, when it is ready."""

    environment: str
    floor: Level


class Open(Message, frozen=True):
    """Open a session under an id that the server chose. `meta` is the server's own, and comes back in `Described`. → None"""

    session_id: str
    spec: SessionSpec
    files: dict[str, bytes]
    meta: dict[str, str]


class Run(Message, frozen=True):
    """Run a cell, in a session or (`session_id` None) as a one-shot. → `Item` of its last event; it goes on without a reader."""

    run_id: str
    session_id: str | None
    spec: SessionSpec | None
    cell: Cell
    files: dict[str, bytes]
    meta: dict[str, str]
    queue_ms: float
    inputs: bytes = b"{}"  # those of the cell, as JSON: MessagePack has no integers of more than 64 bits
    followed: bool = False  # a `Follow` from the first event on comes at once


class Follow(Message, frozen=True):
    """→ every event of a run with a number above `after`, or (`last_only`) the last one, or (`moves`) the first that a run that waits cannot make.

    The last one is its result, or that it waits, if nothing came after that.
    """

    run_id: str
    after: int = 0
    last_only: bool = False
    moves: bool = False


class Interrupt(Message, frozen=True):
    """Of a run. → None, also where it has ended."""

    run_id: str


class AnswerCalls(Message, frozen=True):
    """Answer calls that a run waits for, all of these or none. → the number of the newest event when they were taken

    With a `key` that came before nothing is done, and the answer is the same: the server died before it could say so.
    """

    run_id: str
    answers: tuple[ToolAnswer, ...]
    key: str | None = None


class Undo(Message, frozen=True):
    """→ `Rewound` as a dictionary"""

    session_id: str
    cells: int
    forward: bool = False  # redo


class Fork(Message, frozen=True):
    """Make branches under these ids, each with its `meta`. → None"""

    session_id: str
    branches: dict[str, dict[str, str]]


class Sibling(Message, frozen=True):
    """Make one more interpreter of a session, under this id. → None"""

    session_id: str
    sibling_id: str


class Keep(Message, frozen=True):
    """What the server wants to find again with this session in `Described`, in place of what it told before. → None"""

    session_id: str
    meta: dict[str, str]


class Siblings(Message, frozen=True):
    """→ ids of a session's siblings that live"""

    session_id: str


class Close(Message, frozen=True):
    """→ None, also where there is no such session (any more)."""

    session_id: str


class Workspace(Message, frozen=True):
    """→ None, with the descriptor of the session's workspace; `note_changes` when files were written or deleted through it."""

    session_id: str
    note_changes: bool = False


class Stats(Message, frozen=True):
    """→ `Statistics` as a dictionary"""


class Support(Message, frozen=True):
    """→ `model.Support` as a dictionary"""


class Quit(Message, frozen=True):
    """End every sandbox, and the node. → None when nothing is left"""


Body = (
    Describe | Start | Open | Run | Follow | Interrupt | AnswerCalls | Undo | Fork | Sibling | Siblings | Keep | Close | Workspace | Stats | Support
    | Quit
)  # fmt: skip


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    id: int
    body: Body


class Ack(msgspec.Struct, frozen=True, tag="ack", array_like=True):
    id: int
    bytes: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel", array_like=True):
    """Nobody waits for this call any more. A run goes on; only its items are no longer wanted."""

    id: int


class Saved(msgspec.Struct, frozen=True, tag="saved", array_like=True):
    """The server has the results of these runs for good: their events may be dropped when they are old. Not answered."""

    run_ids: tuple[str, ...]


class Told(msgspec.Struct, frozen=True, tag="told", array_like=True):
    """What a server tool gave, in answer to `Asked`. Not answered."""

    run_id: str
    answer: ToolAnswer


ToNode = Call | Ack | Cancel | Saved | Told

# ---------------------------------------------------------------------------------------------------- node → server


class Item(msgspec.Struct, frozen=True, tag="item", array_like=True):
    """One event of a run. `data` is its JSON as clients get it; that of `done` is the result, and answers the call (`last`)."""

    id: int
    number: int
    name: str
    data: bytes
    last: bool = False


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    id: int
    value: Any = None
    fds: int = 0  # descriptors that came with this frame


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    id: int
    code: str
    message: str
    hint: str
    field: str | None
    retry_after_s: float | None


class Asked(msgspec.Struct, frozen=True, tag="asked", array_like=True):
    """A program calls a server tool; `Told` answers. May come again with the next connection, in `Described`."""

    request: ToolRequest


class Unasked(msgspec.Struct, frozen=True, tag="unasked", array_like=True):
    """Nobody waits for that call any more."""

    run_id: str
    call_id: str


ToServer = Item | Answer | Failed | Asked | Unasked


class HeldSession(msgspec.Struct, frozen=True):
    id: str
    meta: dict[str, str]
    spec: SessionSpec
    gone: str | None  # it ended by itself


class HeldRun(msgspec.Struct, frozen=True):
    id: str
    session_id: str | None
    meta: dict[str, str]
    done: bool
    saved: bool


class Described(msgspec.Struct, frozen=True):
    version: int
    sessions: tuple[HeldSession, ...]
    runs: tuple[HeldRun, ...]
    calls: tuple[ToolRequest, ...] = ()  # of server tools, that have no answer yet


class Statistics(msgspec.Struct, frozen=True):
    sessions: int
    running: int
    warm: int
    log_bytes: int
    pid: int
    memory_bytes: int  # resident, of the node's own process
