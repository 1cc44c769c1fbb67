"""Quotas and the queue: nobody gets more than they may, nobody starves, and no slot is ever lost, however runs end."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip.admission import Admission
from onetrip.errors import Overloaded, QuotaExceeded
from onetrip.model import Limits
from onetrip.settings import Quota, Settings
from onetrip.tenants import Caller

ACME, OTHER, THIRD = (Caller(name, "k", "user") for name in ("acme", "other", "third"))
UNLIMITED = Quota(sessions=None, concurrent_runs=None, requests_per_s=None)
NOON = 1_800_000_000.0 - 1_800_000_000.0 % 86_400 + 43_200


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Desk:
    """An admission with clocks to turn by hand, and runs that end when they are told."""

    def __init__(self, quota=UNLIMITED, *, cpu=lambda tenant: 0.0, **settings):
        self.clock, self.wall = Clock(50.0), Clock(NOON)
        self.quota = quota
        self.admission = Admission(
            Settings(**{"max_running": 2, "max_queue": 3, **settings}),
            lambda tenant: self.quota,
            cpu,
            clock=self.clock,
            wall_clock=self.wall,
        )
        self.order: list[str] = []  # as runs got their slots
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task] = {}

    async def _work(self, name, caller, limits):
        async with self.admission.run(caller, limits) as ticket:
            self.order.append(name)
            await self.ends[name].wait()
            return ticket

    def start(self, name, caller=ACME, limits=None):
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.ensure_future(self._work(name, caller, limits))
        return self.tasks[name]

    async def started(self, name, caller=ACME, limits=None):
        task = self.start(name, caller, limits)
        await settle()
        return task

    async def end(self, name):
        self.ends[name].set()
        return await self.tasks[name]

    async def all_over(self):
        """End everything that runs, in turn, until nothing is left."""
        for event in self.ends.values():
            event.set()
        await asyncio.wait(self.tasks.values())

    @property
    def numbers(self):
        stats = self.admission.stats()
        return stats.running, stats.queued


async def settle():
    """Let every task go on until all of them wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def nothing_is_left(admission):
    stats = admission.stats()
    assert (stats.running, stats.queued, stats.sessions, stats.tenants) == (0, 0, 0, {})
    assert not admission._turns
    for tenant in admission._tenants.values():
        assert (tenant.running, tenant.memory_mb, tenant.disk_mb, list(tenant.waiting)) == (0, 0, 0, [])


# ---------------------------------------------------------------------------------------------------- the queue


@pytest.mark.spec("ADM-01")
def test_runs_beyond_the_slots_wait_and_start_in_order():
    async def main():
        desk = Desk()
        for name in "abcd":
            await desk.started(name)
        assert (desk.order, desk.numbers) == (["a", "b"], (2, 2))
        desk.clock.now += 1.5
        assert (await desk.end("a")).queue_ms == 0
        await settle()
        assert (desk.order, desk.numbers) == (["a", "b", "c"], (2, 1))
        assert (await desk.end("c")).queue_ms == 1500
        await settle()
        assert desk.order == ["a", "b", "c", "d"]
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-01")
def test_more_than_may_wait_are_refused_at_once():
    async def main():
        desk = Desk()
        for name in "abcde":
            await desk.started(name)
        assert desk.numbers == (2, 3)
        with pytest.raises(Overloaded, match="3 runs wait for 2 slots") as refused:
            await desk.start("f")
        assert 1 <= refused.value.retry_after_s <= 60
        assert desk.numbers == (2, 3)
        await desk.all_over()
        assert desk.order == ["a", "b", "c", "d", "e"]
        nothing_is_left(desk.admission)
        assert desk.admission.stats().refused == {"overloaded_queue": 1}

    asyncio.run(main())


