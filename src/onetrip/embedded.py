"""`local()` and `alocal()`: run programs in this machine's own sandboxes, without a server.

The asynchronous objects hold the logic; the synchronous ones are the same calls carried to an event loop on a thread of their
own, so that pools refill and deadlines fire while the caller does something else.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload

import msgspec

from onetrip import checks
from onetrip.engine import LocalEngine
from onetrip.errors import BadRequest, PlatformError
from onetrip.files import FileInfo
from onetrip.model import Cell, Done, Event, Level, Limits, Policy, Result, Rewound, SessionSpec, Support

T = TypeVar("T")
FileContents = Mapping[str, bytes | str]
LimitsLike = Limits | Mapping[str, Any] | None
PolicyLike = Policy | Mapping[str, Any] | None


def probe() -> Support:
    """What isolation this host gives, found by trying each mechanism. Starts nothing that stays."""
    return LocalEngine().support()


def alocal(**options: Any) -> "AsyncLocal":
    """An engine for asynchronous programs: `async with onetrip.alocal() as ot: await ot.run("1 + 1")`. Options as for `local`."""
    return AsyncLocal(**options)


def local(**options: Any) -> "Local":
    """An engine in this process: `with onetrip.local() as ot: ot.run("1 + 1").text`.

    Options: `warm` sandboxes kept ready per kind (default 2), `max_live` sandboxes at once (default 2000), `cgroup_parent` below
    which control groups are made (default: found).
    """
    return Local(**options)


# ---------------------------------------------------------------------------------------------------- asynchronous


class AsyncLocal:
    """See `alocal`. Safe to use from many tasks of one event loop."""

    def __init__(self, **options: Any) -> None:
        try:
            self._engine = LocalEngine(**options)
        except TypeError as err:
            raise BadRequest(str(err).replace("LocalEngine.__init__()", "local()")) from err

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def start(self, environment: str = "default", *, isolation_floor: Level = "strict") -> None:
        """Warm up now what the first run would otherwise wait for. Raises what `run` raises."""
        await self._engine.start(environment, floor=isolation_floor)

    async def run(self, code: str, **options: Any) -> Result:
        """Run one program in a sandbox of its own and return its result; a program that fails is a result, too.

        Options: `environment`, `files` (path → bytes or text), `inputs` (name → JSON value), `limits`, `policy`, `timeout_s`,
        `isolation_floor`. Raises BadRequest, Unavailable or PlatformError; then nothing has run. Cancelling ends the sandbox.
        """
        return await _last(self.stream(code, **options))

    async def stream(
        self,
        code: str,
        *,
        environment: str = "default",
        files: FileContents | None = None,
        inputs: Mapping[str, Any] | None = None,
        limits: LimitsLike = None,
        policy: PolicyLike = None,
        timeout_s: float | None = None,
        isolation_floor: Level = "strict",
    ) -> AsyncGenerator[Event]:
        """The same, event by event; the last one is `Done` with the result. A slow reader slows the program."""
        spec = _spec(environment=environment, limits=limits, policy=policy, isolation_floor=isolation_floor)
        cell = Cell(code=code, inputs=dict(inputs or {}), timeout_s=timeout_s, final=True)
        events = self._engine.run(spec, cell, _contents(files))
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def session(
        self,
        *,
        environment: str = "default",
        files: FileContents | None = None,
        limits: LimitsLike = None,
        policy: PolicyLike = None,
        metadata: Mapping[str, str] | None = None,
        isolation_floor: Level = "strict",
        checkpoints: int = 8,
        on_error: Literal["keep", "rollback"] = "keep",
    ) -> "AsyncSession":
        """A live namespace with a workspace: `async with ot.session() as s`, or `s = await ot.session()` and `await s.aclose()`.

        `checkpoints`: how many cells can be undone; 0 for a session that a killed cell ends. `on_error="rollback"`: a cell that
        raises leaves nothing behind.
        """
        spec = _spec(
            environment=environment, limits=limits, policy=policy, isolation_floor=isolation_floor, metadata=dict(metadata or {}),
            checkpoints=checkpoints, on_error=on_error,
        )  # fmt: skip
        return AsyncSession(self._engine, spec, _contents(files))

    def support(self) -> Support:
        return self._engine.support()

    async def aclose(self) -> None:
        """End every sandbox; waits until nothing is left."""
        await self._engine.aclose()


class AsyncSession:
    """One session. Cells run one after the other; `interrupt` may come from another task."""

    def __init__(self, engine: LocalEngine, spec: SessionSpec, files: Mapping[str, bytes]) -> None:
        self._engine, self._spec, self._initial = engine, spec, files
        self._id: str | None = None
        self.files = AsyncFiles(self)

    @property
    def id(self) -> str:
        if self._id is None:
            raise PlatformError("the session is not open yet", hint="Use `async with`, or await it.")
        return self._id

    @property
    def engine(self) -> LocalEngine:
        return self._engine

    async def open(self) -> Self:
        """Start it, once; the same as awaiting it. Raises what `run` raises."""
        if self._id is None:
            self._id = await self._engine.open(self._spec, self._initial)
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def run(self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Result:
        """Run one cell; variables of earlier cells are there. Raises SessionGone when an earlier cell took the session with it."""
        return await _last(self.stream(code, inputs=inputs, timeout_s=timeout_s))

    async def stream(
        self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None, final: bool = False
    ) -> AsyncGenerator[Event]:
        """The same, event by event. `final`: behave at the end as an ending program does (threads joined, exit handlers run)."""
        events = self._engine.execute(self.id, Cell(code=code, inputs=dict(inputs or {}), timeout_s=timeout_s, final=final))
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def undo(self, cells: int = 1) -> Rewound:
        """Go back to the state before the last cells: variables, imports and files. Raises BadRequest when it is not kept any more."""
        return await self._engine.undo(self.id, cells)

    async def redo(self, cells: int = 1) -> Rewound:
        """Take back an `undo`, while nothing new has run."""
        return await self._engine.redo(self.id, cells)

    @overload
    async def fork(self) -> "AsyncSession": ...
    @overload
    async def fork(self, *, count: int) -> "list[AsyncSession]": ...
    async def fork(self, *, count: int | None = None) -> "AsyncSession | list[AsyncSession]":
        """A branch, or `count` of them: sessions of their own that begin with this one's variables and files, each closed by itself.

        Memory is shared until one of them changes it. Raises Unavailable when the session has no checkpoint of its present state.
        """
        made = [self._branched(branch) for branch in await self._engine.fork(self.id, 1 if count is None else count)]
        return made[0] if count is None else made

    def _branched(self, branch: str) -> "AsyncSession":
        session = AsyncSession(self._engine, self._spec, {})
        session._id = branch
        return session

    async def interrupt(self) -> None:
        """Like Ctrl-C for the cell that runs; it is killed when it does not end within the grace period."""
        self._engine.interrupt(self.id)

    async def aclose(self) -> None:
        if self._id is not None:
            await self._engine.close(self._id)

    close = aclose


class AsyncFiles:
    """The files of a session; paths are relative to its workspace."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def write(self, path: str, data: bytes | str) -> None:
        """Create or replace a file. Raises BadRequest for a path that leaves the workspace, WorkspaceFull."""
        workspace = self._session.engine.files(self._session.id)
        await asyncio.to_thread(workspace.write, path, _contents({path: data})[path])
        self._session.engine.note_files(self._session.id)

    async def read(self, path: str) -> bytes:
        """The content of a regular file. Raises NotFound, BadRequest."""
        return await asyncio.to_thread(self._session.engine.files(self._session.id).read, path)

    async def list(self) -> list[FileInfo]:
        return await asyncio.to_thread(self._session.engine.files(self._session.id).list)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self._session.engine.files(self._session.id).delete, path)
        self._session.engine.note_files(self._session.id)


