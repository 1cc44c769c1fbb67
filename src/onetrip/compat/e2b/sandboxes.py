"""Sandboxes by id: sessions with what E2B's clients want to know about them, and their end by time.

What has to outlive this server is in the session's `dialect` (`Record`), which the node keeps: tokens, time limit, contexts. Commands
do not outlive it.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from onetrip.compat.e2b.interpreters import Helper, Interpreter
from onetrip.compat.e2b.processes import Processes
from onetrip.errors import BadRequest, Conflict, NotFound, OnetripError
from onetrip.schema import ForkRequest, LimitsRequest, SessionRequest
from onetrip.service.records import Session
from onetrip.service.service import Service
from onetrip.tenants import Caller

DIALECT: Final = "e2b"  # under which name the record is kept
SIBLINGS: Final = 32  # contexts, commands and helpers at once in one sandbox
MAX_TIMEOUT_S: Final = 24 * 3600
PAUSED_S: Final = 30 * 86_400  # what was paused is kept so long, unless memory runs short
REPEAT_S: Final = 600.0  # how long a repeated request to create finds what the first one made; clients repeat within seconds
DEFAULT: Final = "default"  # the context that there always is


class ContextRecord(msgspec.Struct, frozen=True):
    id: str
    cwd: str
    sibling_id: str | None  # None: the session's own interpreter


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a later server has to know."""

    template: str
    started_at: float  # seconds since 1970
    end_at: float
    timeout_s: int
    token: str
    traffic_token: str
    metadata: dict[str, str] = {}
    environ: dict[str, str] = {}
    auto_pause: bool = False
    paused: bool = False
    snapshot: str | None = None  # it is one, and this its name
    contexts: tuple[ContextRecord, ...] = ()


class Context:
    """An interpreter for a client's code. `turn`: one piece of code at a time."""

    def __init__(self, id: str, cwd: str, interpreter: Interpreter) -> None:  # noqa: A002 - E2B's name
        self.id, self.cwd, self.interpreter = id, cwd, interpreter
        self.executions = 0
        self.turn = asyncio.Lock()

    def told(self) -> dict[str, str]:
        return {"id": self.id, "language": "python", "cwd": self.cwd}


class Sandbox:
    def __init__(self, service: Service, caller: Caller, session: Session, record: Record) -> None:
        self.service, self.caller, self.session, self.record = service, caller, session, record
        self.id = session.id.removeprefix("ses_")
        self.helper = Helper(service, caller, session)
        self.processes = Processes(self.interpreter, self.helper, record.environ)
        self.contexts: dict[str, Context] = {}
        self.watchers: dict[str, Any] = {}  # id → what it last saw
        self.timer: asyncio.TimerHandle | None = None
        for one in record.contexts or (ContextRecord(DEFAULT, "/home/user", None),):
            self.contexts[one.id] = Context(one.id, one.cwd, Interpreter(service, caller, session, one.sibling_id))

    async def interpreter(self) -> Interpreter:
        return await Interpreter.make(self.service, self.caller, self.session)

    def change(self, **fields: Any) -> None:
        """Of the record, which is kept."""
        self.record = msgspec.structs.replace(self.record, **fields)
        self.session.dialect[DIALECT] = msgspec.json.encode(self.record).decode()
        self.service.siblings.keep(self.session)

    def keep_contexts(self) -> None:
        self.change(contexts=tuple(ContextRecord(one.id, one.cwd, one.interpreter.sibling_id) for one in self.contexts.values()))

    def admits(self, *tokens: str | None) -> bool:
        """Whether one of them is a token of this sandbox."""
        known = (self.record.token.encode(), self.record.traffic_token.encode())
        return any(hmac.compare_digest(token.encode(), one) for token in tokens if token for one in known)


