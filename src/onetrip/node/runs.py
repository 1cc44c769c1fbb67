"""The runs of a node: started on behalf of a server that may go away, kept with their events until it has the result for good."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from onetrip import model
from onetrip.engine import Engine
from onetrip.errors import Conflict, NotFound, OnetripError, PlatformError
from onetrip.node import messages
from onetrip.node.logs import Log

KEEP_S: Final = 300.0  # events of a run whose result is saved: for readers that come back
KEEP_BYTES: Final = 128 << 20  # of all such events together
UNSAVED_S: Final = 24 * 3600.0  # of a run whose result nobody fetched


class Entry:
    """One run. `began` is false while it waits for its turn in the session."""

    __slots__ = ("began", "cancelled", "finished_at", "log", "meta", "saved", "session_id", "task")

    def __init__(self, session_id: str | None, meta: dict[str, str]) -> None:
        self.session_id, self.meta = session_id, meta
        self.log = Log()
        self.saved = self.began = self.cancelled = False
        self.finished_at = 0.0
        self.task: asyncio.Task[None] | None = None


class Runs:
    """`begin` a run, `entry` to follow it. `on_session_gone` is told of sessions that a cell took with it."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._entries: dict[str, Entry] = {}
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
        entry.task = asyncio.create_task(self._drive(run, entry))
        return entry

    def entry(self, run_id: str) -> Entry:
        """Raises NotFound."""
        entry = self._entries.get(run_id)
        if entry is None:
            raise NotFound(f"this node has no run {run_id[:60]!r}")
        return entry

    def interrupt(self, run_id: str) -> None:
        """Like Ctrl-C; a run that waits for its turn is not begun any more."""
        entry = self._entries.get(run_id)
        if entry is None or entry.log.ended:
            return
        if entry.began:
            self._engine.interrupt(run_id)
        elif entry.task is not None:
            entry.cancelled = True
            entry.task.cancel()

    def saved(self, run_id: str) -> None:
        entry = self._entries.get(run_id)
        if entry is not None:
            entry.saved = True
            self._prune()

    def held(self) -> tuple[messages.HeldRun, ...]:
        return tuple(
            messages.HeldRun(run_id, entry.session_id, entry.meta, entry.log.ended, entry.saved)
            for run_id, entry in self._entries.items()
        )

    @property
    def log_bytes(self) -> int:
        return sum(entry.log.bytes for entry in self._entries.values())

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
        try:
            if run.session_id is None:
                spec = run.spec or model.SessionSpec()
                events = self._engine.run(spec, run.cell, run.files, run_id=run.run_id, queue_ms=run.queue_ms)
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
            self._prune()

    def _prune(self) -> None:
        """Forget finished runs that are old, or, of those whose result is saved, the oldest while they hold too much."""
        now = self._clock()
        held = self.log_bytes
        for run_id, entry in list(self._entries.items()):  # in the order in which they began
            if not entry.log.ended:
                continue
            age_s = now - entry.finished_at
            if age_s > UNSAVED_S or (entry.saved and (age_s > KEEP_S or held > KEEP_BYTES)):
                held -= entry.log.bytes
                del self._entries[run_id]


def _never_began(run: messages.Run) -> model.Result:
    spec = run.spec or model.SessionSpec()
    return model.Result(
        id=run.run_id,
        session_id=run.session_id,
        status="interrupted",
        error=model.ProgramError("KeyboardInterrupt", "interrupted before it began"),
        usage=model.Usage(queue_ms=run.queue_ms),
        isolation=model.Isolation("jail", spec.isolation_floor, ()),
    )
