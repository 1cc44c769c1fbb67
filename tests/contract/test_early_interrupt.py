"""An interrupt that comes while its cell waits for the checkpoint of the one before."""

import asyncio

import pytest

import onetrip
from onetrip.model import Done, Started


@pytest.mark.spec("LIM-09")
def test_an_interrupt_is_for_the_cell_that_is_about_to_begin():
    async def scenario():
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            assert (await session.run("kept = 1")).ok  # whose checkpoint is being made now
            cell = asyncio.ensure_future(session.run("import time\ntime.sleep(50)\nkept = 2"))
            await asyncio.sleep(0)  # it was asked for, and has not begun
            await session.interrupt()
            result = await cell
            assert (result.status, result.session.survived) == ("interrupted", True)
            assert (await session.run("kept")).value == 1

    asyncio.run(scenario())


@pytest.mark.spec("LIM-09")
def test_an_interrupt_as_soon_as_a_cell_has_begun_ends_it_and_costs_the_session_nothing():
    """It reaches the sandbox before the program's first line, or soon after it."""

    async def scenario():
        async with onetrip.alocal(warm=0) as ot, ot.session(checkpoints=0) as session:
            assert (await session.run("kept = 1")).ok
            for turns in range(40):
                async for event in session.stream("while True: pass"):
                    if isinstance(event, Started):
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        await session.interrupt()
                    if isinstance(event, Done):
                        assert (event.result.status, event.result.session.survived) == ("interrupted", True), turns
                assert (await session.run("kept")).value == 1

    asyncio.run(scenario())
