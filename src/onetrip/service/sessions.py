"""The sessions of every tenant: opened, branched, rewound and closed on behalf of callers, and ended when they are idle or gone.

Sessions of others do not exist for a caller. A session that ended is remembered with the reason, so that its owner is told (410)
instead of being left to guess.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

import msgspec

from onetrip.admission import Admission
from onetrip.engine import new_session_id
from onetrip.errors import Conflict, NotFound, OnetripError, Overloaded, SessionGone, Unavailable
from onetrip.files import Workspace
from onetrip.node import messages
from onetrip.schema import ForkRequest, Rewinding, SessionRequest, UndoRequest
from onetrip.service import specs
from onetrip.service.audit import Audit
from onetrip.service.nodes import Nodes
from onetrip.service.observer import EndKind, Observer
from onetrip.service.owned import Owned
from onetrip.service.records import META, Meta, Session
from onetrip.service.toolcalls import ToolCalls
from onetrip.settings import Settings
from onetrip.store import Store
from onetrip.store_schema import RunRow, SessionRow
from onetrip.tenants import Caller

SERVER: Final = "server"  # who did it, in the audit log, when no key did
_GONE: Final = "the session ended: "


class Sessions:
    """See above. `idempotency_key`: the same request under the same key is done once, and answered the same."""

    def __init__(
        self, settings: Settings, store: Store, admission: Admission, nodes: Nodes, observer: Observer, audit: Audit, owned: Owned,
        tools: ToolCalls, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._tools = tools
        self._settings, self._store, self._admission, self._nodes = settings, store, admission, nodes
        self._observer, self._audit, self._owned, self._clock = observer, audit, owned, clock
        self.writing = asyncio.Lock()  # while a file is replaced on a condition
        self._live: dict[str, Session] = {}
        self._opening: dict[str, asyncio.Task[Session]] = {}
        self._forking: dict[str, asyncio.Task[list[Session]]] = {}
        self._rewinding: set[str] = set()

    def adopt(self, described: messages.Described) -> None:
        """Take over what a server before us left; sessions that nobody holds any more have ended."""
        held = {session.id for session in described.sessions if session.gone is None}
        for row in self._store.sessions(None):
            if row.id not in held:
                self._store.end_session(row.id, "the process that held it is gone")
        for found in described.sessions:
            meta = Meta.read(found.meta)
            row = self._store.session(found.id, None)
            if row is not None and row.ended_at is not None:  # closed in the moment in which that server died
                self._owned.spawn(self._close_in_node(found.id))
                continue
            if row is None:  # opened in that moment
                self._store.add_session(found.id, meta.tenant, msgspec.json.encode(found.spec), found.spec.metadata)
            if found.gone is not None:
                self._store.end_session(found.id, found.gone)
                self._owned.spawn(self._close_in_node(found.id))
            else:
                seat = self._admission.adopt_session(meta.tenant, found.spec.limits)
                session = self._live[found.id] = Session(found.id, meta, found.spec, seat, self._clock())
                session.dialect = {name: told for name, told in found.meta.items() if name != META}

    def waits(self, session_id: str, run_id: str | None) -> None:
        """Its run waits for its caller; or (None) does not any more."""
        if (session := self._live.get(session_id)) is not None:
            session.waits = run_id

    def live(self, session_id: str) -> Session | None:
        """Whosever it is."""
        return self._live.get(session_id)

    def all(self) -> list[Session]:
        return list(self._live.values())

    def of(self, caller: Caller) -> list[Session]:
        """The caller's tenant's own, the oldest first."""
        return [session for session in self._live.values() if session.meta.tenant == caller.tenant]

    def get(self, caller: Caller, session_id: str) -> Session:
        """Raises NotFound, also where it is another tenant's; SessionGone with the reason."""
        session = self._live.get(session_id)
        if session is not None and session.meta.tenant == caller.tenant:
            return session
        row = self._store.session(session_id, caller.tenant)
        if row is None:
            raise NotFound(f"there is no session {session_id[:60]!r}")
        raise _gone(row)

    def explained(self, session_id: str, err: OnetripError) -> OnetripError:
        """What a call is told that reached the node when the session had just been closed there: why, instead of that there is none."""
        ended = session_id not in self._live and isinstance(err, NotFound)
        row = self._store.session(session_id, None) if ended else None
        return err if row is None else _gone(row)

    # ------------------------------------------------------------------ opening

    async def open(
        self, caller: Caller, request: SessionRequest, *, idempotency_key: str | None = None, siblings: int = 0,
        dialect: Mapping[str, str] | None = None,
    ) -> Session:  # fmt: skip
        """Raises BadRequest, QuotaExceeded, Unavailable, PlatformError; then nothing is left. `siblings` and `dialect`: of a dialect's own."""
        session_id = new_session_id()
        if idempotency_key is None:
            return await self._owned.do(self._open(caller, session_id, request, siblings, dialect or {}))
        earlier = self._store.claim(caller.tenant, idempotency_key, specs.fingerprint("session", request), session_id)
        if earlier is not None:
            if (opening := self._opening.get(earlier)) is not None:
                return await asyncio.shield(opening)
            try:
                return self.get(caller, earlier)
            except NotFound:  # the server died before it was made
                session_id = earlier
        opening = self._opening[session_id] = self._owned.spawn(self._open(caller, session_id, request))
        try:
            return await asyncio.shield(opening)
        except OnetripError:
            self._store.unclaim(caller.tenant, idempotency_key, session_id)
            raise
        finally:
            if opening.done():
                del self._opening[session_id]
            else:  # the caller went away; the session is made all the same
                opening.add_done_callback(lambda _: self._opening.pop(session_id, None) and None)

    async def _open(
        self, caller: Caller, session_id: str, request: SessionRequest, siblings: int = 0, dialect: Mapping[str, str] = {}
    ) -> Session:
        with self._audit.action(caller, "session.open", session_id):
            return await self._make(caller, session_id, request, siblings, dialect)

    async def _make(
        self, caller: Caller, session_id: str, request: SessionRequest, siblings: int, dialect: Mapping[str, str]
    ) -> Session:
        tools = self._tools.tools(caller.tools, request.server_tools)
        spec, files = specs.session_spec(request, self._settings, tools), specs.contents(request.files)
        spec = msgspec.structs.replace(spec, siblings=siblings) if siblings else spec
        node = self._nodes.client
        meta = Meta(caller.tenant, self._clock(), caller.key_id)
        seat = self._admission.open_session(caller, spec.limits)
        session = Session(session_id, meta, spec, seat, self._clock(), dialect=dict(dialect))
        try:
            await node.call(messages.Open(session_id, spec, files, {**meta.told(), **dialect}))
            self._register(session)
        except BaseException:
            self._admission.close_session(seat)
            self._owned.spawn(self._close_in_node(session_id))
            raise
        return session

    def _register(self, session: Session) -> None:
        self._store.add_session(session.id, session.meta.tenant, msgspec.json.encode(session.spec), session.spec.metadata)
        self._store.add_usage(session.meta.tenant, sessions=1)
        self._live[session.id] = session
        self._observer.session_opened(session)

    # ------------------------------------------------------------------ ending

    async def close(self, caller: Caller, session_id: str) -> None:
        """End it; waits until nothing is left. Raises NotFound, SessionGone."""
        with self._audit.action(caller, "session.close", session_id):
            await self.end(self.get(caller, session_id), "closed", "closed by its owner")

    async def end(self, session: Session, kind: EndKind, reason: str) -> None:
        """End a session of whomever's; who asks for it later is told the reason."""
        if self.forget(session, kind, reason):
            await self._owned.do(self._close_in_node(session.id))

    def forget(self, session: Session, kind: EndKind, reason: str) -> bool:
        """It is gone already, or will be at once. False when that was known."""
        if self._live.pop(session.id, None) is None:
            return False
        self._admission.close_session(session.seat)
        with contextlib.suppress(Unavailable):  # a full disk: the reason is lost, the session is not found then
            self._store.end_session(session.id, reason)
        if kind != "closed":  # not by a caller
            self._audit.done(session.meta.tenant, SERVER, "session.end", session.id, outcome=kind, detail=reason)
        self._observer.session_ended(session, kind, reason)
        return True

    def lose(self, session_id: str, reason: str) -> None:
        """It ended by itself."""
        if (session := self._live.get(session_id)) is not None and self.forget(session, "lost", reason):
            self._owned.spawn(self._close_in_node(session_id))

    async def _close_in_node(self, session_id: str) -> None:
        with contextlib.suppress(OnetripError):  # a node that is gone has closed it
            await self._nodes.client.call(messages.Close(session_id))

    def touch(self, session: Session) -> None:
        """It was in use until now."""
        session.last_used = self._clock()

    @contextlib.asynccontextmanager
    async def using(self, session: Session) -> AsyncGenerator[None]:
        """It is not idle meanwhile. What comes from inside and says that it is gone is remembered."""
        session.running += 1
        try:
            yield
        except SessionGone as err:
            self.lose(session.id, str(err).removeprefix(_GONE))
            raise
        except NotFound as err:
            raise self.explained(session.id, err) from err
        finally:
            session.running -= 1
            session.last_used = self._clock()

    # ------------------------------------------------------------------ going back, branching

    async def undo(
        self, caller: Caller, session_id: str, request: UndoRequest, *, forward: bool = False, idempotency_key: str | None = None
    ) -> Rewinding:
        """Go back so many cells, or (`forward`) take that back. Raises BadRequest, NotFound, SessionGone, PlatformError."""
        session = self.get(caller, session_id)
        target = f"undo_{new_session_id()[4:]}"
        if idempotency_key is not None:
            kind = f"{'redo' if forward else 'undo'} {session_id}"
            earlier = self._store.claim(caller.tenant, idempotency_key, specs.fingerprint(kind, request), target)
            if earlier is not None:
                return self._earlier_rewinding(caller, earlier)
            self._rewinding.add(target)  # at once: the next request may come before the work begins
        try:
            with self._audit.action(caller, "session.redo" if forward else "session.undo", session_id):
                return await self._owned.do(
                    self._undo(session, request.cells, forward=forward, saved_as=idempotency_key and target)
                )
        except OnetripError:
            if idempotency_key is not None:
                self._store.unclaim(caller.tenant, idempotency_key, target)
            raise

    async def _undo(self, session: Session, cells: int, *, forward: bool, saved_as: str | None) -> Rewinding:
        try:
            async with self.using(session), session.turn:
                value = await self._nodes.client.call(messages.Undo(session.id, cells, forward))
            rewinding = msgspec.convert(value, Rewinding)
            if saved_as is not None:
                now = self._clock()
                encoded = msgspec.json.encode(rewinding)
                self._store.save_run(RunRow(saved_as, session.meta.tenant, session.id, now, now, "completed", encoded))
        finally:
            self._rewinding.discard(saved_as or "")
        return rewinding

    def _earlier_rewinding(self, caller: Caller, target: str) -> Rewinding:
        row = self._store.load_run(target, caller.tenant)
        if row is None or row.result is None:
            if target not in self._rewinding:
                raise Conflict(
                    "the server died while it did this, and nobody knows whether it was done",
                    hint="Look at the session's state, and ask again under a new key if it is needed.",
                    field="Idempotency-Key",
                )
            raise Overloaded("the first request with this idempotency key is at work", retry_after_s=1.0)
        return msgspec.json.decode(row.result, type=Rewinding)

    async def fork(
        self, caller: Caller, session_id: str, request: ForkRequest, *, idempotency_key: str | None = None
    ) -> list[Session]:
        """Branches: sessions of their own. Raises BadRequest, NotFound, SessionGone, QuotaExceeded, Unavailable; then there are none."""
        origin = self.get(caller, session_id)
        ids = [new_session_id() for _ in range(request.count)]
        target = ",".join(ids)
        if idempotency_key is not None:
            kind = f"fork {session_id}"
            earlier = self._store.claim(caller.tenant, idempotency_key, specs.fingerprint(kind, request), target)
            if earlier is not None:
                if (forking := self._forking.get(earlier)) is not None:
                    return await asyncio.shield(forking)
                try:
                    return [self.get(caller, branch) for branch in earlier.split(",")]
                except NotFound:  # the server died before they were made
                    target, ids = earlier, earlier.split(",")
        forking = self._forking[target] = self._owned.spawn(self._fork(caller, origin, ids))
        forking.add_done_callback(lambda _: self._forking.pop(target, None) and None)
        try:
            return await asyncio.shield(forking)
        except OnetripError:
            if idempotency_key is not None:
                self._store.unclaim(caller.tenant, idempotency_key, target)
            raise

    async def _fork(self, caller: Caller, origin: Session, ids: list[str]) -> list[Session]:
        with self._audit.action(caller, "session.fork", origin.id):
            return await self._branch(caller, origin, ids)

    async def _branch(self, caller: Caller, origin: Session, ids: list[str]) -> list[Session]:
        meta = Meta(caller.tenant, self._clock(), caller.key_id)
        branches: list[Session] = []
        try:
            for branch in ids:
                seat = self._admission.open_session(caller, origin.spec.limits)
                branches.append(Session(branch, meta, origin.spec, seat, self._clock()))
            async with self.using(origin), origin.turn:
                await self._nodes.client.call(messages.Fork(origin.id, dict.fromkeys(ids, meta.told())))
        except BaseException:
            for branch in branches:
                self._admission.close_session(branch.seat)
            raise
        for branch in branches:
            self._register(branch)
        return branches

    # ------------------------------------------------------------------ files

    @contextlib.asynccontextmanager
    async def workspace(self, caller: Caller, session_id: str, *, changes: bool = False) -> AsyncGenerator[Workspace]:
        """The session's files; methods block briefly, so call them by a thread. `changes`: something is written or deleted.

        Raises NotFound, SessionGone.
        """
        session = self.get(caller, session_id)
        async with self.using(session):
            fd = await self._nodes.client.call_fd(messages.Workspace(session_id))
            try:
                yield Workspace(fd)
            finally:
                os.close(fd)
                if changes:
                    await self._owned.do(self._note_changes(session_id))

    async def _note_changes(self, session_id: str) -> None:
        with contextlib.suppress(OnetripError):  # the session went away meanwhile, which its next caller will hear
            await self._nodes.client.call(messages.Workspace(session_id, note_changes=True))


def _gone(row: SessionRow) -> SessionGone:
    return SessionGone(f"{_GONE}{row.ended_why or 'nobody knows why'}")
