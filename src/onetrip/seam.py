"""What an engine is: the seam between the objects that a program holds and whatever runs its cells, in this process or on a server.

`onetrip.engine.LocalEngine` and `onetrip.client.engine.RemoteEngine` are the two. Every method raises errors of ours only.
"""

import asyncio
import builtins
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import BinaryIO, Protocol, Self

from onetrip.model import Cell, Event, FileInfo, Level, Rewound, SessionSpec, Support, ToolAnswer, ToolRequest

Contents = Mapping[str, bytes]  # files by their path in the workspace
Ask = Callable[
    [ToolRequest], Awaitable[ToolAnswer]
]  # answers calls of server tools; awaited, it raises nothing but CancelledError


class Prompt(asyncio.Future[ToolAnswer]):
    """A future that `Ask` may give: it tells `at_once` of its result itself, a turn of the event loop before its callbacks."""

    at_once: Callable[[Self], object] | None = None

    def set_result(self, result: ToolAnswer) -> None:
        super().set_result(result)
        if self.at_once is not None:
            self.at_once(self)

    def set_exception(
        self, exception: type | BaseException, /
    ) -> None:  # against the agreement; whoever waits hears of it all the same
        super().set_exception(exception)
        if self.at_once is not None:
            self.at_once(self)


class Files(Protocol):
    """The files of one session. Raises BadRequest for paths that leave the workspace, NotFound, SessionGone, WorkspaceFull."""

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; it changes whole or not at all."""
        ...

    async def read(self, path: str) -> bytes: ...
    async def list(self) -> builtins.list[FileInfo]: ...
    async def delete(self, path: str) -> None: ...
    async def upload(self, path: str, source: BinaryIO) -> None:
        """`write` of what can be read from `source`, in pieces: any size in constant memory."""
        ...

    async def download(self, path: str, to: BinaryIO) -> None:
        """`read` into `to`, in pieces."""
        ...


class Engine(Protocol):
    """Sessions by id, and one-shots. Cells of one session run one after the other, in the order in which they were asked for."""

    async def start(self, environment: str = "default", *, floor: Level = "strict") -> None: ...
    async def find_support(self) -> Support: ...
    async def open(self, spec: SessionSpec, files: Contents, *, ask: Ask | None = None) -> str:
        """Start a session; returns its id. `ask` answers calls of those of `spec.tools` whose `side` is the server's."""
        ...

    async def attach(self, session_id: str) -> str:
        """See that there is such a session, and return its id. Raises NotFound, SessionGone."""
        ...

    def execute(self, session_id: str, cell: Cell) -> AsyncGenerator[Event]:
        """Run a cell. The last event is `Done`; closing the generator before interrupts the cell.

        A `Done` whose result is `waiting` is not the last: the events go on when `answer` was called.
        """
        ...

    def run(self, spec: SessionSpec, cell: Cell, files: Contents, *, ask: Ask | None = None) -> AsyncGenerator[Event]:
        """The same for a one-shot."""
        ...

    async def answer(self, run_id: str, answers: Sequence[ToolAnswer]) -> None:
        """Answer calls that a run waits for, some or all. Raises BadRequest, Conflict, NotFound; then none is taken."""
        ...

    def follow(self, run_id: str) -> AsyncGenerator[Event]:
        """The events of a run that was begun elsewhere, from now on. Raises NotFound where there is none, or they are somebody's already."""
        ...

    async def undo(self, session_id: str, cells: int = 1) -> Rewound: ...
    async def redo(self, session_id: str, cells: int = 1) -> Rewound: ...
    async def fork(self, session_id: str, count: int = 1) -> list[str]:
        """So many branches; returns their ids."""
        ...

    async def interrupt(self, session_id: str) -> None:
        """Like Ctrl-C for the cell that runs. Nothing happens where none does."""
        ...

    def files(self, session_id: str) -> Files: ...
    async def close(self, session_id: str) -> None:
        """End a session. Closing twice does no harm."""
        ...

    async def aclose(self) -> None: ...
