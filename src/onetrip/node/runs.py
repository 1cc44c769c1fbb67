"""The runs of a node: started on behalf of a server that may go away, kept with their events until it has the result for good."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from onetrip import model, outcomes
from onetrip.engine import LocalEngine
from onetrip.errors import Conflict, NotFound, OnetripError, PlatformError
from onetrip.node import messages
from onetrip.node.logs import Log
from onetrip.seam import Ask

KEEP_S: Final = 300.0  # events of a run whose result is saved: for readers that come back
KEEP_BYTES: Final = 32 << 20  # of all such events together
ENTRY_BYTES: Final = 6 << 10  # of a run beside its events: some objects
LOOK_EVERY_S: Final = 600.0
UNSAVED_S: Final = 24 * 3600.0  # of a run whose result nobody fetched


class Entry:
    """One run. `began` is false while it waits for its turn in the session."""

    __slots__ = ("answered", "began", "cancelled", "driven", "finished_at", "log", "meta", "saved", "session_id", "task")

    def __init__(self, session_id: str | None, meta: dict[str, str]) -> None:
        self.session_id, self.meta = session_id, meta
        self.log = Log()
        self.saved = self.began = self.cancelled = self.driven = False
        self.finished_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self.answered: dict[str, int] = {}  # keys of requests with answers → number of the newest event when they were taken


class Runs:
    """`begin` a run, `entry` to follow it. `on_session_gone` is told of sessions that a cell took with it."""

    def __init__(self, engine: LocalEngine, ask: Ask, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._ask, self._clock = engine, ask, clock
        self._entries: dict[str, Entry] = {}
        self._saved: collections.deque[str] = (
            collections.deque()
        )  # those that may be forgotten, in the order in which they were saved
        self.log_bytes = 0  # of these
        self._looked_at = clock()
        self.running = 0
        self.on_session_gone: Callable[[str, str], None] = lambda _session_id, _why: None

    def begin(self, run: messages.Run) -> Entry:
        """Start it; it goes on whatever becomes of the server. One that came to nothing may be begun again.

        Raises Conflict when there is a run of this id.
        """
        earlier = self._entries.pop(run.run_id, None)
        if earlier is not None and not (earlier.log.ended and earlier.log.failure is not None):
            self._entries[run.run_id] = earlier
            raise Conflict(f"there is a run {run.run_id!r} already")
        entry = self._entries[run.run_id] = Entry(run.session_id, run.meta)
        if run.followed:
            entry.log.expect_reader()
        entry.task = asyncio.create_task(self._drive(run, entry))
        return entry

    def entry(self, run_id: str) -> Entry:
        """Raises NotFound."""
        entry = self._entries.get(run_id)
        if entry is None:
            raise NotFound(f"this node has no run {run_id[:60]!r}")
        return entry

    async def answer(self, run_id: str, answers: Sequence[model.ToolAnswer], key: str | None) -> int:
        """Answer calls that it waits for, once for each key. Returns the number of its newest event at that moment.

        The key is remembered here, where the answers are taken: a server may die before it knows whether they were.
        Raises NotFound, BadRequest, Conflict; then none is taken.
        """
        entry = self.entry(run_id)
        if key is not None and (number := entry.answered.get(key)) is not None:
            return number
        await self._engine.answer(run_id, answers)
        number = len(entry.log.records)
        if key is not None and answers:
            entry.answered[key] = number
        entry.log.go_on()
        return number

    def interrupt(self, run_id: str) -> None:
        """Like Ctrl-C; a run that waits for its turn is not begun any more."""
        entry = self._entries.get(run_id)
        if entry is None or entry.log.ended:
            return
        if entry.began:
            self._engine.interrupt_run(run_id)
        elif entry.task is not None:
            entry.cancelled = True
            if entry.driven:  # else its task has not begun, and would never hear of it
                entry.task.cancel()

    def saved(self, run_ids: Iterable[str]) -> None:
        """The server has these results for good."""
        for run_id in run_ids:
            entry = self._entries.get(run_id)
            if entry is not None and entry.log.ended and not entry.saved:
                entry.saved = True
                self._saved.append(run_id)
                self.log_bytes += entry.log.bytes + ENTRY_BYTES
        self._prune()

    def held(self) -> tuple[messages.HeldRun, ...]:
        return tuple(
            messages.HeldRun(run_id, entry.session_id, entry.meta, entry.log.ended, entry.saved)
            for run_id, entry in self._entries.items()
        )

    async def wait_idle(self) -> None:
        """Until nothing runs. No deadline of its own: every run has its limits."""
        while tasks := [entry.task for entry in self._entries.values() if entry.task is not None and not entry.task.done()]:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        for entry in self._entries.values():
            if entry.task is not None:
                entry.task.cancel()
        await self.wait_idle()

    # ------------------------------------------------------------------ inside

    async def _drive(self, run: messages.Run, entry: Entry) -> None:
        failure: BaseException | None = None
        self.running += 1
        entry.driven = True
        try:
            if entry.cancelled:
                await entry.log.put(model.Done(_never_began(run)))
                return
            if run.session_id is None:
                spec = run.spec or model.SessionSpec()
                events = self._engine.run(spec, run.cell, run.files, run_id=run.run_id, queue_ms=run.queue_ms, ask=self._ask)
            else:
                events = self._engine.execute(run.session_id, run.cell, run_id=run.run_id, queue_ms=run.queue_ms)
            async with contextlib.aclosing(events):
                async for event in events:
                    entry.began = True
                    if isinstance(event, model.Done) and run.session_id and not event.result.session.survived:
                        self.on_session_gone(run.session_id, event.result.session.note or "its process ended")
                    await entry.log.put(event)
        except OnetripError as err:
            failure = err
        except asyncio.CancelledError as err:
            if not entry.cancelled:  # the node ends
                failure = PlatformError("the node was ended", hint="Run it again.")
                raise
            await entry.log.put(model.Done(_never_began(run)))
            failure = err
        except Exception as err:  # noqa: BLE001 - the shell of a task: whoever waits must hear of it, and it is logged there
            failure = PlatformError(f"the node failed: {type(err).__name__}: {err}")
            failure.__cause__ = err
        finally:
            self.running -= 1
            entry.finished_at = self._clock()
            if not entry.log.ended:
                entry.log.end(failure or PlatformError("the run ended without a result"))
            self._forget_unsaved()

    def _prune(self) -> None:
        """Forget runs whose result is saved: the oldest while they hold too much, and those that are old. Costs only what it forgets."""
        now = self._clock()
        while self._saved and (entry := self._entries[self._saved[0]]):
            if self.log_bytes <= KEEP_BYTES and now - entry.finished_at <= KEEP_S:
                break
            self.log_bytes -= entry.log.bytes + ENTRY_BYTES
            del self._entries[self._saved.popleft()]

    def _forget_unsaved(self) -> None:
        """Those that no server asked for in a day. Looks at all of them, so it is called now and then."""
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        for run_id, entry in list(self._entries.items()):
            if entry.log.ended and not entry.saved and now - entry.finished_at > UNSAVED_S:
                del self._entries[run_id]


def _never_began(run: messages.Run) -> model.Result:
    return outcomes.never_began(run.run_id, run.session_id, run.queue_ms, run.spec or model.SessionSpec())
