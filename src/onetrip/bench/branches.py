"""What branches of a live session cost: the first result of one, of a hundred, and the memory of one that nobody uses."""

import asyncio
import os
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Self

from onetrip import embedded

from . import proctree
from .figures import Figure, of_samples
from .ours import BARE, SETTLE_S, check
from .undo import MB, THINK_S

FRAME_MB: Final = 100
FRAME: Final = f"import numpy, pandas\nframe = pandas.DataFrame(numpy.ones(({FRAME_MB * MB // 80}, 10)))"
READ: Final = "float(frame.iat[-1, -1])"
PANDAS: Final = "import numpy, pandas"


class Branches:
    """Two sessions to branch: one with pandas imported, and one that also holds a frame of `FRAME_MB`. `async with` ends them."""

    def __init__(self, engine: embedded.AsyncLocal, environment: str, helpers: Collection[int]) -> None:
        self._helpers = helpers
        self._pandas = engine.session(environment=environment)
        self._frame = engine.session(environment=environment)

    async def __aenter__(self) -> Self:
        try:
            for session, code in ((self._pandas, PANDAS), (self._frame, FRAME)):
                await session.open()
                check(await session.run(code))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for session in (self._pandas, self._frame):
            await session.aclose()

    async def first_result(self) -> float:
        """Milliseconds from the call of `fork()` to the result of the branch's first cell, which reads the frame."""
        await asyncio.sleep(THINK_S)
        start = time.perf_counter()
        branch = await self._frame.fork()
        try:
            check(await branch.run(READ))
            return (time.perf_counter() - start) * 1e3
        finally:
            await branch.aclose()

    async def all_results(self, count: int) -> float:
        """Milliseconds from the call of `fork(count)` to the last result, when all branches run a cell at the same time."""
        await asyncio.sleep(SETTLE_S)
        start = time.perf_counter()
        branches = await self._pandas.fork(count=count)
        try:
            for result in await asyncio.gather(*(branch.run(BARE) for branch in branches)):
                check(result)
            return (time.perf_counter() - start) * 1e3
        finally:
            await asyncio.gather(*(branch.aclose() for branch in branches))

    async def memory(self, count: int) -> tuple[float, float]:
        """Private memory, and page tables, of a branch that has run nothing: the mean of `count`, in MB.

        All of them live at the same time. Raises OSError where we may not look into our own sandboxes.
        """
        await asyncio.sleep(SETTLE_S)
        before = proctree.pids(os.getpid(), without=self._helpers)
        branches = await self._pandas.fork(count=count)
        try:
            await asyncio.sleep(SETTLE_S)
            private = [proctree.private_bytes(pid) for pid in proctree.pids(os.getpid(), without=self._helpers) - before]
        finally:
            await asyncio.gather(*(branch.aclose() for branch in branches))
        return sum(own for own, _ in private) / count / 1e6, sum(tables for _, tables in private) / count / 1e6


def figures(samples: Mapping[str, Sequence[float]], count: int, idle: int) -> list[Figure | None]:
    memory = samples["branch_memory"]
    tables = statistics.fmean(samples["branch_tables"]) if samples["branch_tables"] else 0.0
    return [
        of_samples(
            "fork_frame", "fork a session, first result of the branch", "ms", samples["fork_frame"],
            f"pandas imported, a frame of {FRAME_MB} MB, which the cell reads",
        ),
        of_samples(
            "fork_many", f"{count} branches of a session, last of all first results", "ms", samples["fork_many"],
            f"pandas imported; all run `{BARE}` at once",
        ),
        Figure(
            "branch_memory", "private memory of a branch that has run nothing", "MB", statistics.fmean(memory), len(memory) * idle, None,
            f"mean of n; pandas imported; page tables besides: {tables:.2f} MB",
        ) if memory else None,
    ]  # fmt: skip
