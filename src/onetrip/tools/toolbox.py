"""The server's tools by name, and the one way to call them: checked, paced, bounded in time and size, and never raising."""

import asyncio
import contextlib
import contextvars
import fnmatch
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final, cast

import msgspec

from onetrip.errors import BadRequest
from onetrip.model import Tool, ToolAnswer, ToolFailure, ToolRequest
from onetrip.seam import Prompt
from onetrip.tools.base import (
    CALL,
    DEFAULT_CALLS,
    DEFAULT_THREADS,
    DEFAULT_TIMEOUT_S,
    Awaiting,
    Blocking,
    CurrentCall,
    Options,
    ServerTool,
    ToolFailed,
)
from onetrip.tools.functions import check_options, from_function
from onetrip.tools.threads import Threads

MAX_THREADS: Final = 512  # of all tools together; calls that hang keep theirs
MAX_WAITING: Final = 10_000  # calls of one tool that wait for their turn
MAX_MESSAGE: Final = 2_000  # characters of an exception's text
Observer = Callable[[ToolRequest, ToolAnswer, float], None]  # the call, what it gave, seconds

_log: Final = logging.getLogger("onetrip.tools")


class Toolbox:
    """Server tools. To be used from one event loop; `allowed` gives views with fewer of them, which share their limits."""

    def __init__(
        self,
        tools: Iterable[Callable[..., Any] | ServerTool] = (),
        *,
        overrides: Mapping[str, Options | None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`overrides`: what wins over what tools say of themselves, by name or pattern ("shop.*"); None: not to be had at all.

        `observer` is told of each call when it is answered.
        """
        self._shelf = _Shelf(dict(overrides or {}), observer)
        self._patterns: tuple[tuple[str, ...], ...] = ()  # of each, one must match
        for one in tools:
            self.add(one)

    def add(self, tool: Callable[..., Any] | ServerTool, options: Options | None = None) -> Tool | None:
        """A function, or a tool of another kind. None: the overrides say that it is not to be had.

        Raises BadRequest for one that cannot be a tool, or whose name is taken.
        """
        made = tool if isinstance(tool, ServerTool) else from_function(tool, options)
        return self._shelf.add(made, options if isinstance(tool, ServerTool) else None)

    def replace(self, old: Collection[str], new: Iterable[ServerTool]) -> None:
        """Other tools instead of those with these names: a server's list changed. Calls on their way are not touched.

        Raises BadRequest, and has changed nothing, where a name is taken by a tool that is not among the old ones.
        """
        self._shelf.replace(old, new)

    def allowed(self, patterns: Iterable[str]) -> "Toolbox":
        """A view with the tools whose names match one of the patterns, such as "shop.*"; those that come later included."""
        view = Toolbox()
        view._shelf = self._shelf
        view._patterns = (*self._patterns, tuple(patterns))
        return view

    @property
    def tools(self) -> tuple[Tool, ...]:
        """In the order of their names."""
        entries = self._shelf.entries
        return tuple(entries[name].tool.tool for name in sorted(entries) if self._has(name))

    def ask(self, request: ToolRequest) -> Awaitable[ToolAnswer]:
        """Answer a call: awaited, it raises nothing but CancelledError, which ends the call as far as its code lets itself be ended.

        A call that need not wait for its turn has begun already, and is a future.
        """
        began = time.monotonic()
        entry = self._shelf.entries.get(request.tool) if self._has(request.tool) else None
        if entry is not None and self._shelf.observer is None and entry.is_free:
            return self._shelf.begin(entry, request)
        return self._ask(request, entry, began)

    async def _ask(self, request: ToolRequest, entry: "_Entry | None", began: float) -> ToolAnswer:
        if entry is None:
            answer = ToolAnswer(request.id, error=ToolFailure(message=self._unknown(request.tool), code="unknown_tool"))
        else:
            outcome = await self._shelf.call(entry, request, began)
            answer = ToolAnswer(request.id, outcome) if isinstance(outcome, bytes) else ToolAnswer(request.id, error=outcome)
        if self._shelf.observer is not None:
            try:
                self._shelf.observer(request, answer, time.monotonic() - began)
            except Exception:  # noqa: BLE001 -- somebody else's function, and the answer is there
                _log.exception("the observer of tool calls failed")
        return answer

    def close(self) -> None:
        """Give back the threads. What hangs in one keeps it; nobody waits."""
        self._shelf.threads.close()

    def _has(self, name: str) -> bool:
        return all(any(fnmatch.fnmatchcase(name, pattern) for pattern in one) for one in self._patterns)

    def _unknown(self, name: str) -> str:
        import difflib  # noqa: PLC0415 -- only for a mistake

        near = difflib.get_close_matches(name, [tool.name for tool in self.tools], n=1)
        return f"There is no tool {name[:100]!r}." + (f" Did you mean {near[0]!r}?" if near else "")


class _Entry:
    """A tool with what its limits need."""

    def __init__(self, tool: ServerTool) -> None:
        self.tool = tool
        self.timeout_s = tool.tool.timeout_s or DEFAULT_TIMEOUT_S
        self.slots = asyncio.Semaphore(tool.concurrency or (DEFAULT_THREADS if tool.blocking else DEFAULT_CALLS))
        self.waiting = 0
        self._deadlines: dict[_Outcome, float] = {}  # of calls that `begin` made and that are not over, the first to come first
        self._timer: asyncio.TimerHandle | None = None
        self.free_at = 0.0  # by time.monotonic(): when the rate allows the next call, had none been saved up

    @property
    def is_free(self) -> bool:
        """Whether a call of it can begin now, on the event loop."""
        return not self.tool.blocking and self.tool.rate is None and not self.slots.locked()

    def expire_later(self, outcome: "_Outcome", deadline: float) -> None:
        """One timer for all calls of the tool: one for each would cost as much as the rest of a short call. `over` in any case."""
        self._deadlines[outcome] = deadline
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.timeout_s, self._expire)

    def over(self, outcome: "_Outcome") -> None:
        self._deadlines.pop(outcome, None)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        while (first := next(iter(self._deadlines.items()), None)) is not None:
            outcome, deadline = first
            if deadline > now:
                self._timer = asyncio.get_running_loop().call_later(deadline - now, self._expire)
                return
            del self._deadlines[outcome]
            _expire(self, outcome)


class _Outcome:
    """A future of an answer, as `_await` and `_expire` see it: of what the code gave."""

    __slots__ = ("_id", "future")

    def __init__(self, call_id: str, future: Prompt) -> None:
        self._id, self.future = call_id, future

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, value: bytes | ToolFailure) -> None:
        self.future.set_result(ToolAnswer(self._id, value) if isinstance(value, bytes) else ToolAnswer(self._id, error=value))


class _Shelf:
    """What all views of a toolbox share."""

    def __init__(self, overrides: dict[str, Options | None], observer: Observer | None) -> None:
        for options in overrides.values():
            if options is not None:
                check_options(options)
        self.entries: dict[str, _Entry] = {}
        self.threads = Threads(MAX_THREADS, "onetrip-tool")
        self.observer = observer
        self._overrides = overrides
        self._left: set[asyncio.Task[None]] = set()  # calls that nobody waits for any more, and that have not ended yet

    def add(self, tool: ServerTool, options: Options | None) -> Tool | None:
        made = self._adjusted(tool, options)
        if made is None:
            return None
        if made.tool.name in self.entries:
            raise BadRequest(f"tools: there are two with the name {made.tool.name!r}.", field="tools")
        self.entries[made.tool.name] = _Entry(made)
        return made.tool

    def replace(self, old: Collection[str], new: Iterable[ServerTool]) -> None:
        kept = {name: entry for name, entry in self.entries.items() if name not in old}
        for tool in new:
            made = self._adjusted(tool, None)
            if made is None:
                continue
            if made.tool.name in kept:
                raise BadRequest(f"tools: there are two with the name {made.tool.name!r}.", field="tools")
            before = self.entries.get(made.tool.name)
            kept[made.tool.name] = entry = _Entry(made)
            if before is not None and before.tool.concurrency == made.concurrency:
                entry.slots, entry.free_at = before.slots, before.free_at  # a new list is no way around the limits
        self.entries = kept

    def _adjusted(self, tool: ServerTool, options: Options | None) -> ServerTool | None:
        said = [options] if options is not None else []
        for pattern, override in self._overrides.items():
            if fnmatch.fnmatchcase(tool.tool.name, pattern):
                if override is None:
                    return None
                said.append(override)
        for one in said:
            changed = {name: value for name, value in msgspec.structs.asdict(check_options(one)).items() if value is not None}
            of_tool = {name: changed.pop(name) for name in tuple(changed) if name in Tool.__struct_fields__}
            tool = msgspec.structs.replace(tool, tool=msgspec.structs.replace(tool.tool, **of_tool), **changed)
        return tool

    def begin(self, entry: _Entry, request: ToolRequest) -> "asyncio.Future[ToolAnswer]":
        """The same as `call` for one that is free: without a task that only waits for another, which costs as much as the call."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(StopIteration):  # it is free, so this never waits
            entry.slots.acquire().send(None)
        context = contextvars.copy_context()
        deadline = time.monotonic() + entry.timeout_s
        context.run(CALL.set, CurrentCall(request.id, request.tool, request.run_id, request.session_id, deadline))
        answer = Prompt(loop=loop)
        outcome = _Outcome(request.id, answer)
        task = loop.create_task(_await(entry, request.arguments, outcome), context=context)
        entry.expire_later(outcome, deadline)
        answer.add_done_callback(partial(self._over, entry, outcome, task))
        return answer

    def _over(self, entry: _Entry, outcome: _Outcome, task: asyncio.Task[None], _: "asyncio.Future[ToolAnswer]") -> None:
        entry.over(outcome)
        if task.done():
            entry.slots.release()
        else:
            task.cancel()
            self._left.add(task)  # the event loop keeps weak references only
            task.add_done_callback(partial(self._leave, entry))

    async def call(self, entry: _Entry, request: ToolRequest, began: float) -> bytes | ToolFailure:
        """The value, or why there is none. The slot is given back when the code is done, not when we stop waiting for it."""
        deadline = began + entry.timeout_s
        if entry.tool.rate is not None and (late := await _paced(entry, entry.tool.rate, deadline)) is not None:
            return late
        if entry.slots.locked():
            if entry.waiting >= MAX_WAITING:
                return ToolFailure(
                    message=f"{MAX_WAITING:,} calls of this tool wait for their turn.", retryable=True, code="busy"
                )
            entry.waiting += 1
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await entry.slots.acquire()
            except TimeoutError:
                message = (
                    f"The call waited {entry.timeout_s:g} s for its turn: other calls of this tool are running. It was not made."
                )
                return ToolFailure(message=message, type="timeout", retryable=True, code="busy")
            finally:
                entry.waiting -= 1
        else:
            await entry.slots.acquire()
        context = contextvars.copy_context()
        context.run(CALL.set, CurrentCall(request.id, request.tool, request.run_id, request.session_id, deadline))
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[bytes | ToolFailure] = loop.create_future()
        task: asyncio.Task[None] | None = None
        if entry.tool.blocking:
            settle = partial(_settle_from_thread, loop, entry, outcome)
            if not self.threads.submit(lambda: context.run(_block, entry, request.arguments, settle)):
                entry.slots.release()
                return ToolFailure(message="Every thread for tools is busy. The call was not made.", retryable=True, code="busy")
        else:
            task = loop.create_task(_await(entry, request.arguments, outcome), context=context)
        handle = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, entry, outcome)
        try:
            return await outcome
        finally:
            handle.cancel()
            if task is not None:
                if task.done():
                    entry.slots.release()
                else:
                    task.cancel()
                    self._left.add(task)  # the event loop keeps weak references only
                    task.add_done_callback(partial(self._leave, entry))

    def _leave(self, entry: _Entry, task: asyncio.Task[None]) -> None:
        self._left.discard(task)
        entry.slots.release()


async def _paced(entry: _Entry, rate: float, deadline: float) -> ToolFailure | None:
    """Wait until the rate allows the call; a second's worth may be saved up. A failure, where that is after the deadline."""
    now = time.monotonic()
    turn = max(entry.free_at, now)
    wait = turn - now - (max(1.0, rate) - 1) / rate
    if now + wait >= deadline:
        message = f"This tool takes {rate:g} calls per second; the turn of this one would be in {wait:.1f} s. It was not made."
        return ToolFailure(message=message, retryable=True, code="rate_limited")
    entry.free_at = turn + 1 / rate
    if wait > 0:
        await asyncio.sleep(wait)
    return None


def _settle(entry: _Entry, outcome: "asyncio.Future[bytes | ToolFailure]", value: bytes | ToolFailure) -> None:
    """A thread is done, maybe long after the deadline."""
    entry.slots.release()
    if not outcome.done():
        outcome.set_result(value)


def _settle_from_thread(
    loop: asyncio.AbstractEventLoop, entry: _Entry, outcome: "asyncio.Future[bytes | ToolFailure]", value: bytes | ToolFailure
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for this any more
        loop.call_soon_threadsafe(_settle, entry, outcome, value)


def _expire(entry: _Entry, outcome: "asyncio.Future[bytes | ToolFailure] | _Outcome") -> None:
    if outcome.done():
        return
    changes = entry.tool.tool.effect == "write"
    message = f"The tool did not answer within {entry.timeout_s:g} s." + (
        " What it does may be done all the same." if changes else ""
    )
    outcome.set_result(ToolFailure(message=message, type="timeout", retryable=not changes, code="deadline"))


async def _await(entry: _Entry, arguments: bytes, outcome: "asyncio.Future[bytes | ToolFailure] | _Outcome") -> None:
    value: bytes | ToolFailure = ToolFailure(message="The tool's code was cancelled.", code="cancelled")
    try:
        value = await cast("Awaiting", entry.tool.invoke)(arguments, entry.tool.max_result_bytes)
    except asyncio.CancelledError:
        if outcome.done():  # by our own hand: deadline, or whoever asked went away
            raise
    except BaseException as err:  # noqa: BLE001 -- somebody else's code: even its SystemExit must not end the server
        value = failure_of(err, entry.tool.tool.name)
    if not outcome.done():
        outcome.set_result(value)


def _block(entry: _Entry, arguments: bytes, settle: Callable[[bytes | ToolFailure], None]) -> None:
    value: bytes | ToolFailure
    try:
        value = cast("Blocking", entry.tool.invoke)(arguments, entry.tool.max_result_bytes)
    except BaseException as err:  # noqa: BLE001 -- as above
        value = failure_of(err, entry.tool.tool.name)
    settle(value)


def failure_of(err: BaseException, tool: str) -> ToolFailure:
    """What the program is told of an exception: its type and message. Its traceback is logged."""
    if isinstance(err, ToolFailed):
        return err.failure
    _log.warning("tool %s failed", tool, exc_info=err)
    try:
        text = str(err)
    except Exception:  # noqa: BLE001 -- an exception class of somebody else
        text = ""
    name = type(err).__name__
    message = f"{name}: {text}"[:MAX_MESSAGE] if text else name
    if isinstance(err, PermissionError):
        return ToolFailure(message=message, type="denied")
    if isinstance(err, TimeoutError):
        return ToolFailure(message=message, type="timeout")
    return ToolFailure(message=message)
