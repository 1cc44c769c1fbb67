"""What the server holds of a session and of a run while they live."""

import asyncio
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from onetrip import model
from onetrip.admission import Seat
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
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # the node has it, or never will
    waiting: asyncio.Task[None] | None = None  # for its turn and a slot

    def fail(self, error: OnetripError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # nobody need wait for it
        self.begun.set()

    async def wait(self) -> bytes:
        """The result as JSON. Cancelling leaves the run alone. No deadline: a run has its limits, and the queue its own."""
        return await asyncio.shield(self.outcome)