@pytest.mark.spec("ADM-01")
def test_a_queue_of_no_length_refuses_what_has_no_slot():
    async def main():
        desk = Desk(max_queue=0, max_running=1)
        await desk.started("a")
        with pytest.raises(Overloaded):
            await desk.start("b", OTHER)
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-01")
def test_a_run_that_waits_too_long_is_refused_and_its_place_is_free():
    async def main():
        desk = Desk(max_running=1, queue_timeout_s=0.01)
        await desk.started("a")
        with pytest.raises(Overloaded, match="waited too long"):
            await desk.start("b", limits=Limits())
        assert desk.numbers == (1, 0)
        await desk.end("a")
        await desk.started("c")
        assert desk.order == ["a", "c"]
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-02")
def test_tenants_take_turns_so_a_flood_of_one_delays_another_by_one_run():
    async def main():
        desk = Desk(max_running=1, max_queue=100)
        for number in range(10):
            await desk.started(f"flood{number}")
        await desk.started("theirs", OTHER)
        await desk.started("others", THIRD)
        await desk.end("flood0")
        await desk.end("flood1")
        await desk.end("theirs")
        await desk.end("others")
        await settle()
        assert desk.order == ["flood0", "flood1", "theirs", "others", "flood2"]
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-02")
def test_a_flood_that_fills_the_queue_displaces_its_own_last_not_another_tenant():
    async def main():
        desk = Desk(max_running=1, max_queue=4)
        for name in ("run", "f1", "f2", "f3", "f4"):
            await desk.started(name)
        await desk.started("theirs", OTHER)
        assert desk.numbers == (1, 4)
        with pytest.raises(Overloaded):
            await desk.tasks["f4"]
        for name in ("f5", "f6"):
            with pytest.raises(Overloaded, match="no more may wait"):
                await desk.start(name)
        await desk.started("theirs2", OTHER)
        with pytest.raises(Overloaded):  # it has as many as the flood now: nobody is displaced any more
            await desk.start("theirs3", OTHER)
        await desk.all_over()
        assert desk.order == ["run", "f1", "theirs", "f2", "theirs2"]
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-03")
@pytest.mark.parametrize("when", ["waiting", "granted", "running", "expired", "displaced"])
def test_a_run_that_is_cancelled_neither_leaks_nor_loses_a_slot(when):
    async def main():
        desk = Desk(max_running=1, max_queue=1)
        await desk.started("a")
        await desk.started("b", limits=Limits())
        (waiter,) = desk.admission._tenants["acme"].waiting
        match when:
            case "granted":  # the slot comes, and in the same moment, before its task can know, the client goes away
                desk.admission._release(desk.admission._tenants["acme"])
                assert waiter.turn.done()
                desk.admission._grant(desk.admission._tenants["acme"])  # a's slot again, which it still holds
            case "running":
                await desk.end("a")
                await settle()
            case "expired":
                desk.admission._give_up(desk.admission._tenants["acme"], waiter)
            case "displaced":
                desk.admission._forget(desk.admission._tenants["acme"], waiter)
        desk.tasks["b"].cancel()
        with pytest.raises(asyncio.CancelledError):
            await desk.tasks["b"]
        desk.ends["a"].set()
        await desk.tasks["a"]
        nothing_is_left(desk.admission)
        await desk.started("c")
        assert desk.order[-1] == "c"
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-03")
def test_a_slot_is_not_handed_to_a_run_that_was_just_cancelled():
    async def main():
        desk = Desk(max_running=1, max_queue=2)
        await desk.started("a")
        await desk.started("b")
        await desk.started("c", OTHER)
        desk.ends["a"].set()
        desk.tasks["b"].cancel()  # its task runs again only after a's, which hands the slot on
        await settle()
        assert (desk.order, desk.numbers) == (["a", "c"], (1, 0))
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-03")
def test_a_run_that_raises_gives_its_slot_back():
    async def main():
        desk = Desk(max_running=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with desk.admission.run(ACME, Limits()):
                    raise ZeroDivisionError
        nothing_is_left(desk.admission)

    asyncio.run(main())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "end", "cancel", "end and cancel", "go on"]),
        st.integers(0, 7),
        st.sampled_from([ACME, OTHER, THIRD]),
    ),
    max_size=60,
)


