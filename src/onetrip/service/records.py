"""What the server holds of a session and of a run while they live."""

import asyncio
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from onetrip import model
from onetrip.admission import Seat, Ticket
from onetrip.errors import OnetripError
from onetrip.schema import SessionInfo

META: Final = "meta"  # under which name the node keeps it
MAX_WAITING: Final = 64  # runs that wait for their turn in one session


class Facts(msgspec.Struct, frozen=True):
    """What we read of a result that we otherwise pass on as it came."""

    id: str
    status: model.Status
    session: model.SessionState
    usage: model.Usage
    isolation: model.Isolation
    session_id: str | None = None
    error: model.ProgramError | None = None
    limit: model.LimitHit | None = None


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the node keeps for us, so that the next server knows whose it is."""

    tenant: str
    created: float  # seconds since 1970
    key: str = ""

    def told(self) -> dict[str, str]:
        return {META: msgspec.json.encode(self).decode()}

    @classmethod
    def read(cls, told: dict[str, str]) -> "Meta":
        return msgspec.json.decode(told.get(META, "{}"), type=cls)


@dataclass(eq=False, slots=True)
class Session:
    id: str
    meta: Meta
    spec: model.SessionSpec
    seat: Seat
    last_used: float  # seconds since 1970
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: int = 0  # runs that are on their way or wait, and calls at work
    cells: int = 0  # runs alone, counted from the moment in which they are asked for
    dialect: dict[str, str] = field(default_factory=dict[str, str])  # of whoever opened it, for itself
    waits: str | None = None  # the run of it that waits for its caller

    @property
    def idle_timeout_s(self) -> float:
        return self.spec.idle_timeout_s or 0.0

    def info(self) -> SessionInfo:
        return SessionInfo(
            id=self.id,
            created_at=self.meta.created,
            last_used_at=self.last_used,
            expires_at=self.last_used + self.idle_timeout_s,
            environment=self.spec.environment,
            limits=self.spec.limits,
            metadata=self.spec.metadata,
            running=self.running,
        )


@dataclass(eq=False, slots=True)
class Run:
    """One run, from the request to its result. It belongs to the server, not to the connection that asked for it."""

    id: str
    session_id: str | None
    meta: Meta
    outcome: asyncio.Future[bytes]  # the result as JSON, or what went wrong with us
    state: Literal["queued", "running"] = "queued"
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it has an outcome, or waits for its caller
    so_far: bytes | None = None  # its result up to now, while it waits
    number: int = 0  # of the event that said so
    interrupted: bool = False  # it is about to end, whatever it waits for
    answered: int = 0  # of the newest event when its caller last answered: what said before that it waits is old
    ticket: Ticket | None = None  # the slot that it has, or had until it waited
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # the node has it, or never will
    waiting: asyncio.Task[None] | None = None  # for its turn and a slot

    @classmethod
    def ended(cls, run_id: str, session_id: str | None, meta: Meta, result: "bytes | Run") -> "Run":
        """One of which there is only its result; or that one."""
        if isinstance(result, Run):
            return result
        run = cls(run_id, session_id, meta, asyncio.get_running_loop().create_future(), "running")
        run.finish(result)
        return run

    def fail(self, error: OnetripError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # nobody need wait for it
        self.begun.set()
        self.settled.set()

    def finish(self, data: bytes) -> None:
        if not self.outcome.done():
            self.outcome.set_result(data)
        self.begun.set()
        self.settled.set()

    def pause(self, so_far: bytes, number: int) -> None:
        """It waits for its caller, as its event of this number says."""
        self.so_far, self.number = so_far, number
        self.settled.set()
        if self.ticket is not None:
            self.ticket.suspend()

    def go_on(self) -> bytes | None:
        """It does not wait any more. Returns what it had so far, to `pause` again if that was not so."""
        so_far, self.so_far = self.so_far, None
        if not self.outcome.done():
            self.settled.clear()
        return so_far

    @property
    def result(self) -> bytes | None:
        """The result as JSON, or that so far of a run that waits; None: there is none now. Raises why there will be none."""
        return self.outcome.result() if self.outcome.done() else self.so_far

    async def wait(self) -> bytes:
        """The result as JSON, or so far. Cancelling leaves the run alone. No deadline: a run has its limits, and the queue its own."""
        while True:
            await self.settled.wait()
            if (found := self.result) is not None:
                return found
            await asyncio.sleep(0)  # it went on in the same moment
