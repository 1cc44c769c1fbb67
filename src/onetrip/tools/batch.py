"""Carries out a batch: what is ready runs in parallel, results come as they are made, one failure loses only what needed it.

A worker takes the item that is listed first of those that wait for nothing. It hands a result over before it takes the next item, so a
reader that is slow slows the batch: at most `concurrency` results and `UNREAD` more are made and not read.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Literal, TypeAlias

import msgspec

from onetrip.errors import STATUS, BadRequest, Forbidden, OnetripError
from onetrip.model import Result, ToolAnswer, ToolFailure
from onetrip.tools.batch_plan import DEFAULT_TIMEOUT_S, Batch, BatchItem, BatchRequest, Planned, plan
from onetrip.tools.references import Missing, Reference, find

__all__ = ["DEFAULT_TIMEOUT_S", "Batch", "BatchItem", "BatchRequest", "BatchResult", "ItemResult", "Outcome", "plan", "run_batch"]

UNREAD: Final = 16  # results that wait for the reader
MAX_KEPT_BYTES: Final = 256 << 20  # of results, for items that refer to them
_UNKNOWN: Final = "; whether it took effect is not known"
_STATUS_OF: Final[dict[str, Literal["error", "timeout", "denied"]]] = {
    "error": "error",
    "arguments": "error",
    "timeout": "timeout",
    "denied": "denied",
}
_log: Final = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """What one item gave, as JSON: a tool's value, or a cell's result. A cell that failed has both a result and an error."""

    value: bytes = b"null"
    error: ToolFailure | None = None

    @classmethod
    def of_answer(cls, answer: ToolAnswer) -> "Outcome":
        return cls(answer.value, answer.error)

    @classmethod
    def of_result(cls, result: Result) -> "Outcome":
        return cls(msgspec.json.encode(result), _failure_of(result))


class ItemResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item. `skipped`: it was not begun, and `error` says why; `because` is the item that failed."""

    id: str
    status: Literal["ok", "error", "skipped", "timeout", "denied"]
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # of a tool
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # of a cell, also of one that failed: as `POST /v1/runs` gives it
    error: ToolFailure | None = None
    because: str | None = None
    started_ms: float  # since the batch began
    duration_ms: float


class BatchResult(msgspec.Struct, frozen=True):
    """The answer where nobody wants a stream: results in the order of the request."""

    items: tuple[ItemResult, ...]


Call: TypeAlias = Callable[[BatchItem, bytes], Awaitable[Outcome]]


async def run_batch(batch: Batch, call: Call, *, concurrency: int) -> AsyncGenerator[ItemResult]:
    """Run every item once, never before what it is after; yield each result as soon as it is there.

    `call` makes one: it gets the item, and its arguments or inputs as a JSON object. Its OnetripErrors are that item's failure.
    `concurrency`: the most that run at once; the batch may ask for less. When the batch's time is over, `call` is cancelled, and the rest
    is skipped. Closing the generator (`contextlib.aclosing`) cancels what runs, and waits until it has ended.
    """
    run = _Run(batch, call)
    supervisor = asyncio.create_task(run.all(min(concurrency, batch.concurrency or concurrency, len(batch.items))))
    supervisor.add_done_callback(lambda _: run.unread.put_nowait(None))  # so that no reader waits for what will not come
    try:
        while (found := await run.unread.get()) is not None:
            run.room.release()
            yield found
        await supervisor
    finally:
        supervisor.cancel()
        await asyncio.wait((supervisor,))  # `call` may take its time to end; what it began is not left alone


