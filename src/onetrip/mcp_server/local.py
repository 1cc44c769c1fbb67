"""The backend over the Python interface, embedded or connected, for one caller: whoever started us on stdio."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Final

from onetrip.asynchronous import AsyncLocal, AsyncSession
from onetrip.errors import BadRequest, NotFound, OnetripError, Overloaded, SessionGone
from onetrip.files import FileInfo
from onetrip.mcp_server.schema import CreateSession
from onetrip.mcp_server.whole import whole
from onetrip.model import Done, Event, Limits, Result, Rewound, Stdout
from onetrip.schema import LimitsRequest

MAX_SESSIONS: Final = 32  # live at once; one more ends the one that was unused for longest
MAX_REMEMBERED: Final = 1000  # sessions that ended, with the reason
_GONE: Final = "the session ended: "
_Queue = asyncio.Queue[Event | OnetripError | None]


@dataclass(eq=False, slots=True)
class _Held:
    session: AsyncSession
    running: int = 0


class LocalBackend:
    """See `Backend`. Leaves the engine to its owner; `aclose` ends what is on its way.

    The engine is never cancelled from here: whoever is cancelled by anyio is so at every further await, and could not leave a sandbox
    in good order. So runs have a task of their own, and what is short is done whole.
    """

    def __init__(self, ot: AsyncLocal, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._ot, self._max_sessions = ot, max_sessions
        self._live: dict[str, _Held] = {}  # what was used last is last
        self._ended: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, asked: CreateSession, *, by_itself: bool) -> str:
        del by_itself  # the one that was unused for longest makes room, and all end with this process
        given = LimitsRequest(wall_s=asked.wall_s, cpu_s=asked.cpu_s, memory_mb=asked.memory_mb, disk_mb=asked.disk_mb)
        with whole():
            await self._make_room(1)
            session = await self._ot.session(
                environment=asked.environment or "default", limits=given.over(Limits()), on_error=asked.on_error
            )
            self._live[session.id] = _Held(session)
        return session.id

    async def _make_room(self, count: int) -> None:
        """Raises Overloaded where every session is at work."""
        while len(self._live) + count > self._max_sessions:
            idle = next((session_id for session_id, held in self._live.items() if not held.running), None)
            if idle is None:
                raise Overloaded(
                    f"{len(self._live)} sessions are at work, and {self._max_sessions} are all there may be",
                    hint="Wait for a run to end, or close a session.",
                )
            await self._end(idle, f"more than {self._max_sessions} were open, and it had been unused for longest")

    async def run(
        self, session_id: str | None, code: str, timeout_s: float | None, *, live: bool
    ) -> AsyncGenerator[str | Result]:
        held = None if session_id is None else self._get(session_id)
        source = self._ot if held is None else held.session
        queue: _Queue = asyncio.Queue(1)
        task = asyncio.create_task(self._pump(source.stream(code, timeout_s=timeout_s), queue, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while (event := await queue.get()) is not None:
                if isinstance(event, OnetripError):
                    raise event
                if isinstance(event, Stdout) and live:
                    yield event.text
                elif isinstance(event, Done):
                    yield event.result
        finally:
            task.cancel()  # once: the engine interrupts what runs, and kills it if it goes on

    async def _pump(self, events: AsyncGenerator[Event], queue: _Queue, held: _Held | None) -> None:
        last: OnetripError | None = None
        with _using(held):
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if isinstance(event, Done) and held is not None and not event.result.session.survived:
                            await self._end(held.session.id, event.result.session.note or "its process ended")
                        await queue.put(event)
            except OnetripError as err:
                last = err
                if isinstance(err, SessionGone) and held is not None:
                    await self._end(held.session.id, str(err).removeprefix(_GONE))
        await queue.put(last)

    async def close(self, session_id: str) -> None:
        self._get(session_id)
        with whole():
            await self._end(session_id, "closed by its owner")

    async def _end(self, session_id: str, reason: str) -> None:
        held = self._live.pop(session_id, None)
        if held is None:
            return
        if len(self._ended) >= MAX_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._ended[session_id] = reason
        with contextlib.suppress(OnetripError):  # such as one that is gone already, with its server perhaps
            await held.session.aclose()

    async def undo(self, session_id: str, cells: int) -> Rewound:
        held = self._get(session_id)
        with whole(), _using(held):
            return await held.session.undo(cells)

    async def fork(self, session_id: str, count: int) -> list[str]:
        origin = self._get(session_id)
        with whole(), _using(origin):
            await self._make_room(count)
            branches = await origin.session.fork(count=count)
            self._live.update((branch.id, _Held(branch)) for branch in branches)
        return [branch.id for branch in branches]

    async def files(self, session_id: str) -> list[FileInfo]:
        held = self._get(session_id)
        with whole(), _using(held):
            return await held.session.files.list()

    async def read(self, session_id: str, path: str, max_bytes: int) -> bytes:
        held = self._get(session_id)
        with whole(), _using(held):
            data = await held.session.files.read(path)
        if len(data) > max_bytes:
            raise BadRequest(f"{path!r} has {len(data)} bytes, more than {max_bytes}", field="path")
        return data

    async def write(self, session_id: str, path: str, data: bytes) -> None:
        held = self._get(session_id)
        with whole(), _using(held):
            await held.session.files.write(path, data)

    def sessions(self) -> list[str]:
        return list(reversed(self._live))

    async def aclose(self) -> None:
        """End every run, for which the engine has a grace period, and every session."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for session_id in list(self._live):
            await self._end(session_id, "the client went away")

    def _get(self, session_id: str) -> _Held:
        """Raises NotFound, SessionGone."""
        held = self._live.pop(session_id, None)
        if held is None:
            if (why := self._ended.get(session_id)) is not None:
                raise SessionGone(f"{_GONE}{why}")
            raise NotFound(f"there is no session {session_id[:60]!r}")
        self._live[session_id] = held
        return held


@contextlib.contextmanager
def _using(held: _Held | None) -> Generator[None]:
    """It does not make room for another one meanwhile."""
    if held is None:
        yield
        return
    held.running += 1
    try:
        yield
    finally:
        held.running -= 1
