"""What the engine keeps of one session; how branches of it are made, and siblings: more interpreters on the same files.

A sibling comes from the session's first checkpoint, so it has none of its variables, and works in the same folder, room and control
group. It keeps no checkpoints of its own: a cell of it that is killed ends it, and it alone. Cells of siblings run beside each other;
what one of them writes, no other takes back. They have one owner and are no boundary against each other: the origin can reach its
siblings, but none of them the origin or its checkpoints.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from onetrip.bindings import Binding
from onetrip.errors import BadRequest, SandboxFailed, SessionGone, Unavailable
from onetrip.model import SessionSpec
from onetrip.pool import Pool
from onetrip.tiers.base import Donation, SandboxDied
from onetrip.timeline import Sleeper, Timeline, spawn
from onetrip.worker import Worker

_NO_BRANCH: Final = (
    "The session goes on, and no branch was made. Without control groups (`onetrip doctor`) a session and its branches share one limit of "
    "`processes`, of which each takes two: open the session with a higher one."
)


@dataclass(slots=True)
class Session:
    spec: SessionSpec
    worker: Worker
    binding: Binding | None = None  # what its programs can call
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one cell at a time; callers queue in order
    gone: str | None = None
    origin: "Session | None" = None  # of a sibling
    siblings: set[str] = field(default_factory=set[str])
    coming: int = 0  # siblings that are on their way
    coming_run: str | None = None  # whose turn it is, and which has not begun: it may wait for a checkpoint
    interrupted: bool = False  # it is not to begin any more

    @property
    def ended(self) -> str | None:
        return self.gone or self.worker.ended


def asleep(spec: SessionSpec) -> int:
    """How many processes of ours there may be: checkpoints that can be undone, the present, the one that is being made, and siblings."""
    if not spec.checkpoints:
        return 0
    return spec.checkpoints + 2 + (spec.siblings + 1 if spec.siblings else 0)


async def add_branch(origin: Session, pool: Pool, timeline_of: Callable[[Worker, SessionSpec], Timeline]) -> Session:
    """One branch of a session, see `Engine.fork`. Precondition: it is the caller's turn."""
    spec, timeline = origin.spec, origin.worker.timeline
    if timeline is None:
        raise BadRequest("this session keeps no checkpoints, so it cannot branch", hint="Open one with `checkpoints` above 0.")
    point = timeline.share()
    try:
        worker, donation = await pool.branch(origin.worker, spec.limits, asleep=asleep(spec))
    except BaseException:
        point.let_go()
        raise
    own = timeline_of(worker, spec)
    own.donation = donation
    own.past.append(point)
    own.share_pristine(timeline)
    try:
        await worker.come_to_life(origin.worker, own.begin(), own)
    except BaseException as err:
        await pool.discard(worker)
        if isinstance(err, SandboxFailed):
            raise SandboxFailed(f"the branch could not begin: {err}", hint=_NO_BRANCH) from err
        raise
    return Session(spec, worker, origin.binding and origin.binding.branch())


async def keep_pristine(worker: Worker) -> None:
    """Keep the first checkpoint for siblings to come. Raises Unavailable, SandboxDied."""
    await worker.kept()
    if worker.ended is not None:
        raise SandboxDied(worker.ended)
    timeline = worker.timeline
    if timeline is None or timeline.present is None:
        raise Unavailable(f"the session can have no siblings: {timeline and timeline.note}")
    timeline.keep_pristine()


async def add_sibling(origin: Session, pool: Pool) -> Session:
    """See `Engine.sibling`."""
    timeline = origin.worker.timeline
    if timeline is None or (pristine := timeline.pristine) is None:
        raise BadRequest("this session has one interpreter", hint="Open it with `siblings` above 0.")
    if origin.ended:
        raise SessionGone(f"the session ended: {origin.ended}")
    if len(origin.siblings) + origin.coming >= origin.spec.siblings:
        raise Unavailable(f"the session has {origin.spec.siblings} siblings already", hint="Close one that is not needed.")
    origin.coming += 1
    try:
        worker, donation = pool.sibling(origin.worker, origin.spec.limits, spawner=pristine.pid)
        try:
            await worker.come_to_life(origin.worker, _begin(worker, pristine, donation))
            if origin.ended:
                raise SessionGone(f"the session ended: {origin.ended}")
        except BaseException:
            await pool.discard(worker)
            raise
    finally:
        origin.coming -= 1
    return Session(origin.spec, worker, origin.binding, origin=origin)


async def _begin(worker: Worker, pristine: Sleeper, donation: Donation) -> None:
    try:
        await worker.talk.start_over()
        await spawn(pristine, worker.talk, donation)
    finally:
        donation.close()


@contextlib.asynccontextmanager
async def turn(
    session: Session, lose: Callable[[Session, str], Awaitable[None]], run_id: str | None = None
) -> AsyncGenerator[None]:
    """Wait for the cells before to end, and for what they leave behind to be kept. Raises SessionGone.

    `run_id`: the cell whose turn this is. Until it begins an interrupt is meant for it, and noted in `interrupted`.
    """
    async with session.turn:
        session.coming_run, session.interrupted = run_id, False
        try:
            await session.worker.kept()
        finally:
            session.coming_run = None
        if session.gone is None and session.worker.ended is not None:  # between two cells
            await lose(session, session.worker.ended)
        if session.gone is not None:
            raise SessionGone(f"the session ended: {session.gone}")
        yield


@contextlib.contextmanager
def at_work(session: Session | None) -> Generator[None]:
    """A cell runs. A sibling's: its origin is not to take back what it writes."""
    origin = session.origin if session is not None else None
    timeline = origin.worker.timeline if origin is not None else None
    if timeline is None:
        yield
        return
    timeline.sibling_works(1)
    try:
        yield
    finally:
        timeline.sibling_works(-1)
