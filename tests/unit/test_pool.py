"""The pool with sandboxes that are made of nothing: what is kept ready, what is replaced, what is refused."""

import asyncio
from types import SimpleNamespace

import pytest

from onetrip import pool as pool_module
from onetrip.errors import Overloaded, SandboxFailed
from onetrip.model import Limits
from onetrip.pool import Pool


class FakeWorker:
    def __init__(self, spec) -> None:
        self.spec = spec
        self.ended: str | None = None
        self.started = self.closed = False

    async def start(self) -> None:
        self.started = True

    async def aclose(self) -> None:
        assert not self.closed
        self.closed = True


class FakeTier:
    """Launches at once, or when it is let; remembers what it was asked for."""

    name = "fake"

    def __init__(self) -> None:
        self.launched: list = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0

    async def wait_ready(self, environment, node) -> None:
        pass

    async def launch(self, spec):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            self.launched.append(spec)
            return spec
        finally:
            self.at_once -= 1


KEY = ("default", "bare")
OTHER = ("default", "pandas")


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock, which stands still unless it is moved: `clock.now += 1`."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
def with_pool(monkeypatch, clock):
    """Runs `test(pool, tier)` with a pool of fake sandboxes, and closes the pool."""
    monkeypatch.setattr(pool_module, "Worker", FakeWorker)
    monkeypatch.setattr(pool_module, "REFILL_DELAY_S", 0)

    def run(test, *, warm=2, max_live=100):
        async def main():
            tier = FakeTier()
            pool = Pool(tier, warm=warm, max_live=max_live)
            async with asyncio.timeout(10):
                await test(pool, tier)
                await pool.aclose()

        asyncio.run(main())

    return run


