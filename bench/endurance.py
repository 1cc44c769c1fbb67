"""Ten thousand one-shots and five hundred sessions with every violent end; afterwards the counts are what they were.

    make endurance            or: .venv/bin/python bench/endurance.py --one-shots 10000 --sessions 500

Prints a table of counts before and after, and of ends with the results they had. Exit status: 0 nothing was left and every result
was right, 1 otherwise. Compared twice: while the engine is open and idle (memory may have grown by a tenth), and, after it was closed,
with the state before it existed (nothing at all may be left).
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from counts import Counts, descendants, describe, differences, table
from violent_ends import PEACEFUL, ROOM, VIOLENT, End

import onetrip
from onetrip.embedded import AsyncLocal
from onetrip.errors import OnetripError, SessionGone
from onetrip.model import Limits, Result, Stdout

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
SETTLE_S = 90.0
HANG_S = 60.0  # longer than any limit of these programs: a run that takes this long hangs
AFTER_S = 0.15  # when the caller interrupts, cancels or leaves
SEED = 20261121


class Record:
    """What came of each kind of end."""

    def __init__(self) -> None:
        self.statuses: dict[str, collections.Counter[str]] = {}
        self.wrong: list[str] = []

    def note(self, end: End, status: str, detail: str = "") -> None:
        self.statuses.setdefault(end.name, collections.Counter())[status] += 1
        if end.statuses and status not in end.statuses:
            self.wrong.append(f"{end.name}: {status} {detail}"[:300])

    def fail(self, end: End, what: str) -> None:
        self.statuses.setdefault(end.name, collections.Counter())["WRONG"] += 1
        self.wrong.append(f"{end.name}: {what}"[:300])


def limits_of(end: End) -> Limits:
    return Limits() if end.default_limits else Limits(**{**ROOM, **end.limits})


async def one_shot(engine: AsyncLocal, end: End, record: Record) -> None:
    options: dict[str, Any] = {"limits": limits_of(end)}
    if end.default_limits:
        options["timeout_s"] = 20.0
    match end.caller:
        case "cancels":
            task = asyncio.ensure_future(engine.run(end.code, **options))
            await asyncio.sleep(AFTER_S)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            record.note(end, "cancelled" if task.cancelled() else "ended")
        case "leaves":
            events = engine.stream(end.code, **options)
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Stdout):
                        break
            record.note(end, "left")
        case "interrupts":  # a one-shot has no handle to interrupt: its own timeout does
            result = await engine.run(end.code, limits=Limits(**{**ROOM, **end.limits, "wall_s": AFTER_S}))
            record.note(end, "interrupted" if result.status == "limit_exceeded" else result.status)
        case "waits":
            note(record, end, await engine.run(end.code, **options))


def note(record: Record, end: End, result: Result) -> None:
    record.note(end, result.status, f"{result.error} {result.limit}")


async def session(engine: AsyncLocal, end: End, record: Record) -> None:
    """A session that works, ends that way in its second cell, and tells the truth about whether it lives."""
    async with engine.session(limits=limits_of(end)) as live:
        first = await live.run("x = 20")
        if first.status != "completed":
            record.fail(end, f"the first cell of a session: {first.status} {first.error} {first.limit}")
            return
        survived = await last_cell(live, end, record)
        try:
            result = await live.run("x + 22", timeout_s=20.0)
        except SessionGone:
            if survived:
                record.fail(end, "the session is gone although its result said that it survived")
        else:
            # What the cell did to its own interpreter (descriptors closed, builtins deleted) may break the next cell, but it has a result.
            if survived is False:
                record.fail(end, f"the session lives although its result said that it is gone: {result.status}")


async def last_cell(live: Any, end: End, record: Record) -> bool | None:
    """Whether the result says that the session survived; None where there is no result."""
    match end.caller:
        case "cancels":
            task = asyncio.ensure_future(live.run(end.code))
            await asyncio.sleep(AFTER_S)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            record.note(end, "cancelled" if task.cancelled() else "ended")
            return None
        case "leaves":
            events = live.stream(end.code)
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Stdout):
                        break
            record.note(end, "left")
            return None
        case "interrupts":
            task = asyncio.ensure_future(live.run(end.code))
            await asyncio.sleep(AFTER_S)
            await live.interrupt()
            result = await task
        case "waits":
            result = await live.run(end.code)
    note(record, end, result)
    return result.session.survived


Work = Callable[[AsyncLocal, End, Record], Awaitable[None]]


async def run_all(
    engine: AsyncLocal, work: Work, ends: list[End], in_flight: int, record: Record, progress: Callable[[], None]
) -> None:
    waiting = collections.deque(ends)

    async def take() -> None:
        while waiting:
            end = waiting.popleft()
            try:
                await asyncio.wait_for(work(engine, end, record), HANG_S)
            except TimeoutError:
                record.fail(end, f"no result within {HANG_S:.0f} s")
            except OnetripError as err:
                record.fail(end, f"{type(err).__name__}: {err}")
            progress()

    await asyncio.gather(*(take() for _ in range(in_flight)))


def mixture(count: int, peaceful_share: float, dice: random.Random) -> list[End]:
    """Every violent end equally often, or once if there is no room for more, with peaceful runs between them."""
    violent = max(round(count * (1 - peaceful_share)), min(len(VIOLENT), count))
    ends = [VIOLENT[i % len(VIOLENT)] for i in range(violent)] + [PEACEFUL[i % len(PEACEFUL)] for i in range(count - violent)]
    dice.shuffle(ends)
    return ends


async def at_rest(engine: AsyncLocal | None, take: Callable[[], Counts], before: Counts | None = None) -> Counts:
    """The counts once nothing moves any more and, if given, they are what they were; after `SETTLE_S` what they are.

    An idle pool keeps what the last rush made it keep, until it is asked for less; so it is asked, slowly.
    """
    give_up = time.monotonic() + SETTLE_S
    while True:
        if engine is not None:
            for _ in range(20):
                for end in PEACEFUL[:2]:
                    await engine.run(end.code)
                async with engine.session() as live:
                    await live.run(PEACEFUL[0].code)
                await asyncio.sleep(0.1)
        else:
            reap_orphans()
        now = await unmoving(take, give_up)
        if before is None or not differences(before, now, idle=engine is not None) or time.monotonic() > give_up:
            return now


async def unmoving(take: Callable[[], Counts], give_up: float) -> Counts:
    last, same = take(), 0
    while same < 5 and time.monotonic() < give_up:
        await asyncio.sleep(0.1)
        now = take()
        same, last = (same + 1, last) if now.judged() == last.judged() else (0, now)
    return last


async def fill_executor() -> None:
    """Have the event loop's executor start all the threads that it will ever have, instead of one more now and then."""
    loop = asyncio.get_running_loop()
    everybody = threading.Barrier(min(32, (os.cpu_count() or 1) + 4))  # ThreadPoolExecutor's default
    await asyncio.gather(*(loop.run_in_executor(None, everybody.wait, HANG_S) for _ in range(everybody.parties)))