async def _last(events: AsyncGenerator[Event]) -> Result:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.result
    raise PlatformError("the run ended without a result")


def _contents(files: FileContents | None) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path, data in (files or {}).items():
        raw: object = data.encode() if isinstance(data, str) else cast("object", data)
        if not isinstance(raw, (bytes, bytearray, memoryview)):
            raise BadRequest(f"files: the content of {path!r} must be bytes or text, not {type(data).__name__}", field="files")
        contents[path] = bytes(cast("bytes", raw))
    return contents


def _spec(*, limits: LimitsLike, policy: PolicyLike, **fields: Any) -> SessionSpec:
    if fields["isolation_floor"] not in ("strict", "reduced"):
        raise BadRequest(f"isolation_floor: {fields['isolation_floor']!r} is not “strict” or “reduced”", field="isolation_floor")
    if fields.get("on_error", "keep") not in ("keep", "rollback"):
        raise BadRequest(f"on_error: {fields['on_error']!r} is not “keep” or “rollback”", field="on_error")
    checks.check_checkpoints(fields.get("checkpoints", 0))
    return SessionSpec(limits=_convert(limits, Limits, "limits"), policy=_convert(policy, Policy, "policy"), **fields)


def _convert(given: Any, kind: type[T], field: str) -> T:
    if isinstance(given, kind):
        return given
    try:
        return msgspec.convert({} if given is None else dict(given), kind)
    except (msgspec.ValidationError, TypeError, ValueError) as err:
        raise BadRequest(f"{field}: {err}", field=field) from err


