"""`seam.Engine` over HTTP: sessions and runs of a server, whose events go on where a connection broke."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from typing import Any, Final

from onetrip.client import core
from onetrip.client.answering import Functions, Running
from onetrip.client.events import Record, Records, event
from onetrip.client.files import RemoteFiles
from onetrip.client.http import Broken, Link, Options
from onetrip.client.retries import Retries
from onetrip.errors import Conflict, IsolationUnavailable, NotFound, OnetripError, SessionGone, UnknownEnvironment
from onetrip.model import Cell, Done, Event, Level, Rewound, SessionSpec, Started, Support, ToolAnswer, ToolCalled
from onetrip.schema import Capabilities
from onetrip.seam import Ask, Contents

SILENCE_S: Final = 45.0  # without a word, three of the server's pings; then we look whether it is still there
HEALTH_S: Final = 10.0
TURN_S: Final = 4 * 3600.0  # for undo and fork, which wait for the cells before them
CLEAN_UP_S: Final = 5.0  # for what is asked at an end: a session without its client expires, a run has its limits
ABANDON_S: Final = 60.0  # for what was cancelled before the server said its id
LAST_BYTES_S: Final = 1.0  # between a result and the end of its answer


class RemoteEngine:
    """See `seam.Engine`. A cancelled call interrupts its run. `aclose` ends the connections, and no session."""

    def __init__(self, url: str, token: str | None, options: Options) -> None:
        self._link = Link(url, token, options)
        self._retry_s = options.retry_s
        self._functions: dict[str, Functions] = {}  # session → those of its tools that are the caller's functions
        self._running: dict[str, str] = {}  # session → the run of ours that has begun
        self._loose: set[asyncio.Task[None]] = set()  # clean-up that outlives its caller

    # ------------------------------------------------------------------ the server

    async def start(self, environment: str = "default", *, floor: Level = "strict") -> None:
        """See that the server can run this: it is there, knows the key, has the environment, and isolates as asked."""
        found = core.decode(await self._link.ask(core.capabilities()), Capabilities)
        if environment not in found.environments and environment != SessionSpec().environment:
            raise UnknownEnvironment(f"the server has no environment {environment!r}", field="environment")
        if found.level is None or (floor == "strict" and found.level != "strict"):
            raise IsolationUnavailable(f"the server isolates at level {found.level}, and {floor} is asked for")

    async def find_support(self) -> Support:
        return core.support(await self._link.ask(core.capabilities()))

    # ------------------------------------------------------------------ sessions

    async def open(self, spec: SessionSpec, files: Contents, *, ask: Ask | None = None) -> str:
        request, later = core.open_session(spec, files, _new_key())
        try:
            session_id = core.session_id(await self._link.ask(request))
        except asyncio.CancelledError:
            self._later(self._close_what_opened(request))
            raise
        if (functions := _functions(spec, ask)) is not None:
            self._functions[session_id] = functions
        try:
            for path, data in later.items():
                await self.files(session_id).write(path, data)
        except BaseException:
            self._later(self.close(session_id))
            raise
        return session_id

    async def _close_what_opened(self, ask: core.Ask) -> None:
        await self.close(core.session_id(await self._link.ask(ask)))

    async def attach(self, session_id: str) -> str:
        return core.session_id(await self._link.ask(core.session(session_id)))

    async def undo(self, session_id: str, cells: int = 1) -> Rewound:
        ask = core.rewind(session_id, cells, _new_key(), forward=False)
        return core.rewound(await self._link.ask(ask, answer_s=TURN_S))

    async def redo(self, session_id: str, cells: int = 1) -> Rewound:
        ask = core.rewind(session_id, cells, _new_key(), forward=True)
        return core.rewound(await self._link.ask(ask, answer_s=TURN_S))

    async def fork(self, session_id: str, count: int = 1) -> list[str]:
        made = core.branches(await self._link.ask(core.fork(session_id, count, _new_key()), answer_s=TURN_S))
        if session_id in self._functions:
            self._functions |= dict.fromkeys(made, self._functions[session_id])
        return made

    def files(self, session_id: str) -> RemoteFiles:
        return RemoteFiles(self._link, session_id, self._retry_s)

    async def close(self, session_id: str) -> None:
        self._functions.pop(session_id, None)
        with contextlib.suppress(NotFound, SessionGone):
            await self._link.ask(core.session(session_id, "DELETE"), retry_s=CLEAN_UP_S)

    # ------------------------------------------------------------------ runs

    def execute(self, session_id: str, cell: Cell) -> AsyncGenerator[Event]:
        events = self._events(core.cell(session_id, cell, _new_key()), session_id)
        functions = self._functions.get(session_id)
        return events if functions is None else self._answering(events, functions, session_id)

    def run(self, spec: SessionSpec, cell: Cell, files: Contents, *, ask: Ask | None = None) -> AsyncGenerator[Event]:
        events = self._events(core.shot(spec, cell, files, _new_key()), None)
        functions = _functions(spec, ask)
        return events if functions is None else self._answering(events, functions, None)

    async def answer(self, run_id: str, answers: Sequence[ToolAnswer]) -> None:
        await self._link.ask(core.answer(run_id, answers, _new_key()))

    def follow(self, run_id: str) -> AsyncGenerator[Event]:
        return self._events(core.events(run_id, 0), None)

    async def _answering(
        self, events: AsyncGenerator[Event], functions: Functions, session_id: str | None
    ) -> AsyncGenerator[Event]:
        """The same events, with the calls of the caller's functions answered on the way.

        Events are read also while functions run: the program may give one up, and call another, or end.
        """
        running, coming, run_id = Running(), None, ""
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events, None))
                if answers := await running.before(coming):
                    await self._give(running.run_id, answers)
                    continue
                found, coming = coming.result(), None
                if found is None:
                    return
                if not isinstance(found, Done) or found.result.status != "waiting":
                    if isinstance(found, Started):
                        run_id = found.run_id
                    elif isinstance(found, ToolCalled):
                        functions.begin_early(found.call, run_id, session_id, running)
                    yield found
                elif (rest := functions.begin(found.result, running)) is not None:
                    yield Done(rest)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait([coming])
            await events.aclose()
            await running.aclose()

    async def _give(self, run_id: str, answers: Sequence[ToolAnswer]) -> None:
        """Of calls that the program gave up meanwhile nobody wants to know, and they keep no other answer from it."""
        try:
            await self.answer(run_id, answers)
        except (Conflict, NotFound):
            for answer in answers if len(answers) > 1 else ():
                await self._give(run_id, [answer])

    async def interrupt(self, session_id: str) -> None:
        """For the run of this session that was begun through this engine."""
        run_id = self._running.get(session_id)
        if run_id is None:
            await self._link.ask(core.session(session_id))  # raises what became of the session
        else:
            await self._link.ask(core.interrupt(run_id))

    async def _events(self, ask: core.Ask, session_id: str | None) -> AsyncGenerator[Event]:
        """The events of one run, each once, over as many connections as it takes."""
        following = _Following(self._link, ask, session_id, self._retry_s)
        try:
            async with contextlib.aclosing(following.events()) as events:
                async for found in events:
                    if session_id is not None and following.run_id is not None:
                        self._running[session_id] = following.run_id
                    yield found
        except asyncio.CancelledError:
            if following.run_id is None:  # it may have begun, or will
                self._later(self._abandon(ask))
            raise
        finally:
            if session_id is not None and self._running.get(session_id) == following.run_id:
                self._running.pop(session_id, None)
            if following.run_id is not None and not following.is_done:
                with contextlib.suppress(OnetripError, TimeoutError):
                    async with asyncio.timeout(CLEAN_UP_S):
                        await self._link.ask(core.interrupt(following.run_id))

    async def _abandon(self, ask: core.Ask) -> None:
        """Ask for the same run again, which does not begin another one, to learn its id, and interrupt it."""
        async with contextlib.aclosing(self._events(ask, None)) as events:
            await anext(events)

    # ------------------------------------------------------------------ ends

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(OnetripError, TimeoutError):
                async with asyncio.timeout(ABANDON_S):
                    await work

        task = asyncio.create_task(quietly())
        self._loose.add(task)
        task.add_done_callback(self._loose.discard)

    async def aclose(self) -> None:
        if self._loose:
            await asyncio.wait(self._loose, timeout=CLEAN_UP_S)
        for task in list(self._loose):
            task.cancel()
        await self._link.aclose()


class _Following:
    """A run as it is followed: asked for, and taken up after the last event that came."""

    def __init__(self, link: Link, ask: core.Ask, session_id: str | None, retry_s: float) -> None:
        self._link, self._ask, self._session_id = link, ask, session_id
        self._retries, self._since = Retries(retry_s), time.monotonic()
        self._last = 0
        self.run_id: str | None = None
        self.is_done = False  # there is nothing that whoever asked would miss

    async def events(self) -> AsyncGenerator[Event]:
        while True:
            try:
                async with contextlib.aclosing(self._connection()) as events:
                    async for found in events:
                        self.is_done = isinstance(found, Done)
                        yield found
                        waits = isinstance(found, Done) and found.result.status == "waiting"
                        self._since = time.monotonic() if waits else self._since
                        self.is_done = self.is_done and not waits
                        if waits:  # its events go on elsewhere
                            break
                    else:
                        waits = False
                if waits:
                    continue
                if self.is_done:
                    return
                raise Broken(ConnectionError("the answer ended before the result"))
            except Broken as err:
                if err.was_silent:  # it may wait for its turn, or be cut off
                    await self._link.ask(core.health(), answer_s=HEALTH_S)
                    self._since = time.monotonic()
                pause = self._link.pause_after(err, self._retries, self._since)
                if pause is None:
                    raise self._link.unreachable(err) from err
            except OnetripError as err:
                if self.run_id is not None and isinstance(err, (NotFound, SessionGone)):
                    self.is_done = True
                    yield Done(core.lost(self.run_id, self._session_id, survived=await self._lives()))
                    return
                pause = self._retries.after_refusal(err, time.monotonic() - self._since)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _connection(self) -> AsyncGenerator[Event]:
        """What comes over one connection. Raises Broken, and what the server says."""
        ask = self._ask if self.run_id is None else core.events(self.run_id, self._last)
        done: Done | None = None
        try:
            async with self._link.begin(ask, answer_s=SILENCE_S) as response:
                records, pieces = Records(), response.aiter_raw()
                async for piece in pieces:
                    for found in self._new(records.feed(piece)):
                        if isinstance(found, Done):
                            done = found
                        else:
                            yield found
                    if done is not None:
                        break
                with contextlib.suppress(TimeoutError):  # a connection is kept only when its answer was read to the end
                    async with asyncio.timeout(LAST_BYTES_S):
                        async for _ in pieces:
                            pass
        except Broken:
            if done is None:
                raise
        if done is not None:
            yield done

    def _new(self, records: list[Record]) -> Generator[Event]:
        """The events among them that did not come before."""
        self._since = time.monotonic()
        for record in records:
            if record.number is not None and record.number <= self._last:
                continue
            self._last = record.number or self._last
            self._retries.progressed()
            found = event(record)
            if isinstance(found, Started):
                self.run_id = found.run_id
            if found is not None:
                yield found

    async def _lives(self) -> bool:
        if self._session_id is None:
            return False
        try:
            await self._link.ask(core.session(self._session_id))
        except OnetripError:
            return False
        return True


def _functions(spec: SessionSpec, ask: Ask | None) -> Functions | None:
    return None if ask is None else Functions([tool for tool in spec.tools if tool.side == "server"], ask)


def _new_key() -> str:
    return secrets.token_hex(16)
