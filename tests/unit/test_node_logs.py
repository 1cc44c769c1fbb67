"""The events of a run: numbered, read by anybody from anywhere, and no faster made than its readers read."""

import asyncio

import pytest

from onetrip.model import Done, Isolation, Result, Stdout
from onetrip.node.logs import Log
from onetrip.node.messages import WINDOW_BYTES

BIG = Stdout("x" * (WINDOW_BYTES // 2))


async def put(log: Log, count: int) -> None:
    for _ in range(count):
        await log.put(BIG)
    log.end()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.spec("HTT-07")
def test_a_run_whose_reader_is_announced_waits_for_it_as_for_one_that_is_slow():
    async def main() -> None:
        log = Log()
        log.expect_reader()
        making = asyncio.create_task(put(log, 8))
        await turns()
        assert not making.done()
        assert len(log.records) <= 4
        assert [record.number async for record in log.read(0)] == list(range(1, 9))
        await making

    asyncio.run(main())


def test_a_run_without_a_reader_goes_on():
    async def main() -> None:
        log = Log()
        await asyncio.wait_for(put(log, 8), 5)
        assert [record.number async for record in log.read(6)] == [7, 8]

    asyncio.run(main())


def test_a_reader_that_leaves_lets_the_run_go_on():
    async def main() -> None:
        log = Log()
        reader = log.read(0)
        making = asyncio.create_task(put(log, 8))
        assert (await anext(reader)).number == 1
        await turns()
        assert not making.done()
        await reader.aclose()
        await asyncio.wait_for(making, 5)

    asyncio.run(main())


@pytest.mark.spec("TOL-82")
def test_who_comes_after_an_answer_is_not_told_that_the_run_waits():
    """A call that was allowed is on its way, and no event says so until it has ended."""

    async def main() -> None:
        log = Log()
        await log.put(Stdout("x"))
        await log.put(Done(Result(id="run_1", session_id=None, status="waiting", isolation=Isolation("jail", "strict", ()))))
        assert [record.name async for record in log.read(0)] == ["stdout", "done"]
        log.go_on()
        reading, settling = log.read(0), asyncio.create_task(log.wait_settled())
        assert (await anext(reading)).name == "stdout"
        following = asyncio.ensure_future(anext(reading))
        await turns()
        assert not following.done()
        assert not settling.done()
        await log.put(Stdout("y"))
        assert (await following).number == 3
        log.end()
        await settling

    asyncio.run(main())