# ---------------------------------------------------------------------------------------------------- synchronous


class _Portal:
    """An event loop on a daemon thread, and the way to run something on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="onetrip", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait. KeyboardInterrupt here cancels it there and waits for its clean-up; a second one does not wait."""
        tasks: list[asyncio.Task[T]] = []
        ended = threading.Event()

        def start() -> None:
            tasks.append(self.loop.create_task(work))
            tasks[0].add_done_callback(lambda _: ended.set())

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # interrupted before `start` was on its way
                work.close()
                ended.set()

        try:
            self.loop.call_soon_threadsafe(start)
            ended.wait()
        except BaseException:
            self.loop.call_soon_threadsafe(cancel)
            ended.wait()
            raise
        return tasks[0].result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Local:
    """See `local`. Safe to use from many threads."""

    def __init__(self, **options: Any) -> None:
        self._async = AsyncLocal(**options)
        self._portal = _Portal()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self, environment: str = "default", *, isolation_floor: Level = "strict") -> None:
        self._call(lambda: self._async.start(environment, isolation_floor=isolation_floor))

    def run(self, code: str, **options: Any) -> Result:
        return self._call(lambda: self._async.run(code, **options))

    def stream(self, code: str, **options: Any) -> Iterator[Event]:
        return _iterate(self._call, self._async.stream(code, **options))

    def session(self, **options: Any) -> "Session":
        session = self._async.session(**options)
        self._call(session.open)
        return Session(session, self._call)

    def support(self) -> Support:
        return self._async.support()

    def close(self) -> None:
        """End every sandbox; waits until nothing is left. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            self._portal.call(self._async.aclose())
            self._portal.close()

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._closed:
            raise PlatformError("this engine is closed", hint="Open another with `onetrip.local()`.")

        async def run() -> T:
            return await work()

        return self._portal.call(run())


Call = Callable[[Callable[[], Awaitable[Any]]], Any]


class Session:
    """The synchronous face of `AsyncSession`."""

    def __init__(self, session: AsyncSession, call: Call) -> None:
        self._async, self._call = session, call
        self.files = Files(session.files, call)

    @property
    def id(self) -> str:
        return self._async.id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Result:
        result: Result = self._call(lambda: self._async.run(code, inputs=inputs, timeout_s=timeout_s))
        return result

    def stream(
        self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None, final: bool = False
    ) -> Iterator[Event]:
        return _iterate(self._call, self._async.stream(code, inputs=inputs, timeout_s=timeout_s, final=final))

    def undo(self, cells: int = 1) -> Rewound:
        done: Rewound = self._call(lambda: self._async.undo(cells))
        return done

    def redo(self, cells: int = 1) -> Rewound:
        done: Rewound = self._call(lambda: self._async.redo(cells))
        return done

    @overload
    def fork(self) -> "Session": ...
    @overload
    def fork(self, *, count: int) -> "list[Session]": ...
    def fork(self, *, count: int | None = None) -> "Session | list[Session]":
        made: list[AsyncSession] = self._call(lambda: self._async.fork(count=1 if count is None else count))
        branches = [Session(branch, self._call) for branch in made]
        return branches[0] if count is None else branches

    def interrupt(self) -> None:
        self._call(self._async.interrupt)

    def close(self) -> None:
        self._call(self._async.aclose)


class Files:
    """The synchronous face of `AsyncFiles`."""

    def __init__(self, files: AsyncFiles, call: Call) -> None:
        self._async, self._call = files, call

    def write(self, path: str, data: bytes | str) -> None:
        self._call(lambda: self._async.write(path, data))

    def read(self, path: str) -> bytes:
        data: bytes = self._call(lambda: self._async.read(path))
        return data

    def list(self) -> list[FileInfo]:
        found: list[FileInfo] = self._call(self._async.list)
        return found

    def delete(self, path: str) -> None:
        self._call(lambda: self._async.delete(path))


def _iterate(call: Call, events: AsyncIterator[Event]) -> Iterator[Event]:
    assert isinstance(events, AsyncGenerator)
    try:
        while True:
            try:
                event: Event = call(events.__anext__)
            except StopAsyncIteration:
                return
            yield event
    finally:
        call(events.aclose)
