"""The sessions of `onetrip mcp`, on a real engine: how many there may be, and what is said of those that ended."""

import asyncio
import contextlib

import pytest
from mcp_clients import within

import onetrip
from onetrip.errors import NotFound, Overloaded, SessionGone
from onetrip.mcp_server.local import LocalBackend
from onetrip.mcp_server.schema import CreateSession
from onetrip.model import Result


async def result(backend, session_id, code):
    async with contextlib.aclosing(backend.run(session_id, code, None, live=False)) as pieces:
        found = [piece async for piece in pieces]
    assert isinstance(found[-1], Result)
    return found[-1]


@pytest.mark.slow
@pytest.mark.spec("MCP-11")
def test_a_session_too_many_ends_the_one_unused_for_longest_but_none_at_work():
    async def main():
        async with onetrip.alocal() as ot:
            backend = LocalBackend(ot, max_sessions=2)
            first = await backend.open(CreateSession(), by_itself=True)
            second = await backend.open(CreateSession(), by_itself=False)
            await result(backend, first, "x = 1")
            third = await backend.open(CreateSession(), by_itself=True)
            assert backend.sessions() == [third, first]
            with pytest.raises(SessionGone, match="unused for longest"):
                await result(backend, second, "1")
            with pytest.raises(NotFound):
                await backend.files("ses_none")

            begun, working = asyncio.Event(), []

            async def work(session_id):
                pieces = backend.run(session_id, "print(1)\nwhile True: pass", None, live=True)
                async with contextlib.aclosing(pieces):
                    async for _ in pieces:
                        working.append(session_id)
                        if len(working) == 2:
                            begun.set()

            runs = [asyncio.create_task(work(session_id)) for session_id in (first, third)]
            await begun.wait()
            with pytest.raises(Overloaded):
                await backend.open(CreateSession(), by_itself=True)
            with pytest.raises(Overloaded):
                await backend.fork(first, 1)
            for run in runs:
                run.cancel()
            await asyncio.wait(runs)
            assert (await result(backend, first, "x")).value == 1  # interrupted, not ended
            await backend.aclose()
            assert backend.sessions() == []

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-11")
def test_a_session_that_died_says_why_and_is_gone():
    async def main():
        async with onetrip.alocal() as ot:
            backend = LocalBackend(ot)
            session_id = await backend.open(CreateSession(memory_mb=128), by_itself=True)
            # More than half of the limit is held, so there is no checkpoint to go back to.
            held = await result(backend, session_id, "held = bytearray(b'x') * (90 << 20)")
            died = await result(backend, session_id, "import os; os._exit(3)")
            if died.session.survived:
                pytest.skip(f"not tested: this host made a checkpoint all the same: {held.session}")
            assert backend.sessions() == []
            with pytest.raises(SessionGone, match="ended"):
                await backend.undo(session_id, 1)
            await backend.aclose()

    within(main())