@pytest.mark.spec("ADM-01", "ADM-02", "ADM-03")
@given(STEPS, st.integers(1, 3), st.integers(0, 4))
def test_never_more_than_the_slots_run_and_none_is_lost_whatever_happens_in_which_order(steps, max_running, max_queue):
    async def main():
        desk = Desk(max_running=max_running, max_queue=max_queue)

        def check():
            running, queued = desk.numbers
            assert 0 <= running <= max_running
            assert 0 <= queued <= max_queue
            assert running == max_running or not queued  # nobody waits beside a free slot
            assert queued == sum(len(tenant.waiting) for tenant in desk.admission._turns)

        for number, (step, which, caller) in enumerate(steps):
            names = [name for name, task in desk.tasks.items() if not task.done()]
            match step:
                case "start":
                    desk.start(str(number), caller, Limits() if which % 2 else None)
                case "end" if names:
                    desk.ends[names[which % len(names)]].set()
                case "cancel" if names:
                    desk.tasks[names[which % len(names)]].cancel()
                case "end and cancel" if names:
                    desk.ends[names[0]].set()
                    desk.tasks[names[-which % len(names)]].cancel()
                case "go on":
                    await asyncio.sleep(0)
                    check()
        await settle()
        check()
        if desk.tasks:
            await desk.all_over()
        nothing_is_left(desk.admission)
        for task in desk.tasks.values():
            with contextlib.suppress(asyncio.CancelledError, Overloaded):
                task.result()
        for number in range(max_running):  # every slot is still there
            await desk.started(f"after{number}")
        assert desk.numbers == (max_running, 0)
        await desk.all_over()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- quotas


@pytest.mark.spec("ADM-04")
def test_requests_come_in_bursts_up_to_twice_the_rate_and_then_at_the_rate():
    desk = Desk(Quota(requests_per_s=10))
    for _ in range(20):
        desk.admission.request(ACME)
    with pytest.raises(QuotaExceeded) as refused:
        desk.admission.request(ACME)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    desk.admission.request(OTHER)  # has a bucket of its own
    desk.clock.now += refused.value.retry_after_s
    desk.admission.request(ACME)
    with pytest.raises(QuotaExceeded):
        desk.admission.request(ACME)
    desk.clock.now += 1e6  # a long rest saves no more than a burst
    for _ in range(20):
        desk.admission.request(ACME)
    with pytest.raises(QuotaExceeded):
        desk.admission.request(ACME)
    assert desk.admission.stats().refused == {"requests_per_s": 3}


@pytest.mark.spec("ADM-04")
def test_no_rate_means_no_bound_and_a_rate_of_nothing_means_no_requests():
    desk = Desk(Quota(requests_per_s=None))
    for _ in range(1000):
        desk.admission.request(ACME)
    desk.quota = Quota(requests_per_s=0)
    with pytest.raises(QuotaExceeded):
        desk.admission.request(ACME)


@pytest.mark.spec("ADM-04")
@given(st.floats(0.1, 1000), st.lists(st.floats(0, 10), max_size=200))
def test_the_rate_holds_over_any_stretch_of_time(rate, pauses):
    desk = Desk(Quota(requests_per_s=rate))
    passed, began = 0, desk.clock.now
    for pause in pauses:
        desk.clock.now += pause / rate
        with contextlib.suppress(QuotaExceeded):
            desk.admission.request(ACME)
            passed += 1
    assert passed <= max(1, 2 * rate) + (desk.clock.now - began) * rate + 1e-6


@pytest.mark.spec("ADM-04")
def test_sessions_are_bounded_per_tenant_and_a_closed_one_makes_room_once():
    desk = Desk(Quota(sessions=2))
    first, _ = desk.admission.open_session(ACME, Limits()), desk.admission.open_session(ACME, Limits())
    with pytest.raises(QuotaExceeded, match="2 sessions are open; the quota is 2") as refused:
        desk.admission.open_session(ACME, Limits())
    assert refused.value.retry_after_s
    desk.admission.open_session(OTHER, Limits())
    desk.admission.close_session(first)
    desk.admission.close_session(first)
    desk.admission.open_session(ACME, Limits())
    with pytest.raises(QuotaExceeded):
        desk.admission.open_session(ACME, Limits())
    assert desk.admission.stats().sessions == 3