async def settle() -> None:
    """Let everything that is under way end; the fakes need no time."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_cold_pool_launches_and_then_keeps_as_many_ready_as_asked_for(with_pool, clock):
    async def test(pool, tier):
        first = await pool.acquire(KEY, Limits())
        assert (first.started, first.spec.environment, first.spec.node) == (True, "default", "bare")
        await settle()
        assert (len(tier.launched), pool.live) == (3, 3)
        clock.now += 1
        second = await pool.acquire(KEY, Limits())
        assert second.spec in tier.launched[1:]
        await settle()
        assert (len(tier.launched), pool.live) == (4, 4)
        for worker in (first, second):
            await pool.discard(worker)
        assert pool.live == 2

    with_pool(test)


def test_a_prepared_kind_is_ready_before_anybody_asks(with_pool):
    async def test(pool, tier):
        pool.prepare(KEY)
        await settle()
        assert len(tier.launched) == 2
        worker = await pool.acquire(KEY, Limits())
        assert worker.spec is tier.launched[0]
        await pool.discard(worker)

    with_pool(test)


def test_each_sandbox_has_a_name_of_its_own_and_is_handed_out_once(with_pool):
    async def test(pool, tier):
        workers = [await pool.acquire(KEY, Limits()) for _ in range(20)]
        assert len({worker.spec.id for worker in workers}) == 20
        for worker in workers:
            await pool.discard(worker)

    with_pool(test)


@pytest.mark.spec("LIM-05")
def test_another_size_of_disk_is_launched_for_it(with_pool):
    async def test(pool, tier):
        pool.prepare(KEY)
        await settle()
        worker = await pool.acquire(KEY, Limits(disk_mb=1))
        assert worker.spec.limits.disk_mb == 1
        other = await pool.acquire(KEY, Limits(memory_mb=64))  # memory can still be set in a waiting one
        assert other.spec is tier.launched[0]
        for one in (worker, other):
            await pool.discard(one)

    with_pool(test)


def test_one_that_died_while_it_waited_is_replaced(with_pool):
    async def test(pool, tier):
        pool.prepare(KEY)
        await settle()
        for worker in pool._idle[KEY]:
            worker.ended = "killed"
        dead = list(pool._idle[KEY])
        worker = await pool.acquire(KEY, Limits())
        assert worker not in dead
        await settle()
        assert [one.closed for one in dead] == [True, True]
        await pool.discard(worker)

    with_pool(test)


@pytest.mark.spec("ISO-11")
def test_a_launch_that_fails_is_the_callers_and_costs_no_place(with_pool):
    async def test(pool, tier):
        tier.error = SandboxFailed("the jail's step failed")
        for _ in range(3):
            with pytest.raises(SandboxFailed):
                await pool.acquire(KEY, Limits())
        await settle()
        assert pool.live == 0
        tier.error = None
        await pool.discard(await pool.acquire(KEY, Limits()))

    with_pool(test, max_live=2)


def test_more_than_allowed_are_refused_until_one_ends(with_pool):
    async def test(pool, tier):
        workers = [await pool.acquire(KEY, Limits()) for _ in range(3)]
        with pytest.raises(Overloaded, match="3 sandboxes are live"):
            await pool.acquire(KEY, Limits())
        await pool.discard(workers.pop())
        workers.append(await pool.acquire(KEY, Limits()))
        for worker in workers:
            await pool.discard(worker)

    with_pool(test, max_live=3, warm=0)


def test_one_that_waits_for_another_kind_makes_room(with_pool):
    async def test(pool, tier):
        pool.prepare(OTHER)
        await settle()
        assert pool.live == 2
        worker = await pool.acquire(KEY, Limits())
        assert (worker.spec.node, pool.live) == ("bare", 2)
        await pool.discard(worker)

    with_pool(test, max_live=2)


def test_warm_ones_never_go_over_the_limit(with_pool):
    async def test(pool, tier):
        pool.prepare(KEY)
        pool.prepare(OTHER)
        await settle()
        assert pool.live == 3

    with_pool(test, max_live=3)


def test_no_more_launches_at_once_than_there_are_cpus_for(with_pool, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    async def test(pool, tier):
        tier.gate.clear()
        asking = [asyncio.create_task(pool.acquire(KEY, Limits())) for _ in range(20)]
        await settle()
        assert tier.most_at_once == 3
        tier.gate.set()
        for worker in await asyncio.gather(*asking):
            await pool.discard(worker)

    with_pool(test)


def test_a_rush_is_prepared_for_and_forgotten(with_pool, clock):
    async def test(pool, tier):
        workers = []
        for _ in range(64):  # one a millisecond
            workers.append(await pool.acquire(KEY, Limits()))
            await settle()
            clock.now += 0.001
        assert len(pool._idle[KEY]) == pool_module.MAX_WARM
        clock.now += pool_module.FORGET_S + 1
        workers.append(await pool.acquire(KEY, Limits()))
        assert pool._wanted[KEY] == 2
        for worker in workers:
            await pool.discard(worker)

    with_pool(test)


@pytest.mark.spec("END-03")
def test_a_cancelled_caller_costs_no_place(with_pool):
    async def test(pool, tier):
        tier.gate.clear()
        asking = asyncio.create_task(pool.acquire(KEY, Limits()))
        await settle()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert pool.live == 0
        tier.gate.set()

    with_pool(test, warm=0)


@pytest.mark.spec("END-03")
def test_a_worker_that_does_not_start_is_closed(with_pool, monkeypatch):
    made = []

    class Broken(FakeWorker):
        async def start(self):
            made.append(self)
            raise SandboxFailed("not ready")

    async def test(pool, tier):
        monkeypatch.setattr(pool_module, "Worker", Broken)
        with pytest.raises(SandboxFailed, match="not ready"):
            await pool.acquire(KEY, Limits())
        assert (pool.live, [worker.closed for worker in made]) == (0, [True])

    with_pool(test, warm=0)


@pytest.mark.spec("END-03")
def test_closing_closes_what_waits_and_what_is_under_way(with_pool):
    async def test(pool, tier):
        pool.prepare(KEY)
        await settle()
        idle = list(pool._idle[KEY])
        tier.gate.clear()
        pool.prepare(OTHER)
        await settle()
        closing = asyncio.create_task(pool.aclose())
        await settle()
        tier.gate.set()
        await closing
        assert [worker.closed for worker in idle] == [True, True]
        assert pool.live == 0

    with_pool(test)


@pytest.mark.spec("END-03")
def test_closing_waits_for_what_was_given_back(with_pool):
    async def test(pool, tier):
        worker = await pool.acquire(KEY, Limits())
        pool.discard_soon(worker)
        await pool.aclose()
        assert worker.closed
        assert pool.live == 0

    with_pool(test, warm=0)
