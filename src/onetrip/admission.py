"""Who may start something now: quotas of tenants, and the one bounded queue for the machine's slots.

A tenant over its quota is refused at once (`QuotaExceeded`, 429). A run that the machine has no slot for waits, a bounded
number of them for a bounded time (`Overloaded`, 503). Tenants take turns in the queue, and when it is full, whoever has most
waiting loses its last: a flood delays and displaces nobody but itself.

All state is in memory, for one event loop; whatever is taken is given back by leaving a `with`, also by cancellation. The
decisions are made between two awaits, so no lock is needed.
"""

import asyncio
import collections
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec

from onetrip.errors import Overloaded, QuotaExceeded
from onetrip.model import Limits
from onetrip.settings import Quota, Settings
from onetrip.tenants import Caller

BURST: Final = 2.0  # requests at once, as a multiple of those per second
DAY_S: Final = 86_400
_RETRY_S: Final = 1.0  # when nobody knows: a run or a session may end any moment
_MAX_RETRY_S: Final = 60.0


class Ticket:
    """A slot to run in, for as long as the `with` lasts; while a run waits for its caller, another may have it."""

    def __init__(
        self, queue_ms: float, release: Callable[[], None], take: Callable[[], Awaitable[None]], grant: Callable[[], None]
    ) -> None:
        self.queue_ms = queue_ms
        self._release, self._take, self._grant = release, take, grant
        self._taking = asyncio.Lock()
        self.held = True

    def suspend(self) -> None:
        if self.held:
            self.held = False
            self._release()

    async def resume(self) -> None:
        """Wait for a slot again, if it has none. Raises Overloaded."""
        async with self._taking:
            if not self.held:
                await self._take()
                if self.held:  # it was seized meanwhile
                    self._release()
                self.held = True

    def seize(self) -> None:
        """Have a slot at once, also if there is none: the run goes on by itself. What comes after waits until there are enough again."""
        if not self.held:
            self.held = True
            self._grant()


class Seat(msgspec.Struct, frozen=True, eq=False):
    """What an open session counts against its tenant's quota, until it is closed."""

    tenant: str
    limits: Limits


class TenantStats(msgspec.Struct, frozen=True):
    sessions: int
    running: int
    queued: int
    memory_mb: int
    disk_mb: int
    cpu_s_today: float


class Stats(msgspec.Struct, frozen=True):
    sessions: int
    running: int
    queued: int
    refused: Mapping[str, int]  # reason → since the start
    tenants: Mapping[str, TenantStats]


