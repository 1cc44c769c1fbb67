"""What carries the tools: the sessions of one caller, whoever holds them."""

from collections.abc import AsyncGenerator
from typing import Protocol

from onetrip.files import FileInfo
from onetrip.mcp_server.schema import CreateSession
from onetrip.model import Result, Rewound


class Backend(Protocol):
    """The sessions of one caller; those of others do not exist (NotFound). What ended is SessionGone, with the reason.

    Callers may be cancelled at any await; what was begun is then ended in good order, or finished.
    """

    async def open(self, asked: CreateSession, *, by_itself: bool) -> str:
        """A new session's id. `by_itself`: nobody asked for one by name, so it need not wait as long for its next use."""
        ...

    def run(self, session_id: str | None, code: str, timeout_s: float | None, *, live: bool) -> AsyncGenerator[str | Result]:
        """Run a cell, or (`session_id` None) a one-shot: what it prints as it comes, if `live`, and the result last.

        Leaving early interrupts the run. A slow reader slows the program.
        """
        ...

    async def close(self, session_id: str) -> None: ...
    async def undo(self, session_id: str, cells: int) -> Rewound: ...
    async def fork(self, session_id: str, count: int) -> list[str]: ...
    async def files(self, session_id: str) -> list[FileInfo]: ...
    async def read(self, session_id: str, path: str, max_bytes: int) -> bytes:
        """Raises BadRequest for a file that is larger."""
        ...

    async def write(self, session_id: str, path: str, data: bytes) -> None: ...
    def sessions(self) -> list[str]:
        """Ids, what was used last first."""
        ...
