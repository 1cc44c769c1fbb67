"""The same interface for programs that block: each call is carried to an event loop on a thread of its own.

So pools refill and deadlines fire while the caller does something else. There is no logic here.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, overload

from onetrip.asynchronous import AsyncFiles, AsyncLocal, AsyncSession, PathLike
from onetrip.errors import OnetripError, PlatformError, Unavailable
from onetrip.model import Event, FileInfo, Level, Result, Rewound, Support
from onetrip.toolargs import ToolLike
from onetrip.waiting import Answers

T = TypeVar("T")


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
    """See `local` and `connect`. Safe to use from many threads."""

    def __init__(self, ot: AsyncLocal) -> None:
        self._async = ot
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

    def answer(self, run: Result | str, answers: Answers) -> Result:
        return self._call(lambda: self._async.answer(run, answers))

    def stream(self, code: str, **options: Any) -> Iterator[Event]:
        return _iterate(self._call, self._async.stream(code, **options))

    def session(self, **options: Any) -> "Session":
        return self._opened(self._async.session(**options))

    def attach(self, session_id: str) -> "Session":
        return self._opened(self._async.attach(session_id))

    def _opened(self, session: AsyncSession) -> "Session":
        self._call(session.open)
        return Session(session, self._call)

    def support(self) -> Support:
        return self._call(self._async.support)

    def close(self) -> None:
        """Embedded: end every sandbox; waits until nothing is left. Connected: end the connections. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            self._portal.call(self._async.aclose())
            self._portal.close()

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._closed:
            raise PlatformError("this engine is closed", hint="Open another with `onetrip.local()` or `onetrip.connect()`.")

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

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            self.close()
        except OnetripError as err:
            # A server that is away ends the session when it was idle for long; and of two errors the first is the one to be seen.
            if kind is None and not isinstance(err, Unavailable):
                raise

    def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        tools: Iterable[ToolLike] | None = None,
    ) -> Result:
        result: Result = self._call(lambda: self._async.run(code, inputs=inputs, timeout_s=timeout_s, tools=tools))
        return result

    def answer(self, run: Result | str, answers: Answers) -> Result:
        result: Result = self._call(lambda: self._async.answer(run, answers))
        return result

    def stream(
        self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None, final: bool = False,
        tools: Iterable[ToolLike] | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        return _iterate(self._call, self._async.stream(code, inputs=inputs, timeout_s=timeout_s, final=final, tools=tools))

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

    def upload(self, path: str, source: PathLike | BinaryIO) -> None:
        self._call(lambda: self._async.upload(path, source))

    def download(self, path: str, to: PathLike | BinaryIO) -> None:
        self._call(lambda: self._async.download(path, to))


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
