"""Sessions by id, and one-shots: the one place through which cells go in and results come out.

`LocalEngine` is the `seam.Engine` of this process, on the jail of this machine.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

from onetrip import checks, environments, outcomes, preload, process, sessions
from onetrip.bindings import Binding
from onetrip.errors import Conflict, NotFound, SandboxFailed, SessionGone
from onetrip.files import Workspace
from onetrip.localfiles import LocalFiles
from onetrip.model import Cell, Done, Event, Level, Rewound, SessionSpec, Support, ToolAnswer
from onetrip.pool import Pool
from onetrip.removal import RunFolder
from onetrip.seam import Ask, Contents
from onetrip.sessions import Session
from onetrip.shelf import Shelf
from onetrip.tiers.base import SandboxDied
from onetrip.tiers.jail import JailTier, reachable_level
from onetrip.tiers.jail_probe import has_house, has_landlock, probe
from onetrip.timeline import Timeline
from onetrip.worker import Worker

BRANCHES_AT_ONCE: Final = 4  # the fork is one process's work, the rest is not
MAX_COPIES_MB: Final = 256  # of one session's files, for all its checkpoints
ENVIRONMENT_FRESH_S: Final = 2.0  # how long we believe what we read of an environment: reading costs more than a run


class LocalEngine:
    """See `seam.Engine`. `start` before anything else; `aclose` ends every sandbox."""

    def __init__(
        self,
        *,
        warm: int = 2,
        max_live: int = 2000,
        cgroup_parent: str | None = None,
        lease_s: float = 0.0,
        run_dir: Path | None = None,
    ) -> None:
        process.raise_descriptor_limit()
        process.share_one_heap()
        self._warm, self._max_live = warm, max_live
        self._cgroup_parent, self._lease_s, self._run_dir = cgroup_parent, lease_s, run_dir
        self._tiers: dict[Level, tuple[JailTier, Pool]] = {}
        self._sessions: dict[str, Session] = {}
        self._runs: dict[str, Worker] = {}  # those that run now
        self._environments: dict[str, tuple[float, tuple[environments.Node, ...]]] = {}
        self._support: Support | None = None
        self._starting = asyncio.Lock()
        self._copies: RunFolder | None = None  # where the shelves of sessions lie

    async def start(self, environment: str = "default", *, floor: Level = "strict") -> None:
        """Make ready to run: probe the host, start the zygote, fill the pool. Optional: the first run does what is missing."""
        tier, pool = await self._backend(floor)
        found = environments.find(environment)
        zygote = await tier.zygote(environment)
        for name in ("bare", "pandas", "plot"):
            if any(node.name == name for node in found.nodes):
                await zygote.wait_node(name)  # before it is ready, the pool would be filled from a node with fewer imports
                if name != "plot":
                    pool.prepare((environment, name))

    async def find_support(self) -> Support:
        return await asyncio.to_thread(self.support)

    def support(self) -> Support:
        if self._support is None:
            self._support = probe(self._cgroup_parent)
        return self._support

    async def _backend(self, floor: Level) -> tuple[JailTier, Pool]:
        async with self._starting:
            if self._support is None:
                self._support = await asyncio.to_thread(self.support)
            level = reachable_level(self._support, floor)
            if level not in self._tiers:
                tier = JailTier(
                    environments.find,
                    level=level,
                    house=has_house(self._support),
                    landlock=has_landlock(self._support),
                    cgroup_parent=self._cgroup_parent,
                    lease_s=self._lease_s,
                    run_dir=self._run_dir,
                )
                self._tiers[level] = tier, Pool(tier, warm=self._warm, max_live=self._max_live)
            return self._tiers[level]

    # ------------------------------------------------------------------ sessions

    async def open(self, spec: SessionSpec, files: Contents, *, session_id: str | None = None, ask: Ask | None = None) -> str:
        """Start a session; returns its id, which is the caller's if given. Raises BadRequest, UnknownEnvironment, Unavailable, SandboxFailed; nothing is left then."""
        nodes = self._checked(spec)
        _, pool = await self._backend(spec.isolation_floor)
        # What a session will import is not known yet; the richest node costs it nothing but shared memory.
        node = next((name for name in ("plot", "pandas") if any(node.name == name for node in nodes)), nodes[-1].name)
        worker = await self._worker(pool, spec, node, files, is_session=True)
        session_id = session_id or new_session_id()
        self._sessions[session_id] = Session(spec, worker, Binding.of(spec, ask))
        return session_id

    async def attach(self, session_id: str) -> str:
        """See that there is such a session. Raises NotFound, SessionGone."""
        self.workspace(session_id)
        return session_id

    def _timeline(self, worker: Worker, spec: SessionSpec) -> Timeline:
        if self._copies is None:
            self._copies = RunFolder()
        return Timeline(
            link=worker.talk,
            sandbox=worker.sandbox,
            shelf=Shelf(self._copies.path, max_bytes=min(spec.limits.disk_mb, MAX_COPIES_MB) << 20),
            owner=worker.workspace.owner,
            depth=spec.checkpoints,
            memory_bytes=spec.limits.memory_mb << 20,
        )

    async def sibling(self, session_id: str, *, sibling_id: str | None = None) -> str:
        """One more interpreter of a session (see `sessions`), which ends with it at the latest; its id is the caller's if given.

        Raises BadRequest, Unavailable, Overloaded, SessionGone, SandboxFailed.
        """
        session = self._session(session_id)
        origin = session.origin or session
        _, pool = await self._backend(origin.spec.isolation_floor)
        sibling_id = sibling_id or new_session_id()
        self._sessions[sibling_id] = await sessions.add_sibling(origin, pool)
        origin.siblings.add(sibling_id)
        return sibling_id

    def siblings(self, session_id: str) -> list[str]:
        """Those of a session that were not closed. Raises NotFound."""
        return list(self._session(session_id).siblings)

    async def undo(self, session_id: str, cells: int = 1) -> Rewound:
        """Go back so many cells, memory and files. Raises BadRequest, SessionGone; SandboxFailed, and the session is gone."""
        return await self._rewind(session_id, cells, forward=False)

    async def redo(self, session_id: str, cells: int = 1) -> Rewound:
        """Take back an `undo`, while nothing new has run."""
        return await self._rewind(session_id, cells, forward=True)

    async def fork(self, session_id: str, count: int = 1, *, ids: Sequence[str] = ()) -> list[str]:
        """So many branches of a session: sessions of their own, with its state as it is now; their ids are the caller's if given.

        Raises Unavailable where it has no checkpoint, BadRequest, Overloaded, SessionGone, SandboxFailed; then there are none.
        """
        checks.check_count(count)
        session = self._session(session_id)
        _, pool = await self._backend(session.spec.isolation_floor)
        made: list[str] = []
        some = asyncio.Semaphore(BRANCHES_AT_ONCE)

        async def make(branch_id: str) -> None:
            async with some:
                self._sessions[branch_id] = await sessions.add_branch(session, pool, self._timeline)
                made.append(branch_id)

        async with self._turn(session):
            try:
                ended = await asyncio.gather(*map(make, ids or [new_session_id() for _ in range(count)]), return_exceptions=True)
                for failure in filter(None, ended):
                    raise failure  # the others fail of the same, or because of it
            except BaseException:
                for branch in made:
                    await self.close(branch)
                raise
        return made

    async def _rewind(self, session_id: str, cells: int, *, forward: bool) -> Rewound:
        checks.check_cells(cells)
        session = self._session(session_id)
        async with self._turn(session):
            try:
                moved = await session.worker.rewind(cells, forward=forward)
            except SandboxFailed as err:
                await self._lose(session, str(err))
                raise
            return Rewound(moved.cells, moved.note)

    async def execute(
        self, session_id: str, cell: Cell, *, run_id: str | None = None, queue_ms: float = 0.0
    ) -> AsyncGenerator[Event]:
        """Run a cell in a session and yield its events, `Done` last. Cells of one session run one after the other.

        `run_id` is the caller's if given; `queue_ms`: how long it has waited already.
        """
        checks.check_cell(cell)
        session = self._session(session_id)
        if session.worker.waiting:
            raise Conflict("the session waits for the answers to its program's calls", hint=_ANSWER_FIRST)
        run_id = run_id or new_run_id()
        asked = time.monotonic()
        async with self._turn(session, run_id):
            queue_ms += (time.monotonic() - asked) * 1e3
            if session.interrupted:
                yield Done(outcomes.never_began(run_id, session_id, queue_ms, session.spec))
                return
            events = session.worker.execute(
                cell, session.spec.limits, run_id, session_id=session_id, queue_ms=queue_ms, start_ms=0.0,
                undo_errors=session.spec.on_error == "rollback", binding=session.binding and session.binding.with_tools(cell.tools),
            )  # fmt: skip
            async with self._running(run_id, session.worker, session), contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Done) and event.result.status != "waiting" and not event.result.session.survived:
                        await self._lose(session, event.result.session.note or "its process ended")
                    yield event

    def _turn(self, session: Session, run_id: str | None = None) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait for the cells before to end. Raises SessionGone."""
        return sessions.turn(session, self._lose, run_id)

    async def run(
        self, spec: SessionSpec, cell: Cell, files: Contents, *, run_id: str | None = None, queue_ms: float = 0.0,
        ask: Ask | None = None,
    ) -> AsyncGenerator[Event]:  # fmt: skip
        """A one-shot: a sandbox of its own for this cell, discarded afterwards. `run_id` and `queue_ms` as in `execute`."""
        nodes = self._checked(spec)
        checks.check_cell(cell)
        asked = time.monotonic()
        _, pool = await self._backend(spec.isolation_floor)
        queued = time.monotonic()
        worker = await self._worker(pool, spec, preload.choose(nodes, cell.code), files)
        try:
            started = time.monotonic()
            run_id = run_id or new_run_id()
            queue_ms += (queued - asked) * 1e3
            events = worker.execute(
                cell, spec.limits, run_id, session_id=None, queue_ms=queue_ms, start_ms=(started - queued) * 1e3,
                binding=Binding.of(spec, ask).with_tools(cell.tools),
            )  # fmt: skip
            async with self._running(run_id, worker), contextlib.aclosing(events):
                async for event in events:
                    yield event
        finally:
            pool.discard_soon(worker)

    @contextlib.asynccontextmanager
    async def _running(self, run_id: str, worker: Worker, session: Session | None = None) -> AsyncGenerator[None]:
        self._runs[run_id] = worker
        try:
            with sessions.at_work(session):
                yield
        finally:
            self._runs.pop(run_id, None)

    async def interrupt(self, session_id: str) -> None:
        """Like Ctrl-C for what a session runs. Nothing happens where nothing runs. Raises NotFound for an unknown session."""
        session = self._session(session_id)
        session.interrupted = session.coming_run is not None
        session.worker.interrupt()

    def interrupt_run(self, run_id: str) -> None:
        """The same for one run. Nothing happens where it does not run."""
        if (worker := self._runs.get(run_id)) is not None:
            worker.interrupt()

    async def answer(self, run_id: str, answers: Sequence[ToolAnswer]) -> None:
        """See `seam.Engine`."""
        worker = self._runs.get(run_id)
        if worker is None:
            raise NotFound(f"no run {run_id[:60]!r} waits for answers")
        worker.calls.answer(answers)

    async def follow(self, run_id: str) -> AsyncGenerator[Event]:
        """See `seam.Engine`. The events of a run are those of whoever began it."""
        raise NotFound(
            f"the events of {run_id[:60]!r} are read where it was begun", hint="Take them from the stream that you have."
        )
        yield Done  # type: ignore[unreachable]  # makes it a generator

    def files(self, session_id: str) -> LocalFiles:
        return LocalFiles(lambda: self.workspace(session_id), lambda: self.note_files(session_id))

    def workspace(self, session_id: str) -> Workspace:
        """The session's files; methods block briefly. Raises NotFound, SessionGone."""
        session = self._session(session_id)
        if gone := session.gone or session.worker.ended:
            raise SessionGone(f"the session ended: {gone}")
        return session.worker.workspace

    @property
    def warm(self) -> int:
        """Sandboxes that are ready and wait for a program."""
        return sum(pool.idle for _, pool in self._tiers.values())

    def note_files(self, session_id: str) -> None:
        self._session(session_id).worker.note_files()

    async def close(self, session_id: str) -> None:
        """End a session and everything in it; waits until nothing is left. Closing twice does no harm."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            if session.origin is not None:
                session.origin.siblings.discard(session_id)
            await self._lose(session, "closed")

    async def aclose(self) -> None:
        for session_id in list(self._sessions):
            await self.close(session_id)
        for tier, pool in self._tiers.values():
            await pool.aclose()
            await tier.aclose()
        self._tiers.clear()
        if self._copies is not None:
            self._copies.remove()
            self._copies = None

    # ------------------------------------------------------------------ inside

    def _checked(self, spec: SessionSpec) -> tuple[environments.Node, ...]:
        """The nodes of the environment that the spec names. Raises BadRequest, UnknownEnvironment."""
        checks.check_limits(spec.limits)
        checks.check_environment_name(spec.environment)
        checks.check_tools(spec.tools)
        checks.check_siblings(spec.siblings, checkpoints=spec.checkpoints, threads=spec.threads)
        now = time.monotonic()
        found = self._environments.get(spec.environment)
        if found is None or found[0] < now:
            found = (now + ENVIRONMENT_FRESH_S, environments.find(spec.environment).nodes)
            self._environments[spec.environment] = found
        return found[1]

    async def _worker(self, pool: Pool, spec: SessionSpec, node: str, files: Contents, *, is_session: bool = False) -> Worker:
        """A sandbox in which everything is done that comes before the program's first line. Raises what `open` raises.

        One that dies meanwhile, above all because its zygote was killed, is made again, by another zygote if need be: nothing of the
        program has run, so nobody can tell. Once: perhaps it dies of what was asked for.
        """
        try:
            return await self._prepared(pool, spec, node, files, is_session=is_session)
        except SandboxDied:
            return await self._prepared(pool, spec, node, files, is_session=is_session)

    async def _prepared(self, pool: Pool, spec: SessionSpec, node: str, files: Contents, *, is_session: bool) -> Worker:
        worker = await pool.acquire((spec.environment, node), spec.limits)
        try:
            if files:
                for path, data in files.items():
                    worker.workspace.write(path, data)
                worker.note_files()
            at_home = is_session and spec.siblings > 0
            if at_home:
                await pool.open_to_siblings(worker)
            asleep = sessions.asleep(spec) if is_session else 0
            worker.greet(spec.limits, spec.policy, asleep=asleep, threads=spec.threads, at_home=at_home)
            if is_session:
                await self._remember(worker, spec)
        except BaseException:
            await pool.discard(worker)
            raise
        return worker

    async def _remember(self, worker: Worker, spec: SessionSpec) -> None:
        if spec.checkpoints and spec.threads == 1:
            worker.remember(self._timeline(worker, spec))
            if spec.siblings:
                await sessions.keep_pristine(worker)
        elif spec.checkpoints:
            worker.note = f"no checkpoint: the session asked for {spec.threads} threads, which do not survive a fork"

    async def _lose(self, session: Session, why: str) -> None:
        if session.gone is not None:
            return  # by another way, at the same time
        session.gone = why
        for name in list(session.siblings):
            await self.close(name)
        await self._tiers_pool(session).discard(session.worker)

    def _tiers_pool(self, session: Session) -> Pool:
        assert self._support is not None  # a session exists, so the host was probed
        return self._tiers[reachable_level(self._support, session.spec.isolation_floor)][1]

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFound(f"there is no session {session_id[:60]!r}")
        return session


_ANSWER_FIRST: Final = "Answer them, or interrupt the run; then the session takes the next cell."


def new_run_id() -> str:
    return f"run_{secrets.token_hex(12)}"


def new_session_id() -> str:
    return f"ses_{secrets.token_hex(12)}"
