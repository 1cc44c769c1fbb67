"""Runs: begun for a caller, carried by the node, saved, and read as often as somebody likes.

A run belongs to the server and not to the connection that asked for it. Its events stay in the node until they are old; its result
is in the database as soon as there is one. The next server finds unfinished runs in the node (`adopt`).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import msgspec

from onetrip import model
from onetrip.admission import Admission
from onetrip.engine import new_run_id
from onetrip.errors import BadRequest, Conflict, NotFound, OnetripError, Overloaded, PlatformError, SessionGone, Unavailable
from onetrip.node import messages
from onetrip.node.client import NodeLost
from onetrip.schema import CellRequest, RunRequest
from onetrip.service import specs
from onetrip.service.audit import Audit
from onetrip.service.nodes import Nodes
from onetrip.service.observer import Observer
from onetrip.service.owned import Owned
from onetrip.service.records import MAX_WAITING, Facts, Meta, Run, Session
from onetrip.service.saving import Saver
from onetrip.service.sessions import Sessions
from onetrip.service.toolcalls import ToolCalls
from onetrip.settings import Settings
from onetrip.store import Store
from onetrip.store_schema import RunRow, Used
from onetrip.telemetry import current
from onetrip.tenants import Caller

TELL_S: Final = 0.2
KEEP_FAILED: Final = 1000  # runs that came to nothing, of which we still know why
_facts: Final = msgspec.json.Decoder(Facts)


class Runs:
    def __init__(
        self, settings: Settings, store: Store, admission: Admission, nodes: Nodes, observer: Observer, audit: Audit, owned: Owned,
        sessions: Sessions, tools: ToolCalls, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._settings, self._store, self._admission, self._nodes = settings, store, admission, nodes
        self._observer, self._audit, self._owned, self._sessions, self._clock = observer, audit, owned, sessions, clock
        self._tools = tools
        self._told_later: list[str] = []
        self._open: dict[str, Run] = {}  # on their way, or finished and not saved
        self._failed: dict[str, Run] = {}  # came to nothing, lately
        self._saver = Saver(store, self._saved, observer.not_saved)

    def adopt(self, described: messages.Described) -> None:
        """Take over what a server before us began."""
        for held in described.runs:
            if not held.saved:
                run = self._new(held.id, held.session_id, Meta.read(held.meta))
                run.state = "running"
                run.begun.set()
                self._owned.spawn(self._adopted(run, messages.Follow(held.id, last_only=True)))

    async def _adopted(self, run: Run, body: messages.Follow) -> None:
        """It holds a slot as long as it does not wait, and its session is in use in any case."""
        async with contextlib.AsyncExitStack() as stack:
            if run.session_id is not None and (session := self._sessions.live(run.session_id)) is not None:
                await stack.enter_async_context(self._sessions.using(session))
            run.ticket = stack.enter_context(self._admission.adopt_run(run.meta.tenant))
            await self._carry(run, body)

    def unfinished(self) -> list[Run]:
        return [run for run in self._open.values() if not run.outcome.done()]

    # ------------------------------------------------------------------ beginning

    def begin_cell(self, caller: Caller, session_id: str, request: CellRequest, *, idempotency_key: str | None = None) -> Run:
        """Run a cell of a session. Raises BadRequest, NotFound, SessionGone, Overloaded; what comes later is the run's outcome."""
        cell = specs.cell(request, final=False)
        try:
            session = self._sessions.get(caller, session_id)
        except SessionGone:  # perhaps by this very run, whose result was lost on its way
            if idempotency_key is not None:
                run, is_new = self._claimed(caller, session_id, f"cell {session_id}", request, idempotency_key)
                if not is_new:
                    return run
                self._give_up(run, caller, idempotency_key)
            raise
        run, is_new = self._claimed(caller, session_id, f"cell {session_id}", request, idempotency_key)
        if is_new:
            if session.waits is not None:
                self._give_up(run, caller, idempotency_key)
                raise Conflict(f"the session waits: its run {session.waits} has calls without an answer", hint=_ANSWER_FIRST)
            if session.cells > MAX_WAITING:
                self._give_up(run, caller, idempotency_key)
                raise Overloaded(f"{MAX_WAITING} runs wait for their turn in this session", retry_after_s=1.0)
            self._observer.run_began(run, cell.code)
            body = _body(run, None, cell, {}, followed=request.stream)
            session.cells += 1
            run.waiting = self._owned.spawn(self._in_session(caller, run, session, body))
            run.waiting.add_done_callback(lambda _: _one_less(session))
        return run

    def begin_shot(self, caller: Caller, request: RunRequest, *, idempotency_key: str | None = None) -> Run:
        """Run a one-shot. Raises BadRequest; what comes later is the run's outcome."""
        cell = specs.cell(request, final=True)
        server_tools = self._tools.tools(caller.tools, request.server_tools)
        spec, files = specs.shot_spec(request, self._settings, server_tools), specs.contents(request.files)
        run, is_new = self._claimed(caller, None, "shot", request, idempotency_key)
        if is_new:
            self._observer.run_began(run, cell.code)
            body = _body(run, spec, cell, files, followed=request.stream)
            run.waiting = self._owned.spawn(self._admitted(caller, run, spec.limits, body))
        return run

    def _claimed(
        self, caller: Caller, session_id: str | None, kind: str, request: CellRequest, idempotency_key: str | None
    ) -> tuple[Run, bool]:
        """A new run, or the one that this key began. One of which nothing is known never reached the node, and is begun again."""
        run_id = new_run_id()
        meta = Meta(caller.tenant, self._clock(), caller.key_id)
        if idempotency_key is not None:
            earlier = self._store.claim(caller.tenant, idempotency_key, specs.fingerprint(kind, request), run_id)
            if earlier is not None:
                if (run := self._open.get(earlier)) is not None:
                    return run, False
                row = self._store.load_run(earlier, caller.tenant)
                if row is not None and row.result is not None:
                    return Run.ended(earlier, session_id, meta, row.result), False
                run_id = earlier
        return self._new(run_id, session_id, meta), True

    def _give_up(self, run: Run, caller: Caller, idempotency_key: str | None) -> None:
        self._open.pop(run.id, None)
        if idempotency_key is not None:
            self._store.unclaim(caller.tenant, idempotency_key, run.id)

    def _new(self, run_id: str, session_id: str | None, meta: Meta) -> Run:
        self._failed.pop(run_id, None)
        run = self._open[run_id] = Run(run_id, session_id, meta, asyncio.get_running_loop().create_future())
        return run

    # ------------------------------------------------------------------ on its way

    async def _in_session(self, caller: Caller, run: Run, session: Session, body: messages.Run) -> None:
        try:
            async with self._sessions.using(session), session.turn:
                await self._admitted(caller, run, None, body)
                if not run.outcome.cancelled() and isinstance(err := run.outcome.exception(), SessionGone):
                    raise err  # `using` remembers it
        except SessionGone:
            pass
        except asyncio.CancelledError:
            self._stopped(run)  # while it waited for the runs before it
            raise

    async def _admitted(self, caller: Caller, run: Run, limits: model.Limits | None, body: messages.Run) -> None:
        """Wait for a slot, and carry it. Ends with an outcome in any case."""
        try:
            async with self._admission.run(caller, limits) as ticket:
                run.state, run.ticket = "running", ticket
                await self._carry(run, msgspec.structs.replace(body, queue_ms=ticket.queue_ms))
        except OnetripError as err:
            self._fail(run, err)
        except asyncio.CancelledError:
            self._stopped(run)
            raise

    async def _carry(self, run: Run, body: messages.Run | messages.Follow) -> None:
        try:
            node = self._nodes.client
            run.begun.set()  # the call below is on its way before anybody who waits for this can ask for events
            item = await node.run(body)
            while (facts := _facts.decode(item.data)).status == "waiting":
                if item.number > run.answered:
                    self._pause(run, item.data, item.number)
                item = await node.run(messages.Follow(run.id, item.number, moves=True))
                if item.name != "done":
                    if self._goes_on(run) is not None and run.ticket is not None:
                        run.ticket.seize()  # by itself: it cannot be held up, but it counts
                    item = await node.run(messages.Follow(run.id, item.number, last_only=True))
        except NodeLost as err:
            await self._finish_by_us(run, "lost", model.ProgramError("SandboxLost", str(err)))
        except OnetripError as err:
            self._fail(run, err if run.session_id is None else self._sessions.explained(run.session_id, err))
            self._tell_saved(run.id)  # the node need not keep it
        except asyncio.CancelledError:
            self._stopped(run)
            raise
        else:
            await self._finish(run, item.data, facts)
        finally:
            self._goes_on(run)
            self._fail(run, PlatformError("the server broke off this run"))  # unless it has an outcome, as it should

    def _stopped(self, run: Run) -> None:
        """What waited or ran was cancelled: by `interrupt`, which gives it its outcome, or because the server ends."""
        if run.state == "running" or run.waiting is not None:
            self._fail(run, Unavailable("the server was stopped", hint="Ask for the run again when it is back."))

    def _fail(self, run: Run, error: OnetripError) -> None:
        """It came to nothing, through no fault of the program. Does nothing to a run that has its outcome."""
        if run.outcome.done():
            return
        self._open.pop(run.id, None)
        self._failed[run.id] = run
        if len(self._failed) > KEEP_FAILED:
            del self._failed[next(iter(self._failed))]
        run.fail(error)
        self._audit.refused(Caller(run.meta.tenant, run.meta.key, "user"), "run", run.id, error)
        self._observer.run_failed(run, error)

    async def _finish_by_us(self, run: Run, status: model.Status, error: model.ProgramError) -> None:
        """Where the node cannot say how it ended."""
        result = model.Result(
            id=run.id,
            session_id=run.session_id,
            status=status,
            error=error,
            session=model.SessionState(survived=status == "interrupted" and run.session_id is not None, note=error.message),
            isolation=model.Isolation("jail", "strict", ()),
        )
        data = msgspec.json.encode(result)
        await self._finish(run, data, _facts.decode(data))

    def _pause(self, run: Run, so_far: bytes, number: int) -> None:
        """It waits for its caller; so does its session."""
        run.pause(so_far, number)
        if run.session_id is not None and not run.interrupted:
            self._sessions.waits(run.session_id, run.id)

    def _goes_on(self, run: Run) -> bytes | None:
        if run.session_id is not None and run.so_far is not None:
            self._sessions.waits(run.session_id, None)
        return run.go_on()

    async def answer(
        self, caller: Caller, run_id: str, answers: Sequence[model.ToolAnswer], fingerprint: str, *, idempotency_key: str | None
    ) -> tuple[Run, int]:
        """Answer calls that a run waits for. Returns the run, and the number of its newest event when they were taken.

        The same again with its key does nothing, and has the same end: the server may have died before it could say so. Raises
        NotFound, BadRequest, Conflict, Overloaded; then none is taken.
        """
        run = self._known(caller, run_id)
        is_new = False
        try:
            found = b"" if run is not None else await self.result(caller, run_id)  # raises where there is none
            is_new = idempotency_key is None or self._store.claim(caller.tenant, idempotency_key, fingerprint, run_id) is None
            if run is None or run.outcome.done():
                if is_new:
                    raise Conflict("this run has ended and waits for nothing", hint="Its result says how.")
                run = run or Run.ended(run_id, None, Meta(caller.tenant, 0.0), found)
                return run, run.answered
            return run, await self._give(run, answers, idempotency_key)
        except OnetripError as err:
            if isinstance(err, _REFUSED) and is_new and idempotency_key is not None:
                self._store.unclaim(caller.tenant, idempotency_key, run_id)  # else the same again would count as taken
            self._observer.answers_refused(run_id, err)
            raise

    async def _give(self, run: Run, answers: Sequence[model.ToolAnswer], key: str | None) -> int:
        if run.ticket is not None:
            await run.ticket.resume()
        so_far = self._goes_on(run)
        try:
            number: int = await self._nodes.client.call(messages.AnswerCalls(run.id, tuple(answers), key))
        except BaseException:
            self._waits_still(run, so_far)
            raise
        run.answered = max(run.answered, number)
        if run.so_far is not None and run.number <= number:  # we heard only now that it had waited: after a restart, for one
            self._goes_on(run)
        self._waits_still(run, so_far)  # these answers came before, and it waits for others
        return number

    def _waits_still(self, run: Run, so_far: bytes | None) -> None:
        """If it did before these answers, and nothing has changed since."""
        if so_far is not None and run.so_far is None and run.number > run.answered and not run.outcome.done():
            self._pause(run, so_far, run.number)

    async def _finish(self, run: Run, data: bytes, facts: Facts) -> None:
        """Give the result to who waits, and to the database. Until it is there it is found here, or by the next server in the node."""
        if run.session_id is not None and not facts.session.survived:
            self._sessions.lose(run.session_id, facts.session.note or "its process ended")
        self._admission.charge(run.meta.tenant, facts.usage.cpu_ms / 1e3)
        row = RunRow(run.id, run.meta.tenant, run.session_id, run.meta.created, self._clock(), facts.status, data)
        request = current()
        audit = (run.meta.key, "" if request is None else request.request_id) if self._settings.audit_runs else None
        usage = facts.usage
        used = Used(int(facts.status != "completed"), usage.cpu_ms, usage.wall_ms, usage.output_bytes, audit)
        self._saver.put(row, used)
        run.finish(data)
        self._observer.run_finished(run, facts, data)

    def _saved(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self._open.pop(run_id, None)
            self._tell_saved(run_id)

    async def flush(self) -> None:
        """Save what is not saved yet, as far as the disk takes it."""
        await self._saver.flush()

    def give_up(self) -> None:
        """Answer whoever waits: the server ends before these runs do."""
        for run in self.unfinished():
            run.fail(Unavailable("the server is being stopped", hint="Ask for the result when it is back; it may be there."))

    def _tell_saved(self, run_id: str) -> None:
        """Tell the node, together with others: each message wakes it, which costs as much as a small cell."""
        if not self._told_later:
            asyncio.get_running_loop().call_later(TELL_S, self._tell)
        self._told_later.append(run_id)

    def _tell(self) -> None:
        run_ids, self._told_later = self._told_later, []
        with contextlib.suppress(OnetripError):  # the node is gone, and its events with it
            self._nodes.client.saved(run_ids)

    # ------------------------------------------------------------------ reading

    async def result(self, caller: Caller, run_id: str, *, wait_s: float = 0.0) -> bytes | Run:
        """The result as JSON, or the run where there is none yet after `wait_s`. Raises NotFound; what the run's beginning raised."""
        run = self._known(caller, run_id)
        if run is not None:
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        return await run.wait()
            return run if (found := run.result) is None else found
        row = self._store.load_run(run_id, caller.tenant)
        if row is None or row.result is None or not run_id.startswith("run_"):
            raise NotFound(f"there is no run {run_id[:60]!r}", hint="Results are kept for a time; it may be too long ago.")
        return row.result

    def _known(self, caller: Caller, run_id: str) -> Run | None:
        """On its way, or come to nothing lately."""
        run = self._open.get(run_id) or self._failed.get(run_id)
        return run if run is not None and run.meta.tenant == caller.tenant else None

    async def events(self, caller: Caller, run_id: str, after: int = 0) -> AsyncGenerator[messages.Item]:
        """Events with a number above `after`, `done` last; of a run that is long over only that one. A slow reader slows the program.

        Raises NotFound; what the run's beginning raised.
        """
        run = self._known(caller, run_id)
        if run is not None:
            await run.begun.wait()
            if run.outcome.done() and (err := run.outcome.exception()) is not None:
                raise err
        else:
            await self.result(caller, run_id)  # raises where there is none
        last = after
        try:
            items = self._nodes.client.items(messages.Follow(run_id, after))
            async with contextlib.aclosing(items):
                async for item in items:
                    if item.name == "done" and run is not None:
                        await run.settled.wait()  # saved, so that it can be fetched by who saw this
                    yield item
                    last = item.number
            return
        except (NotFound, NodeLost, Unavailable):
            pass  # too long ago, or the node is gone: the result is all that there is
        found: bytes | Run = await run.wait() if run is not None else await self.result(caller, run_id)
        if isinstance(found, bytes):
            yield messages.Item(0, last + 1, "done", found)

    async def interrupt(self, caller: Caller, run_id: str) -> None:
        """Like Ctrl-C, then kill after a grace period; one that waits is not begun. Does nothing where it has ended. Raises NotFound."""
        run = self._known(caller, run_id)
        if run is None:
            await self.result(caller, run_id)  # raises where there is none
        elif not run.outcome.done() and run.state == "queued":
            if (waiting := run.waiting) is not None:
                run.waiting = None  # so that it is not taken for the end of the server
                waiting.cancel()
                await self._owned.do(self._finish_by_us(run, "interrupted", _NEVER_BEGAN))
        elif not run.outcome.done():
            await self._nodes.client.call(messages.Interrupt(run_id))
            run.interrupted = True
            if run.session_id is not None and run.so_far is not None:  # else it is not the one that the session waits for
                self._sessions.waits(run.session_id, None)  # the next cell waits for its end


def _body(run: Run, spec: model.SessionSpec | None, cell: model.Cell, files: dict[str, bytes], *, followed: bool) -> messages.Run:
    inputs = msgspec.json.encode(cell.inputs)
    return messages.Run(
        run.id, run.session_id, spec, msgspec.structs.replace(cell, inputs={}), files, run.meta.told(), 0.0, inputs, followed
    )


_ANSWER_FIRST: Final = "POST /v1/runs/{id}/tool_results answers them; or interrupt that run."
_NEVER_BEGAN: Final = model.ProgramError("KeyboardInterrupt", "interrupted before it began")
_REFUSED: Final = BadRequest, Conflict, NotFound, Overloaded  # nothing was done


def _one_less(session: Session) -> None:
    session.cells -= 1