class Sandboxes:
    """`adopt` what a server before us left, when the service has started; `aclose` at the end."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._live: dict[str, Sandbox] = {}
        self._creating: dict[tuple[str, str], asyncio.Task[Sandbox]] = {}  # by tenant and idempotency key
        self._tasks: set[asyncio.Task[Any]] = set()
        self._adopted = False

    def adopt(self) -> None:
        """Once; what is not there yet is found when it is first asked for."""
        if self._adopted:
            return
        self._adopted = True
        for session in self._service.sessions.all():
            if (told := session.dialect.get(DIALECT)) is not None:
                with contextlib.suppress(msgspec.DecodeError):
                    record = msgspec.json.decode(told, type=Record)
                    sandbox = self._register(Caller(session.meta.tenant, session.meta.key, "user"), session, record)
                    self._spawn(self._end_strangers(sandbox))

    async def _end_strangers(self, sandbox: Sandbox) -> None:
        """Interpreters of commands and helpers, of which nobody knows any more."""
        known = {context.interpreter.sibling_id for context in sandbox.contexts.values()}
        with contextlib.suppress(OnetripError):
            for sibling in await self._service.siblings.of(sandbox.session):
                if sibling not in known:
                    await self._service.siblings.close(sibling)

    def _register(self, caller: Caller, session: Session, record: Record) -> Sandbox:
        sandbox = self._live[session.id.removeprefix("ses_")] = Sandbox(self._service, caller, session, record)
        self._set_timer(sandbox)
        return sandbox

    # ------------------------------------------------------------------ finding

    def get(self, sandbox_id: str) -> Sandbox:
        """Whoever asks. Raises NotFound, also for one that ended by itself."""
        self.adopt()
        sandbox = self._live.get(sandbox_id)
        if sandbox is not None:
            try:
                self._service.sessions.get(sandbox.caller, sandbox.session.id)
            except OnetripError as err:
                self._forget(sandbox)
                raise NotFound(f"The sandbox was not found: {err}") from err
        if sandbox is None or sandbox.record.snapshot is not None:
            raise NotFound(f"The sandbox was not found: {sandbox_id[:60]!r}")
        return sandbox

    def of(self, caller: Caller, sandbox_id: str) -> Sandbox:
        """The caller's own tenant's. Raises NotFound."""
        sandbox = self.get(sandbox_id)
        if sandbox.caller.tenant != caller.tenant:
            raise NotFound(f"The sandbox was not found: {sandbox_id[:60]!r}")
        return sandbox

    def live(self) -> list[Sandbox]:
        """Of every tenant."""
        return [one for one in self._live.values() if one.record.snapshot is None and not one.record.paused]

    def all(self, caller: Caller, *, snapshots: bool = False) -> list[Sandbox]:
        self.adopt()
        live = {session.id for session in self._service.sessions.of(caller)}
        return [
            one for one in list(self._live.values()) if one.session.id in live and (one.record.snapshot is not None) is snapshots
        ]

    # ------------------------------------------------------------------ making

    async def create(
        self, caller: Caller, record: Record, idempotency_key: str | None, *, of_snapshot: Sandbox | None
    ) -> Sandbox:
        """Raises OnetripError; then nothing is left."""
        self.adopt()
        if idempotency_key is None:
            return await asyncio.shield(self._spawn(self._create(caller, record, of_snapshot)))
        known = (caller.tenant, idempotency_key)
        creating = self._creating.get(known)
        if creating is None:
            creating = self._creating[known] = self._spawn(self._create(caller, record, of_snapshot))
            asyncio.get_running_loop().call_later(REPEAT_S, self._creating.pop, known, None)
        try:
            return await asyncio.shield(creating)
        except OnetripError:
            self._creating.pop(known, None)
            raise

    async def _create(self, caller: Caller, record: Record, of_snapshot: Sandbox | None) -> Sandbox:
        if of_snapshot is not None:
            (sandbox,) = await self._branch(caller, of_snapshot, 1, record)
        else:
            caps = self._service.settings.caps
            limits = LimitsRequest(wall_s=caps.wall_s, cpu_s=caps.cpu_s, output_mb=caps.output_mb)
            # E2B's programs find a plain interpreter: the server's tools, and their names, are not for them.
            request = SessionRequest(limits=limits, idle_timeout_s=float(PAUSED_S), server_tools=())
            dialect = {DIALECT: msgspec.json.encode(record).decode()}
            session = await self._service.sessions.open(caller, request, siblings=SIBLINGS, dialect=dialect)
            sandbox = self._register(caller, session, record)
        try:
            await sandbox.contexts[DEFAULT].interpreter.ask("setup", {"environ": record.environ, "cwd": None})
        except BaseException:
            await asyncio.shield(self._spawn(self.kill(sandbox)))
            raise
        return sandbox

    async def fork(self, caller: Caller, origin: Sandbox, count: int, timeout_s: int) -> list[Sandbox]:
        """Sandboxes that begin where the default context of `origin` is now, with its files. Raises OnetripError; then there are none."""
        now = time.time()
        record = msgspec.structs.replace(
            origin.record, started_at=now, end_at=now + timeout_s, timeout_s=timeout_s, paused=False, snapshot=None
        )
        return await asyncio.shield(self._spawn(self._branch(caller, origin, count, record)))

    async def snapshot(self, caller: Caller, origin: Sandbox, name: str | None) -> Sandbox:
        """The same, to be branched from later."""
        now = time.time()
        record = msgspec.structs.replace(origin.record, started_at=now, end_at=now + PAUSED_S, snapshot=name or "", paused=False)
        (made,) = await asyncio.shield(self._spawn(self._branch(caller, origin, 1, record)))
        return made

    async def _branch(self, caller: Caller, origin: Sandbox, count: int, record: Record) -> list[Sandbox]:
        if origin.contexts[DEFAULT].interpreter.sibling_id is not None:
            raise Conflict("the default context was started anew; what it holds cannot be branched", hint="Create a new sandbox.")
        branches = await self._service.sessions.fork(caller, origin.session.id, ForkRequest(count=count))
        made: list[Sandbox] = []
        for session in branches:
            own = msgspec.structs.replace(record, token=new_token(), traffic_token=new_token(), contexts=())
            sandbox = self._register(caller, session, own)
            sandbox.change()
            made.append(sandbox)
        return made

    # ------------------------------------------------------------------ ending

    def set_timeout(self, sandbox: Sandbox, timeout_s: int, *, only_longer: bool = False) -> None:
        """From now on; also lets one go on that was paused."""
        end_at = time.time() + timeout_s
        if only_longer and not sandbox.record.paused:
            end_at = max(end_at, sandbox.record.end_at)
        sandbox.change(end_at=end_at, timeout_s=timeout_s, paused=False)
        self._set_timer(sandbox)

    def pause(self, sandbox: Sandbox) -> None:
        """It is kept, and does not run anything new. Raises Conflict when it was paused already."""
        if sandbox.record.paused:
            raise Conflict("the sandbox is paused already")
        sandbox.change(paused=True, end_at=time.time() + PAUSED_S)
        self._set_timer(sandbox)

    def _set_timer(self, sandbox: Sandbox) -> None:
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        loop = asyncio.get_running_loop()
        sandbox.timer = loop.call_later(max(0.0, sandbox.record.end_at - time.time()), self._timed_out, sandbox)

    def _timed_out(self, sandbox: Sandbox) -> None:
        if sandbox.record.auto_pause and not sandbox.record.paused:
            self.pause(sandbox)
        else:
            self._spawn(self.kill(sandbox))

    async def kill(self, sandbox: Sandbox) -> None:
        """End it; waits until nothing is left."""
        self._forget(sandbox)
        with contextlib.suppress(OnetripError):  # it ended by itself
            await self._service.sessions.close(sandbox.caller, sandbox.session.id)
        await sandbox.processes.aclose()

    def _forget(self, sandbox: Sandbox) -> None:
        self._live.pop(sandbox.id, None)
        if sandbox.timer is not None:
            sandbox.timer.cancel()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def aclose(self) -> None:
        """This server ends, whatever becomes of the sessions."""
        for sandbox in list(self._live.values()):
            if sandbox.timer is not None:
                sandbox.timer.cancel()
            await sandbox.processes.aclose()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def checked_timeout(timeout_s: int) -> int:
    """Raises BadRequest."""
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise BadRequest(f"Timeout cannot be greater than {MAX_TIMEOUT_S // 3600} hours", field="timeout")
    return timeout_s


def new_token() -> str:
    return secrets.token_hex(24)
