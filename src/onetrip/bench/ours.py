"""Onetrip's own side of every measurement: one-shots, warm cells, output, memory, CPU of the whole tree."""

import asyncio
import os
import time
from collections.abc import Collection
from typing import Final, Self

from onetrip import embedded
from onetrip.errors import PlatformError
from onetrip.model import Limits, Result

from . import proctree

BARE: Final = "1 + 1"
PANDAS: Final = "import numpy, pandas\n1 + 1"
CELL: Final = "x += 1"
PRINT_BYTES: Final = 10_000_000
PRINT_ONCE: Final = f"print('x' * {PRINT_BYTES - 1})"
PRINT_LINES: Final = f"line = 'x' * 99\nfor _ in range({PRINT_BYTES // 100}):\n    print(line)"
GAP_S: Final = 0.03  # between one-shots “from the pool”: about what a caller needs at least to ask for the next
SETTLE_S: Final = 0.1  # until the last one-shot is cleaned up and the pool is full again
WARM_S: Final = 60.0  # for the zygotes to import everything
QUIET_S: Final = 0.4  # a time in which an importing zygote would be seen
WARM_MS: Final = 50.0  # a one-shot above this came from a zygote that was still importing
ROOMY: Final = Limits(output_mb=64)


class Ours:
    """Three engines: asynchronous and synchronous with a warm pool, and one whose pool is empty. `async with` ends them."""

    def __init__(self, environment: str, helpers: Collection[int]) -> None:
        self._environment, self._helpers = environment, helpers
        self.asynchronous = embedded.alocal()
        self.empty = embedded.alocal(warm=0)
        self.synchronous = embedded.local()

    async def __aenter__(self) -> Self:
        try:
            for engine in (self.asynchronous, self.empty):
                await engine.start(self._environment)
                await self._warm_up(engine)
            await asyncio.to_thread(self.synchronous.start, self._environment)
            for _ in range(20):
                self.synchronous.run(PANDAS, environment=self._environment)
            await self._wait_quiet()
            self._session = await self.asynchronous.session(environment=self._environment, limits=ROOMY, checkpoints=0)
            self._plain_session = await asyncio.to_thread(self.synchronous.session, environment=self._environment, checkpoints=0)
            await self._session.run("import numpy, pandas\nx = 0")
            self._plain_session.run("x = 0")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.asynchronous.aclose()
        await self.empty.aclose()
        await asyncio.to_thread(self.synchronous.close)

    async def _warm_up(self, engine: embedded.AsyncLocal) -> None:
        """Until ten one-shots in a row were fast: then every zygote has its imports. Raises PlatformError."""
        give_up, row = time.monotonic() + WARM_S, 0
        while row < 10:
            result = await _completed(engine, PANDAS, self._environment)
            row = row + 1 if result.usage.wall_ms < WARM_MS else 0
            if time.monotonic() > give_up:
                raise PlatformError(f"one-shots still take over {WARM_MS:.0f} ms after {WARM_S:.0f} s")

    async def _wait_quiet(self) -> None:
        """Until no zygote imports any more, also not one that these programs do not need. After `WARM_S` it goes on all the same."""
        give_up = time.monotonic() + WARM_S
        before = proctree.cpu_s(os.getpid(), without=self._helpers)
        while time.monotonic() < give_up:
            await asyncio.sleep(QUIET_S)
            now = proctree.cpu_s(os.getpid(), without=self._helpers)
            if now - before <= QUIET_S / 20:
                return
            before = now

    # ------------------------------------------------------------------ one-shots

    async def oneshots(self, engine: embedded.AsyncLocal, code: str, count: int, gap_s: float = GAP_S) -> list[float]:
        """Milliseconds from the call to the result, one at a time with `gap_s` before each."""
        taken = list[float]()
        for _ in range(count):
            await asyncio.sleep(gap_s)
            start = time.perf_counter()
            await _completed(engine, code, self._environment)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken

    async def oneshots_cpu_ms(self, code: str, count: int) -> float:
        """CPU milliseconds of our process and the whole tree below it for `count` one-shots, one right after the other.

        Without gaps, because the bare forks have none: after a rest of 30 ms both cost more.
        """
        await asyncio.sleep(SETTLE_S)
        before = proctree.cpu_s(os.getpid(), without=self._helpers)
        await self.oneshots(self.asynchronous, code, count, gap_s=0)
        await asyncio.sleep(SETTLE_S)
        return (proctree.cpu_s(os.getpid(), without=self._helpers) - before) * 1e3

    def plain_oneshots(self, code: str, count: int) -> list[float]:
        taken = list[float]()
        for _ in range(count):
            time.sleep(GAP_S)
            start = time.perf_counter()
            result = self.synchronous.run(code, environment=self._environment)
            taken.append((time.perf_counter() - start) * 1e3)
            check(result)
        return taken

    async def oneshot_rate(self, seconds: float, in_flight: int) -> float:
        """One-shots per second with so many callers, each asking again as soon as it has its result."""
        end = time.perf_counter() + seconds

        async def call_on() -> int:
            count = 0
            while time.perf_counter() < end:
                await _completed(self.asynchronous, PANDAS, self._environment)
                count += 1
            return count

        start = time.perf_counter()
        counts = await asyncio.gather(*(call_on() for _ in range(in_flight)))
        taken = time.perf_counter() - start
        await asyncio.sleep(SETTLE_S)
        return sum(counts) / taken

    # ------------------------------------------------------------------ sessions

    async def warm_cells(self, count: int) -> list[float]:
        return await cells(self._session, count)

    def plain_warm_cells(self, count: int) -> list[float]:
        taken = list[float]()
        for _ in range(count):
            start = time.perf_counter()
            result = self._plain_session.run(CELL)
            taken.append((time.perf_counter() - start) * 1e3)
            check(result)
        return taken

    async def session_start(self, checkpoints: int) -> float:
        """Milliseconds to open a session and have its first cell's result."""
        await asyncio.sleep(GAP_S)
        start = time.perf_counter()
        async with self.asynchronous.session(environment=self._environment, checkpoints=checkpoints) as session:
            check(await session.run(BARE))
            return (time.perf_counter() - start) * 1e3

    async def print_mb_s(self, code: str) -> float:
        """MB per second of a cell that prints `PRINT_BYTES`, from the call to the result that holds them."""
        start = time.perf_counter()
        result = await self._session.run(code)
        taken = time.perf_counter() - start
        check(result)
        if len(result.stdout) != PRINT_BYTES:
            raise PlatformError(f"{len(result.stdout)} of {PRINT_BYTES} bytes arrived")
        return PRINT_BYTES / 1e6 / taken

    async def idle_memory(self, count: int, checkpoints: int) -> tuple[list[float], list[float]]:
        """Private memory, and page tables, of `count` idle sessions that have imported pandas, in MB each (init, runner, checkpoints).

        All of them live at the same time. Raises OSError where we may not look into our own sandboxes.
        """
        memory, tables, sessions = list[float](), list[float](), list[embedded.AsyncSession]()
        processes = list[set[int]]()
        try:
            for _ in range(count):
                await asyncio.sleep(SETTLE_S)  # what an earlier one left to clean up is not this one's
                before = proctree.pids(os.getpid(), without=self._helpers)
                session = await self.empty.session(environment=self._environment, checkpoints=checkpoints)
                sessions.append(session)
                check(await session.run("import pandas"))
                processes.append(proctree.pids(os.getpid(), without=self._helpers) - before)
            await asyncio.sleep(SETTLE_S)  # the last one's checkpoint, if it makes one
            for pids in processes:
                family = {pid for first in pids for pid in proctree.pids(first)}  # with what was forked since
                private = [proctree.private_bytes(pid) for pid in family]
                memory.append(sum(own for own, _ in private) / 1e6)
                tables.append(sum(table for _, table in private) / 1e6)
        finally:
            for session in sessions:
                await session.aclose()
        return memory, tables


async def _completed(engine: embedded.AsyncLocal, code: str, environment: str) -> Result:
    return check(await engine.run(code, environment=environment))


async def cells(session: embedded.AsyncSession, count: int, think_s: float = 0) -> list[float]:
    """Milliseconds of each of `count` warm cells, with so much time before each."""
    taken = list[float]()
    for _ in range(count):
        if think_s:
            await asyncio.sleep(think_s)
        start = time.perf_counter()
        result = await session.run(CELL)
        taken.append((time.perf_counter() - start) * 1e3)
        check(result)
    return taken


def check(result: Result) -> Result:
    """A failed program is fast, and no measurement."""
    if result.status != "completed":
        raise PlatformError(f"a measured program ended with {result.status}: {result.error}")
    return result
