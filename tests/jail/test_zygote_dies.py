"""A zygote that dies, or a sandbox of it before it was ready: what lived in it is lost and says so, and nobody else notices."""

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path

import pytest

import onetrip
from onetrip import environments
from onetrip.model import Limits, Started, Stdout
from onetrip.tiers.base import LaunchSpec, SandboxDied
from onetrip.tiers.jail import JailTier
from onetrip.worker import Worker


def parent_of(pid: int) -> int:
    """0 for one that has ended meanwhile."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return 0


def zygote_below(tree: set[int]) -> int:
    """The one of this process's engine, which has started nothing else."""
    (launcher,) = (pid for pid in tree if parent_of(pid) == os.getpid())
    return next(pid for pid in tree if parent_of(pid) == launcher)


def alive(tree: set[int]) -> list[int]:
    found = []
    for pid in tree:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


@pytest.mark.spec("END-02", "ISO-12")
def test_sandboxes_of_a_zygote_that_was_killed_are_lost_and_the_next_run_works(descendants):
    others = descendants(os.getpid())  # engines of other tests in this process

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            await ot.run("1")
            async with ot.session() as session:
                zygote = zygote_below(descendants(os.getpid()) - others)
                events = [
                    event
                    async for event in killing(session.stream("print('on', flush=True)\nimport time; time.sleep(60)"), zygote)
                ]
                assert isinstance(events[0], Started)
                result = events[-1].result
                assert (result.status, result.error.type, result.session.survived) == ("lost", "SandboxLost", False)
                with pytest.raises(onetrip.SessionGone):
                    await session.run("1")
            assert (await ot.run("1 + 1")).text == "2"

    asyncio.run(main())


async def killing(events, pid):
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Stdout):
                os.kill(pid, signal.SIGKILL)
            yield event


@pytest.mark.spec("END-02")
def test_a_session_is_lost_with_its_zygote_though_the_news_of_that_comes_late(descendants):
    others = descendants(os.getpid())

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            await session.run("1")  # the process that runs the next cell is a fork of this one's, which is kept
            (tier, _) = next(iter(ot._engine._tiers.values()))
            handle = await tier.zygote("default")
            asyncio.get_running_loop().remove_reader(handle._connection.fileno())  # as if an init held it open for a moment
            zygote = zygote_below(descendants(os.getpid()) - others)
            events = [e async for e in killing(session.stream("print('on', flush=True)\nimport time; time.sleep(60)"), zygote)]
            result = events[-1].result
            assert (result.status, result.error.type, result.session.survived) == ("lost", "SandboxLost", False)

    asyncio.run(main())


@pytest.mark.spec("END-02")
def test_an_idle_session_of_a_zygote_that_was_killed_says_so(descendants, wait_until):
    others = descendants(os.getpid())  # engines of other tests in this process
    with onetrip.local(warm=0) as ot, ot.session() as session:
        session.run("1")
        tree = descendants(os.getpid()) - others
        os.kill(zygote_below(tree), signal.SIGKILL)
        assert wait_until(lambda: alive(tree) == [])
        with pytest.raises(onetrip.SessionGone):
            session.run("1")
        assert ot.run("1 + 1").text == "2"


@pytest.mark.spec("CRS-03")
@pytest.mark.parametrize("asked", ["session", "one-shot"])
def test_a_zygote_that_is_killed_while_it_launches_costs_nothing(asked, descendants):
    others = descendants(os.getpid())

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            await ot.run("1")
            zygote = zygote_below(descendants(os.getpid()) - others)
            os.kill(zygote, signal.SIGSTOP)  # so that it is killed in the middle for certain
            asking = asyncio.create_task(first_answer(ot, asked))
            (tier, _) = next(iter(ot._engine._tiers.values()))  # nothing else says that the request has been sent
            handle = await tier.zygote("default")
            while not handle._launches:  # noqa: ASYNC110 -- in a step of the other task
                await asyncio.sleep(0)
            os.kill(zygote, signal.SIGKILL)
            assert await asking == "2"

    asyncio.run(main())


async def first_answer(ot, asked: str) -> str | None:
    if asked == "one-shot":
        return (await ot.run("1 + len(open('f').read())", files={"f": "1"})).text
    async with ot.session(files={"f": "1"}) as session:
        return (await session.run("1 + len(open('f').read())")).text


@pytest.mark.spec("CRS-03")
@pytest.mark.parametrize("asked", ["session", "one-shot"])
@pytest.mark.parametrize("who", ["the zygote", "the guest"])
def test_a_sandbox_that_dies_before_the_first_line_is_made_again(asked, who, descendants, monkeypatch):
    others = descendants(os.getpid())
    greet, greeted = Worker.greet, []

    def too_late(worker, *arguments, **options):
        """It was ready, and is gone now."""
        greeted.append(worker)
        if len(greeted) == 1:
            if who == "the zygote":
                os.kill(zygote_below(descendants(os.getpid()) - others), signal.SIGKILL)
            else:
                signal.pidfd_send_signal(worker.sandbox.room.runner, signal.SIGKILL)
            select.select([worker.sandbox.room.runner], [], [], 10)
        greet(worker, *arguments, **options)

    monkeypatch.setattr(Worker, "greet", too_late)

    async def main() -> None:
        async with onetrip.alocal(warm=1) as ot:
            assert await first_answer(ot, asked) == "2"
            assert len(greeted) == 2

    asyncio.run(main())


def test_a_sandbox_that_dies_each_time_is_refused_and_nothing_is_left(descendants, monkeypatch, census):
    before = census.take()
    greet, greeted = Worker.greet, []

    def too_late(worker, *arguments, **options):
        greeted.append(worker)
        signal.pidfd_send_signal(worker.sandbox.room.runner, signal.SIGKILL)
        select.select([worker.sandbox.room.runner], [], [], 10)
        greet(worker, *arguments, **options)

    monkeypatch.setattr(Worker, "greet", too_late)

    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            for asked in ("session", "one-shot"):
                with pytest.raises(SandboxDied):
                    await first_answer(ot, asked)
            assert len(greeted) == 4

    asyncio.run(main())
    before.wait_for_it_again()


def test_a_zygote_that_dies_as_it_answers_is_told_to_the_sandbox(monkeypatch):
    """Both are there to be read at once: the answer and the end of the connection, so the sandbox is not yet known when that is told."""

    async def main() -> None:
        tier = JailTier(environments.find, level="strict")
        handle = await tier.zygote("default")
        await handle.wait_node("bare")
        answered = handle._answered

        def and_dies(message, fds):
            answered(message, fds)
            handle._lose()

        monkeypatch.setattr(handle, "_answered", and_dies)
        sandbox = await tier.launch(LaunchSpec(id="one", environment="default", node="bare", limits=Limits()))
        told = []
        sandbox.on_exit(told.append)
        assert [how.lost for how in told] == ["the zygote that it was forked from died"]
        await sandbox.aclose()
        await tier.aclose()

    asyncio.run(main())