@pytest.mark.spec("ADM-04")
def test_the_machine_takes_a_bounded_number_of_sessions_of_all_tenants_together_and_keeps_those_that_live():
    desk = Desk(max_sessions=2)
    adopted = [desk.admission.adopt_session("acme", Limits()) for _ in range(3)]  # of a server that took more
    with pytest.raises(Overloaded, match="3 sessions are open") as refused:
        desk.admission.open_session(OTHER, Limits())
    assert refused.value.retry_after_s
    for seat in adopted:
        desk.admission.close_session(seat)
    desk.admission.close_session(desk.admission.open_session(OTHER, Limits()))
    nothing_is_left(desk.admission)


@pytest.mark.spec("ADM-04")
def test_runs_of_a_tenant_are_bounded_whether_they_run_or_wait():
    async def main():
        desk = Desk(Quota(concurrent_runs=3))
        for name in "abc":
            await desk.started(name)
        with pytest.raises(QuotaExceeded, match="3 runs are on their way; the quota is 3") as refused:
            await desk.start("d")
        assert refused.value.retry_after_s
        await desk.started("e", OTHER)
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-04")
@pytest.mark.parametrize("name", ["memory_mb", "disk_mb"])
def test_memory_and_disk_of_sessions_and_one_shots_add_up(name):
    async def main():
        desk = Desk(Quota(**{name: 1000}))
        seat = desk.admission.open_session(ACME, Limits(**{name: 600}))
        await desk.started("cell", limits=None)  # its session counts already
        await desk.started("one-shot", limits=Limits(**{name: 400}))
        with pytest.raises(QuotaExceeded, match=f"limits.{name} of 32 and 1000 in use") as refused:
            await desk.start("x", limits=Limits(**{name: 32}))
        assert (refused.value.field, refused.value.retry_after_s) == (name, 1)
        with pytest.raises(QuotaExceeded):
            desk.admission.open_session(ACME, Limits(**{name: 32}))
        with pytest.raises(QuotaExceeded) as never:  # another try would be as vain
            desk.admission.open_session(OTHER, Limits(**{name: 1001}))
        assert never.value.retry_after_s is None
        await desk.all_over()
        desk.admission.close_session(seat)
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-05")
def test_cpu_seconds_of_a_day_go_on_from_the_database_and_begin_anew_at_midnight_utc():
    async def main():
        asked = []
        desk = Desk(Quota(cpu_s_per_day=100), cpu=lambda tenant: asked.append(tenant) or 90.0)
        await desk.started("a")
        await desk.end("a")
        desk.admission.charge("acme", 9.0)
        await desk.started("b")
        desk.admission.charge("acme", 5.0)  # while b is on its way, which goes on
        with pytest.raises(QuotaExceeded, match="104 CPU seconds were used today") as refused:
            await desk.start("c")
        assert refused.value.retry_after_s == pytest.approx(43_200)
        assert desk.admission.stats().tenants["acme"].cpu_s_today == 104
        desk.wall.now += refused.value.retry_after_s
        await desk.started("d")
        assert desk.admission.stats().tenants["acme"].cpu_s_today == 0
        await desk.all_over()
        assert asked == ["acme"]
        nothing_is_left(desk.admission)

    asyncio.run(main())


@pytest.mark.spec("ADM-05")
def test_the_snapshot_shows_who_has_what():
    async def main():
        desk = Desk()
        seat = desk.admission.open_session(OTHER, Limits())
        for name in "abc":
            await desk.started(name, limits=Limits(memory_mb=100, disk_mb=10))
        stats = desk.admission.stats()
        acme, other = stats.tenants["acme"], stats.tenants["other"]
        assert (stats.sessions, stats.running, stats.queued) == (1, 2, 1)
        assert (acme.sessions, acme.running, acme.queued, acme.memory_mb, acme.disk_mb) == (0, 2, 1, 300, 30)
        assert (other.sessions, other.running, other.memory_mb) == (1, 0, 1024)
        desk.admission.close_session(seat)
        await desk.all_over()
        nothing_is_left(desk.admission)

    asyncio.run(main())