def reap_orphans() -> None:
    """Collect what ended after it had come to us: anywhere else the system's first process does that."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def main(one_shots: int, sessions: int, in_flight: int) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whatever escapes from its parent comes to us, and is seen
    dice, record = random.Random(SEED), Record()
    done = 0

    def progress() -> None:
        nonlocal done
        done += 1
        if done % 500 == 0:
            print(f"{done} done, {len(record.wrong)} wrong", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        tempfile.tempdir = folder  # so that every temporary file in it is ours
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, time.sleep, 0)  # the executor's own first use
        nothing = Counts.take(folder)
        started = time.monotonic()
        async with onetrip.alocal() as engine:
            await engine.start()
            # Every zygote, thread and cache that a rush brings exists after a smaller one. A fifth, because the allocator needs about
            # two thousand runs until it holds as much as it ever will: measured 39 MB after 120, 42 to 51 MB from 1,000 to 24,000, trimmed.
            await fill_executor()
            for work, count in ((one_shot, one_shots), (session, sessions)):
                await run_all(engine, work, mixture(max(count // 5, 40), 0.7, dice), in_flight, Record(), lambda: None)
            idle = await at_rest(engine, lambda: Counts.take(folder))
            await run_all(engine, one_shot, mixture(one_shots, 0.7, dice), in_flight, record, progress)
            await run_all(engine, session, mixture(sessions, 0.2, dice), in_flight, record, progress)
            idle_after = await at_rest(engine, lambda: Counts.take(folder), idle)
        await asyncio.get_running_loop().shutdown_default_executor()  # its threads are the caller's, not the engine's
        closed = await at_rest(None, lambda: Counts.take(folder, exactly=True), nothing)
        leftovers = [describe(pid) for pid in descendants(os.getpid())]
    print(table(("before the engine", "idle", "idle afterwards", "engine closed"), (nothing, idle, idle_after, closed)))
    print()
    for name, statuses in sorted(record.statuses.items()):
        print(f"{name:32} {', '.join(f'{status} {count}' for status, count in statuses.most_common())}")
    left = [f"idle: {line}" for line in differences(idle, idle_after, idle=True)]
    left += [f"closed: {line}" for line in differences(nothing, closed, idle=False)]
    left += [f"closed: process {line}" for line in leftovers]
    for line in left + record.wrong[:40]:
        print(f"WRONG  {line}")
    verdict = "nothing was left" if not left else "SOMETHING WAS LEFT"
    print(
        f"\n{one_shots} one-shots and {sessions} sessions in {time.monotonic() - started:.0f} s: {verdict}; {len(record.wrong)} wrong results"
    )
    return 1 if left or record.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-shots", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--in-flight", type=int, default=12)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.one_shots, given.sessions, given.in_flight)))
