"""The asynchronous interface: an engine, its sessions and their files as objects. `embedded` and `remote` make them."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, BinaryIO, Literal, Self, TypeVar, cast, overload

import msgspec

from onetrip import checks
from onetrip.errors import BadRequest, OnetripError, PlatformError, Unavailable
from onetrip.model import (
    Cell,
    Event,
    FileInfo,
    Level,
    Limits,
    Policy,
    Result,
    Rewound,
    SessionSpec,
    Support,
)
from onetrip.seam import Engine, Files
from onetrip.toolargs import Given, ToolLike
from onetrip.waiting import Answers, Waiting

T = TypeVar("T")
PathLike = str | os.PathLike[str]
FileContents = Mapping[str, bytes | str]
LimitsLike = Limits | Mapping[str, Any] | None
PolicyLike = Policy | Mapping[str, Any] | None


class AsyncLocal:
    """See `alocal` and `aconnect`. Safe to use from many tasks of one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting = Waiting(engine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def start(self, environment: str = "default", *, isolation_floor: Level = "strict") -> None:
        """Warm up now what the first run would otherwise wait for. Raises what `run` raises."""
        await self._engine.start(environment, floor=isolation_floor)

    async def run(self, code: str, **options: Any) -> Result:
        """Run one program in a sandbox of its own and return its result; a program that fails is a result, too.

        Options: `environment`, `files` (path → bytes or text), `inputs` (name → JSON value), `tools`, `limits`, `policy`, `timeout_s`,
        `isolation_floor`. Of `tools`, functions of yours are called here, in this process; those that are declared (`Tool`, or a
        dictionary like it) are yours to answer: the result is `waiting`, and `answer` goes on. Raises BadRequest, Unavailable or PlatformError; then nothing has run. Cancelling ends the sandbox.
        """
        return await self._waiting.result(self.stream(code, **options))

    async def answer(self, run: Result | str, answers: Answers) -> Result:
        """Answer calls that a run waits for, some or all, and return its next result, `waiting` again or not.

        `answers`: id of a call → its value (JSON), or a `ToolFailure` or an exception of yours; of an approval True, or a `ToolFailure`.
        None at all: wait until the program goes on by itself, as at the end of a timeout of its own. All are taken or none: raises BadRequest for an id that never was, Conflict for one that does not wait any more, NotFound.
        """
        return await self._waiting.answer(run, answers)

    async def stream(
        self,
        code: str,
        *,
        environment: str = "default",
        files: FileContents | None = None,
        inputs: Mapping[str, Any] | None = None,
        tools: Iterable[ToolLike] | None = None,
        wait_s: float = SessionSpec().wait_s,
        limits: LimitsLike = None,
        policy: PolicyLike = None,
        timeout_s: float | None = None,
        isolation_floor: Level = "strict",
    ) -> AsyncGenerator[Event]:
        """The same, event by event; the last one is `Done` with the result. A slow reader slows the program.

        After a `Done` that is `waiting` the events go on when the calls are answered, with `answer` from another task or before the next event.
        """
        with contextlib.closing(Given(tools)) as given:
            spec = _spec(
                environment=environment,
                limits=limits,
                policy=policy,
                isolation_floor=isolation_floor,
                tools=given.tools,
                wait_s=wait_s,
            )
            cell = Cell(code=code, inputs=dict(inputs or {}), timeout_s=timeout_s, final=True)
            events = self._engine.run(spec, cell, _contents(files), ask=given.ask)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event

    def session(
        self,
        *,
        environment: str = "default",
        files: FileContents | None = None,
        tools: Iterable[ToolLike] | None = None,
        wait_s: float = SessionSpec().wait_s,
        limits: LimitsLike = None,
        policy: PolicyLike = None,
        metadata: Mapping[str, str] | None = None,
        idle_timeout_s: float | None = None,
        isolation_floor: Level = "strict",
        checkpoints: int = 8,
        on_error: Literal["keep", "rollback"] = "keep",
        threads: int = 1,
    ) -> "AsyncSession":
        """A live namespace with a workspace: `async with ot.session() as s`, or `s = await ot.session()` and `await s.aclose()`.

        `checkpoints`: how many cells can be undone; 0 for a session that a killed cell ends. `on_error="rollback"`: a cell that
        raises leaves nothing behind. `threads` of OpenMP and BLAS: with more than one there are no checkpoints. `idle_timeout_s`:
        when a server ends it if nothing is asked of it; `tools`: see `run`; `wait_s`: how long a call waits for your answer. An embedded session lives as long as its engine. One that was opened
        without `with` on a server lives on when the client is closed (`attach`).
        """
        given = Given(tools)
        spec = _spec(
            environment=environment, limits=limits, policy=policy, isolation_floor=isolation_floor, metadata=dict(metadata or {}),
            idle_timeout_s=idle_timeout_s, checkpoints=checkpoints, on_error=on_error, threads=threads, tools=given.tools, wait_s=wait_s,
        )  # fmt: skip
        contents = _contents(files)
        return AsyncSession(
            self._engine, lambda: self._engine.open(spec, contents, ask=given.ask), waiting=self._waiting, given=given
        )

    def attach(self, session_id: str) -> "AsyncSession":
        """A session that is there already, by its id: `s = await ot.attach(id)`. With `async with` it is closed at the end, as any.

        Awaiting it raises NotFound, or SessionGone with the reason.
        """
        return AsyncSession(self._engine, lambda: self._engine.attach(session_id), waiting=self._waiting)

    async def support(self) -> Support:
        """What isolation there is."""
        return await self._engine.find_support()

    async def aclose(self) -> None:
        """Embedded: end every sandbox; waits until nothing is left. Connected: end the connections; sessions live on."""
        await self._waiting.aclose()
        await self._engine.aclose()


class AsyncSession:
    """One session. Cells run one after the other; `interrupt` may come from another task."""

    def __init__(
        self, engine: Engine, begin: Callable[[], Awaitable[str]] | None, session_id: str | None = None, *, waiting: Waiting,
        given: Given | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._begin, self._waiting, self._given = engine, begin, waiting, given
        self._id = session_id
        self.files = AsyncFiles(self)

    @property
    def id(self) -> str:
        if self._id is None:
            raise PlatformError("the session is not open yet", hint="Use `async with`, or await it.")
        return self._id

    @property
    def engine(self) -> Engine:
        return self._engine

    async def open(self) -> Self:
        """Start it, once; the same as awaiting it. Raises what `run` raises."""
        if self._id is None and self._begin is not None:
            self._id = await self._begin()
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            await self.aclose()
        except OnetripError as err:
            # A server that is away ends the session when it was idle for long; and of two errors the first is the one to be seen.
            if kind is None and not isinstance(err, Unavailable):
                raise

    async def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        tools: Iterable[ToolLike] | None = None,
    ) -> Result:
        """Run one cell; variables of earlier cells are there. Raises SessionGone when an earlier cell took the session with it.

        Raises Conflict while the cell before waits for answers. `tools`: declared ones, for this cell beside those of the session.
        """
        return await self._waiting.result(self.stream(code, inputs=inputs, timeout_s=timeout_s, tools=tools))

    async def answer(self, run: Result | str, answers: Answers) -> Result:
        """See `AsyncLocal.answer`."""
        return await self._waiting.answer(run, answers)

    async def stream(
        self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None, final: bool = False,
        tools: Iterable[ToolLike] | None = None,
    ) -> AsyncGenerator[Event]:  # fmt: skip
        """The same, event by event. `final`: behave at the end as an ending program does (threads joined, exit handlers run)."""
        given = Given(tools)
        self._waiting.check(self.id)
        if given.ask is not None:
            raise BadRequest("tools: functions are given to the session, not to one cell of it", field="tools")
        cell = Cell(code=code, inputs=dict(inputs or {}), timeout_s=timeout_s, final=final, tools=given.tools)
        events = self._engine.execute(self.id, cell)
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
        made = [
            AsyncSession(self._engine, None, branch, waiting=self._waiting)
            for branch in await self._engine.fork(self.id, 1 if count is None else count)
        ]
        return made[0] if count is None else made

    async def interrupt(self) -> None:
        """Like Ctrl-C for the cell that runs; it is killed when it does not end within the grace period. One that waits is given up."""
        await self._engine.interrupt(self.id)
        await self._waiting.give_up(self.id)

    async def aclose(self) -> None:
        if self._id is not None:
            await self._waiting.give_up(self._id)
            await self._engine.close(self._id)
        if self._given is not None:
            self._given.close()

    close = aclose


class AsyncFiles:
    """The files of a session; paths are relative to its workspace."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def write(self, path: str, data: bytes | str) -> None:
        """Create or replace a file. Raises BadRequest for a path that leaves the workspace, WorkspaceFull."""
        await self._files.write(path, _contents({path: data})[path])

    async def read(self, path: str) -> bytes:
        """The content of a regular file. Raises NotFound, BadRequest."""
        return await self._files.read(path)

    async def list(self) -> list[FileInfo]:
        return await self._files.list()

    async def delete(self, path: str) -> None:
        await self._files.delete(path)

    async def upload(self, path: str, source: PathLike | BinaryIO) -> None:
        """`write` from a file of the caller, by its name or open for reading, of any size. Raises the same; BadRequest for the source."""
        if not isinstance(source, (str, os.PathLike)):
            await self._files.upload(path, source)
            return
        with _refused("source", source), await asyncio.to_thread(open, source, "rb") as file:
            await self._files.upload(path, file)

    async def download(self, path: str, to: PathLike | BinaryIO) -> None:
        """`read` into a file of the caller, by its name or open for writing, of any size. Raises the same; BadRequest for `to`.

        A file that is named appears whole or not at all.
        """
        if not isinstance(to, (str, os.PathLike)):
            await self._files.download(path, to)
            return
        temporary = f"{os.fspath(to)}.{secrets.token_hex(4)}.part"
        try:
            with _refused("to", to):
                with await asyncio.to_thread(open, temporary, "xb") as file:
                    await self._files.download(path, file)
                await asyncio.to_thread(os.replace, temporary, to)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    @property
    def _files(self) -> Files:
        return self._session.engine.files(self._session.id)


@contextlib.contextmanager
def _refused(field: str, path: PathLike) -> Generator[None]:
    """What the caller's own disk refuses is the caller's mistake."""
    try:
        yield
    except (OSError, ValueError) as err:
        if isinstance(err, OnetripError):
            raise
        raise BadRequest(f"{field}: {os.fspath(path)!r}: {getattr(err, 'strerror', None) or err}", field=field) from err


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
    checks.check_threads(fields.get("threads", 1))
    return SessionSpec(limits=_convert(limits, Limits, "limits"), policy=_convert(policy, Policy, "policy"), **fields)


def _convert(given: Any, kind: type[T], field: str) -> T:
    if isinstance(given, kind):
        return given
    try:
        return msgspec.convert({} if given is None else dict(given), kind)
    except (msgspec.ValidationError, TypeError, ValueError) as err:
        raise BadRequest(f"{field}: {err}", field=field) from err