class _Run:
    """The state of one batch. Positions stand for items. Used by one event loop only, and changed without an await between."""

    def __init__(self, batch: Batch, call: Call) -> None:
        self._items, self._call, self._timeout_s = batch.items, call, batch.timeout_s
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._deadline = self._began + batch.timeout_s
        self.unread: asyncio.Queue[ItemResult | None] = asyncio.Queue()  # bounded by `room`; the end of all always fits
        self.room = asyncio.Semaphore(UNREAD)
        self._blame: dict[int, str] = {}  # a failed or skipped item → the one that failed
        self._waits = [len(planned.needs | planned.behind) for planned in batch.items]
        self._followers: list[list[int]] = [[] for _ in batch.items]
        self._wanted: dict[str, set[Reference]] = {}  # of what each item gives
        self._users: dict[Reference, int] = {}  # items that will still look
        for position, planned in enumerate(batch.items):
            for before in planned.needs | planned.behind:
                self._followers[before].append(position)
            for reference in {reference for _, reference in planned.references}:
                self._wanted.setdefault(reference.item, set()).add(reference)
                self._users[reference] = self._users.get(reference, 0) + 1
        self._kept: dict[Reference, bytes | Missing] = {}
        self._kept_bytes = 0
        self._ready: asyncio.PriorityQueue[int] = (
            asyncio.PriorityQueue()
        )  # what is listed first is taken first; beyond all: the end
        self._left = len(batch.items)  # to be taken

    async def all(self, workers: int) -> None:
        for position, count in enumerate(self._waits):
            if not count:
                self._ready.put_nowait(position)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        end = len(self._items)
        while (position := await self._ready.get()) < end:
            self._left -= 1
            result = await self._one(position)
            self._settle(position)
            await self.room.acquire()
            self.unread.put_nowait(result)
            if not self._left:
                break
        self._ready.put_nowait(end)  # for the next worker

    def _settle(self, position: int) -> None:
        for follower in self._followers[position]:
            self._waits[follower] -= 1
            if not self._waits[follower]:
                self._ready.put_nowait(follower)

    async def _one(self, position: int) -> ItemResult:
        """Call it, or find out why not."""
        planned, started = self._items[position], self._clock()
        item = planned.item
        skipped, because = self._reason_to_skip(planned, started)
        arguments = self._arguments(planned, skip=skipped is not None)
        if skipped is not None:
            outcome = Outcome(error=skipped)
        elif isinstance(arguments, ToolFailure):
            outcome = Outcome(error=arguments)
        else:
            outcome = await self._called(item, arguments, started)
        error = outcome.error
        if error is None:
            self._keep(item.id, outcome.value)
        else:
            self._blame[position] = because or item.id
        given = error is None or (item.is_cell and outcome.value != b"null")
        raw = msgspec.Raw(outcome.value) if given else msgspec.UNSET
        return ItemResult(
            id=item.id,
            status="ok" if error is None else "skipped" if skipped is not None else _STATUS_OF[error.type],
            value=msgspec.UNSET if item.is_cell else raw,
            result=raw if item.is_cell else msgspec.UNSET,
            error=error,
            because=because,
            started_ms=_ms(started - self._began),
            duration_ms=_ms(self._clock() - started),
        )

    def _reason_to_skip(self, planned: Planned, now: float) -> tuple[ToolFailure | None, str | None]:
        failed = next((self._blame[before] for before in sorted(planned.needs) if before in self._blame), None)
        if failed is not None:
            return ToolFailure(f"not run: {failed} failed, and this needs it", code="dependency_failed"), failed
        if now >= self._deadline:
            said = f"not run: the batch's {self._timeout_s:g} s were over"
            return ToolFailure(said, "timeout", retryable=True, code="batch_timeout"), None
        return None, None

    async def _called(self, item: BatchItem, arguments: bytes, now: float) -> Outcome:
        until, whose = (
            self._deadline,
            ToolFailure(f"the batch's {self._timeout_s:g} s are over{_UNKNOWN}", "timeout", code="batch_timeout"),
        )
        if (
            item.timeout_s is not None and not item.is_cell and now + item.timeout_s < until
        ):  # a cell's own time is a limit of its run
            until, whose = (
                now + item.timeout_s,
                ToolFailure(f"no answer in {item.timeout_s:g} s{_UNKNOWN}", "timeout", code="item_timeout"),
            )
        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                outcome = await self._call(item, arguments)
        except TimeoutError:
            error = whose if scope.expired() else ToolFailure(f"the call timed out{_UNKNOWN}", "timeout")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # the batch is given up
                raise
            error = ToolFailure(f"the call was cancelled{_UNKNOWN}", code="cancelled")
        except OnetripError as err:
            kind = "denied" if isinstance(err, Forbidden) else "error"
            error = ToolFailure(str(err), kind, retryable=STATUS.get(err.code, (500, False))[1], code=err.code)
        except Exception:  # noqa: BLE001 -- the outermost shell of an item: what the others gave, writes perhaps, is not lost for it
            _log.exception("an item of a batch failed")
            error = ToolFailure("it failed within the server, which has logged why", code="internal")
        else:
            return _checked(outcome)
        return Outcome(error=error)

    def _arguments(self, planned: Planned, *, skip: bool) -> bytes | ToolFailure:
        """With references replaced; what nobody else will look at is let go, also when the item is skipped."""
        try:
            return b"{}" if skip else planned.arguments(self._kept)
        except BadRequest as err:
            return ToolFailure(str(err), "arguments", code="bad_reference")
        finally:
            for reference in {reference for _, reference in planned.references}:
                self._users[reference] -= 1
                if not self._users[reference]:
                    gone = self._kept.pop(reference, None)
                    self._kept_bytes -= len(gone) if isinstance(gone, bytes) else 0

    def _keep(self, item: str, value: bytes) -> None:
        """Of what an item gave, the parts that others refer to."""
        references = {reference for reference in self._wanted.get(item, ()) if self._users[reference]}
        for reference, part in find(value, references).items():
            size = len(part) if isinstance(part, bytes) else 0
            if self._kept_bytes + size > MAX_KEPT_BYTES:
                self._kept[reference] = Missing(f"is too large to be kept: {size:,} bytes, with others over {MAX_KEPT_BYTES:,}")
            else:
                self._kept[reference] = part
                self._kept_bytes += size


def _checked(outcome: Outcome) -> Outcome:
    """What goes into the answer as it stands must be JSON in UTF-8, or the whole answer is none."""
    try:
        outcome.value.decode()
        msgspec.json.decode(outcome.value, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return Outcome(error=outcome.error or ToolFailure("what it gave is not JSON in UTF-8", code="not_json"))
    return outcome


def _failure_of(result: Result) -> ToolFailure | None:
    """A cell's, as others of the batch see it."""
    said = f"{result.error.type}: {result.error.message}" if result.error is not None else f"the cell ended as {result.status}"
    match result.status:
        case "completed":
            return None
        case "limit_exceeded":
            wall = result.limit is not None and result.limit.name == "wall"
            return ToolFailure(said, "timeout" if wall else "error", code="limit_exceeded")
        case "waiting":
            return ToolFailure(
                "the cell waits for answers to its tool calls, and a batch does not: answer them with POST /v1/runs/{id}/tool_results",
                code="waiting",
            )
        case "lost":
            return ToolFailure(said, retryable=True, code="lost")
        case "failed":
            return ToolFailure(said, code="program_failed")
        case "interrupted":
            return ToolFailure(said, code="interrupted")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