class _Tenant:
    """What one tenant has now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens, self.filled_at = math.inf, 0.0  # of the bucket; cut to its size at the first request
        self.sessions = self.running = self.memory_mb = self.disk_mb = 0
        self.waiting: collections.deque[_Waiter] = collections.deque()
        self.cpu_s, self.day = 0.0, -1

    @property
    def runs(self) -> int:
        return self.running + len(self.waiting)

    def take(self, limits: Limits, sign: int) -> None:
        self.memory_mb += sign * limits.memory_mb
        self.disk_mb += sign * limits.disk_mb


class _Waiter:
    """A run in the queue. `turn` becomes True with a slot that is already its own, or False when it is refused."""

    def __init__(self, turn: asyncio.Future[bool]) -> None:
        self.turn = turn


class Admission:
    def __init__(
        self,
        settings: Settings,
        quota: Callable[[str], Quota],
        cpu_s_today: Callable[[str], float] = lambda _: 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`quota` and `cpu_s_today` are those of `Tenants` and `Store`; the second is asked once per tenant."""
        self._quota, self._cpu_s_before, self._clock, self._wall_clock = quota, cpu_s_today, clock, wall_clock
        self._max_running = settings.max_running or 4 * len(os.sched_getaffinity(0))
        self._max_queue, self._queue_timeout_s = settings.max_queue, settings.queue_timeout_s
        self._max_sessions = settings.max_sessions
        self._tenants: dict[str, _Tenant] = {}
        self._turns: collections.deque[_Tenant] = collections.deque()  # those with runs that wait, the next one first
        self._seats: set[Seat] = set()
        self._running = self._queued = 0
        self._typical_s = _RETRY_S  # how long runs hold a slot, lately
        self._refused: collections.Counter[str] = collections.Counter()

    # ------------------------------------------------------------------------------------------------ quotas

    def request(self, caller: Caller) -> None:
        """Count one request. Raises QuotaExceeded when the tenant sends them faster than it may."""
        tenant, rate = self._tenant(caller.tenant), self._quota(caller.tenant).requests_per_s
        if rate is None:
            return
        now = self._clock()
        size = max(1.0, rate * BURST) if rate > 0 else 0.0
        tenant.tokens = min(size, tenant.tokens + (now - tenant.filled_at) * rate)
        tenant.filled_at = now
        if tenant.tokens < 1.0:
            wait = (1.0 - tenant.tokens) / rate if rate > 0 else _MAX_RETRY_S
            raise self._over("requests_per_s", f"More than {rate:g} requests per second.", wait)
        tenant.tokens -= 1.0

    def open_session(self, caller: Caller, limits: Limits) -> Seat:
        """Take a place for a session; `close_session` gives it back. Raises QuotaExceeded, Overloaded."""
        tenant, quota = self._tenant(caller.tenant), self._quota(caller.tenant)
        if quota.sessions is not None and tenant.sessions >= quota.sessions:
            raise self._over("sessions", f"{tenant.sessions} sessions are open; the quota is {quota.sessions}.", _RETRY_S)
        self._check_sums(tenant, quota, limits)
        if len(self._seats) >= self._max_sessions:
            raise self._overloaded("sessions", f"{len(self._seats)} sessions are open, which is all that this server takes.")
        return self.adopt_session(caller.tenant, limits)

    def adopt_session(self, tenant: str, limits: Limits) -> Seat:
        """The same for a session that lives already, as after a restart: it counts, and is never refused."""
        state, seat = self._tenant(tenant), Seat(tenant, limits)
        self._seats.add(seat)
        state.sessions += 1
        state.take(limits, 1)
        return seat

    def close_session(self, seat: Seat) -> None:
        """May be called again."""
        if seat in self._seats:
            self._seats.remove(seat)
            state = self._tenant(seat.tenant)
            state.sessions -= 1
            state.take(seat.limits, -1)

    def charge(self, tenant: str, cpu_s: float) -> None:
        """Count CPU time that a run has used. Call it before the store's usage is added to, which is read at a tenant's first run."""
        self._with_cpu(self._tenant(tenant)).cpu_s += cpu_s

    # ------------------------------------------------------------------------------------------------ the queue

    @asynccontextmanager
    async def run(self, caller: Caller, limits: Limits | None = None) -> AsyncGenerator[Ticket]:
        """A slot to run in. `limits` of a one-shot count against the quota; None: a cell, whose session counts them already.

        Waits for its turn. Raises QuotaExceeded and, when too many wait or it takes too long, Overloaded. CPU seconds of a
        day are checked here and charged afterwards, so a tenant may go over by what its runs use that are on their way.
        """
        tenant, quota = self._tenant(caller.tenant), self._quota(caller.tenant)
        self._check_cpu(tenant, quota)
        if quota.concurrent_runs is not None and tenant.runs >= quota.concurrent_runs:
            why = f"{tenant.runs} runs are on their way; the quota is {quota.concurrent_runs}."
            raise self._over("concurrent_runs", why, self._typical_s)
        if limits is not None:
            self._check_sums(tenant, quota, limits)
            tenant.take(limits, 1)
        try:
            asked = self._clock()
            await self._slot(tenant)
            began = self._clock()
            ticket = self._ticket(tenant, (began - asked) * 1000)
            try:
                yield ticket
            finally:
                self._typical_s += ((self._clock() - began) - self._typical_s) / 16
                ticket.suspend()
        finally:
            if limits is not None:
                tenant.take(limits, -1)

    @contextmanager
    def adopt_run(self, name: str) -> Generator[Ticket]:
        """The same for a run that is on its way already, as after a restart: it counts, and is never refused."""
        tenant = self._tenant(name)
        self._grant(tenant)
        ticket = self._ticket(tenant, 0.0)
        try:
            yield ticket
        finally:
            ticket.suspend()

    def _ticket(self, tenant: _Tenant, queue_ms: float) -> Ticket:
        return Ticket(queue_ms, lambda: self._release(tenant), lambda: self._slot(tenant), lambda: self._grant(tenant))

    async def _slot(self, tenant: _Tenant) -> None:
        if self._running < self._max_running:  # then nobody waits: a slot that becomes free is handed on at once
            self._grant(tenant)
            return
        if self._queued >= self._max_queue:
            self._make_room(tenant)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future())
        if not tenant.waiting:
            self._turns.append(tenant)
        tenant.waiting.append(waiter)
        self._queued += 1
        deadline = loop.call_later(self._queue_timeout_s, self._give_up, tenant, waiter)
        try:
            granted = await waiter.turn
        except BaseException:
            if waiter.turn.cancelled() or not waiter.turn.done():
                self._forget(tenant, waiter)
            elif waiter.turn.result():  # the slot came in the same moment: it is ours, and nobody will use it
                self._release(tenant)
            raise
        finally:
            deadline.cancel()
        if not granted:
            raise self._overloaded("queue", f"{self._queued} runs wait for {self._max_running} slots; this one waited too long.")

    def _make_room(self, tenant: _Tenant) -> None:
        """Refuse the last run of whoever has most waiting; that may be this one, and then this raises."""
        longest = max(self._turns, key=lambda other: len(other.waiting), default=tenant)
        if len(longest.waiting) <= len(tenant.waiting) + 1:  # to displace it would only exchange who has most
            raise self._overloaded("queue", f"{self._queued} runs wait for {self._max_running} slots, and no more may wait.")
        self._give_up(longest, longest.waiting[-1])

    def _give_up(self, tenant: _Tenant, waiter: _Waiter) -> None:
        self._forget(tenant, waiter)
        if not waiter.turn.done():
            waiter.turn.set_result(False)

    def _forget(self, tenant: _Tenant, waiter: _Waiter) -> None:
        """Take it out of the queue; it may be out already: who is cancelled takes himself out only when his task runs again."""
        if waiter in tenant.waiting:
            tenant.waiting.remove(waiter)
            self._queued -= 1
            if not tenant.waiting:
                self._turns.remove(tenant)

    def _grant(self, tenant: _Tenant) -> None:
        self._running += 1
        tenant.running += 1

    def _release(self, tenant: _Tenant) -> None:
        """Give a slot back, and hand it to the next in turn."""
        self._running -= 1
        tenant.running -= 1
        while self._turns and self._running < self._max_running:
            following = self._turns.popleft()
            waiter = following.waiting.popleft()
            self._queued -= 1
            if following.waiting:
                self._turns.append(following)
            if not waiter.turn.done():  # else cancelled, and its task has not run again yet
                self._grant(following)
                waiter.turn.set_result(True)

    # ------------------------------------------------------------------------------------------------ beneath

    def stats(self) -> Stats:
        """A snapshot, for telemetry. Tenants that have nothing now are left out."""
        tenants = {
            name: TenantStats(one.sessions, one.running, len(one.waiting), one.memory_mb, one.disk_mb, one.cpu_s)
            for name, one in self._tenants.items()
            if one.sessions or one.runs
        }
        return Stats(len(self._seats), self._running, self._queued, dict(self._refused), tenants)

    def _tenant(self, name: str) -> _Tenant:
        found = self._tenants.get(name)
        if found is None:
            found = self._tenants[name] = _Tenant(name)
        return found

    def _with_cpu(self, tenant: _Tenant) -> _Tenant:
        """The tenant with its CPU seconds those of today."""
        today = int(self._wall_clock() // DAY_S)
        if tenant.day != today:
            tenant.cpu_s = self._cpu_s_before(tenant.name) if tenant.day < 0 else 0.0
            tenant.day = today
        return tenant

    def _check_cpu(self, tenant: _Tenant, quota: Quota) -> None:
        used, allowed = self._with_cpu(tenant).cpu_s, quota.cpu_s_per_day
        if allowed is not None and used >= allowed:
            tomorrow = DAY_S - self._wall_clock() % DAY_S
            raise self._over(
                "cpu_s_per_day", f"{used:.0f} CPU seconds were used today (UTC); the quota is {allowed:g}.", tomorrow
            )

    def _check_sums(self, tenant: _Tenant, quota: Quota, limits: Limits) -> None:
        for name in ("memory_mb", "disk_mb"):
            allowed: int | None = getattr(quota, name)
            has, wanted = getattr(tenant, name), getattr(limits, name)
            if allowed is not None and has + wanted > allowed:
                retry = _RETRY_S if wanted <= allowed else None  # what never fits is not worth another try
                raise self._over(name, f"limits.{name} of {wanted} and {has} in use are more than the quota of {allowed}.", retry)

    def _over(self, what: str, why: str, retry_after_s: float | None) -> QuotaExceeded:
        self._refused[what] += 1
        return QuotaExceeded(why, field=what, retry_after_s=retry_after_s)

    def _overloaded(self, what: str, why: str) -> Overloaded:
        self._refused[f"overloaded_{what}"] += 1
        expected = self._typical_s * (self._queued + 1) / self._max_running
        return Overloaded(why, retry_after_s=min(_MAX_RETRY_S, max(_RETRY_S, expected)))
