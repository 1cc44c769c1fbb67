"""The backend over the server's application core: one caller, known by a key, with the rights and quotas that go with it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import anyio
import msgspec

from onetrip.errors import OnetripError
from onetrip.files import FileInfo, Workspace
from onetrip.mcp_server.schema import CreateSession
from onetrip.mcp_server.whole import whole
from onetrip.model import Result, Rewound, Stdout
from onetrip.schema import CellRequest, ForkRequest, LimitsRequest, RunRequest, SessionRequest, UndoRequest
from onetrip.service.records import Run
from onetrip.service.service import Service
from onetrip.settings import Role
from onetrip.telemetry import note
from onetrip.tenants import Caller

UNASKED_IDLE_S: Final = 900.0  # a session that a run without one opened, and that nobody may ever name again
INTERRUPT_S: Final = 10.0  # for the word to reach the node
_results: Final = msgspec.json.Decoder(Result)
_stdout: Final = msgspec.json.Decoder(Stdout)


class ServedBackend:
    """See `Backend`."""

    def __init__(self, service: Service, caller: Caller) -> None:
        self._service, self._caller = service, caller

    async def open(self, asked: CreateSession, *, by_itself: bool) -> str:
        self._may("user")
        self._service.refuse_when_draining()
        request = SessionRequest(
            environment=asked.environment,
            limits=LimitsRequest(wall_s=asked.wall_s, cpu_s=asked.cpu_s, memory_mb=asked.memory_mb, disk_mb=asked.disk_mb),
            on_error=asked.on_error,
            idle_timeout_s=min(UNASKED_IDLE_S, self._service.settings.idle_timeout_s) if by_itself else None,
            server_tools=self._tools(),
        )
        session = await self._service.sessions.open(self._caller, request)
        return session.id

    async def run(
        self, session_id: str | None, code: str, timeout_s: float | None, *, live: bool
    ) -> AsyncGenerator[str | Result]:
        self._may("user")
        self._service.refuse_when_draining()
        runs = self._service.runs
        if session_id is None:
            asked = RunRequest(code=code, timeout_s=timeout_s, stream=live, server_tools=self._tools())
            run = runs.begin_shot(self._caller, asked)
        else:
            run = runs.begin_cell(self._caller, session_id, CellRequest(code=code, timeout_s=timeout_s, stream=live))
        note(run_id=run.id, session_id=session_id)
        try:
            if live:
                async with contextlib.aclosing(runs.events(self._caller, run.id)) as items:
                    async for item in items:
                        if item.name == "stdout":
                            yield _stdout.decode(item.data).text
            result = _results.decode(await run.wait())
            if result.status == "waiting":  # of a session that was opened elsewhere
                await self._interrupt(run)
                said = f"it called {', '.join(sorted({call.tool for call in result.pending}))}, whose answer cannot be given over MCP"
                ended = _results.decode(await run.outcome)
                result = msgspec.structs.replace(ended, notes=(*ended.notes, said))
            yield result
        finally:
            if not run.outcome.done():
                await self._interrupt(run)

    def _tools(self) -> tuple[str, ...] | None:
        """Those of the server's that nobody must allow: MCP has no way to ask."""
        found = self._service.tools.tools(self._caller.tools)
        free = tuple(tool.name for tool in found if tool.approval != "required")
        return free if len(free) < len(found) else None

    async def _interrupt(self, run: Run) -> None:
        with anyio.move_on_after(INTERRUPT_S, shield=True), contextlib.suppress(OnetripError):
            await self._service.runs.interrupt(self._caller, run.id)

    async def close(self, session_id: str) -> None:
        self._may("user")
        await self._service.sessions.close(self._caller, session_id)

    async def undo(self, session_id: str, cells: int) -> Rewound:
        self._may("user")
        rewinding = await self._service.sessions.undo(self._caller, session_id, UndoRequest(cells=cells))
        return Rewound(rewinding.cells, rewinding.note)

    async def fork(self, session_id: str, count: int) -> list[str]:
        self._may("user")
        self._service.refuse_when_draining()
        branches = await self._service.sessions.fork(self._caller, session_id, ForkRequest(count=count))
        return [branch.id for branch in branches]

    # A workspace's descriptor must not be closed, and its number given to another one, under a thread that still works with it. So what
    # is done with files is done whole, whatever becomes of the caller.

    async def files(self, session_id: str) -> list[FileInfo]:
        self._may("reader")
        with whole():
            async with self._service.sessions.workspace(self._caller, session_id) as workspace:
                return await asyncio.to_thread(workspace.list)

    async def read(self, session_id: str, path: str, max_bytes: int) -> bytes:
        self._may("reader")

        def read(workspace: Workspace) -> bytes:
            return workspace.read(path, max_bytes=max_bytes)

        with whole():
            async with self._service.sessions.workspace(self._caller, session_id) as workspace:
                data = await asyncio.to_thread(read, workspace)
        self._service.count(self._caller, bytes_out=len(data))
        return data

    async def write(self, session_id: str, path: str, data: bytes) -> None:
        self._may("user")
        with whole():
            async with self._service.sessions.workspace(self._caller, session_id, changes=True) as workspace:
                await asyncio.to_thread(workspace.write, path, data)
        self._service.count(self._caller, bytes_in=len(data))

    def sessions(self) -> list[str]:
        self._may("reader")
        found = sorted(self._service.sessions.of(self._caller), key=lambda session: session.last_used, reverse=True)
        return [session.id for session in found]

    def _may(self, role: Role) -> None:
        """Raises Forbidden."""
        self._service.tenants.require(self._caller, role)
