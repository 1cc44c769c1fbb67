"""What undo costs: warm cells with checkpoints and without, going back, and a cell that rewrites all that its session holds."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from onetrip import embedded
from onetrip.errors import PlatformError
from onetrip.model import Limits

from .figures import Figure, of_samples, ratio
from .ours import CELL, cells, check

IMPORTS: Final = "import numpy, pandas\nx = 0"
EXIT: Final = "import os\nos._exit(1)"
THINK_S: Final = 0.03  # between two cells: less than any model needs, and the time in which the checkpoint is to be made
BIG_THINK_S: Final = 0.3  # the same where hundreds of megabytes are forked
BIG: Final = Limits(memory_mb=4096)
MB: Final = 10**6


class Undo:
    """A session with undo and one without, with pandas imported and nothing else in them. `async with` ends them."""

    def __init__(self, engine: embedded.AsyncLocal, environment: str) -> None:
        self._engine, self._environment = engine, environment
        self._with = engine.session(environment=environment)
        self._without = engine.session(environment=environment, checkpoints=0)

    async def __aenter__(self) -> Self:
        try:
            for session in (self._with, self._without):
                await session.open()
                check(await session.run(IMPORTS))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for session in (self._with, self._without):
            await session.aclose()

    async def warm_cells(self, count: int, *, undo: bool, think_s: float) -> list[float]:
        return await cells(self._with if undo else self._without, count, think_s)

    async def undo(self) -> float:
        """Milliseconds of one `undo()` of a small cell."""
        check(await self._with.run(CELL))
        await asyncio.sleep(THINK_S)
        start = time.perf_counter()
        await self._with.undo()
        return (time.perf_counter() - start) * 1e3

    async def rollback(self) -> float:
        """Milliseconds from the call of a cell that ends its process to the result that says that the session went back."""
        await asyncio.sleep(THINK_S)
        start = time.perf_counter()
        result = await self._with.run(EXIT)
        taken = (time.perf_counter() - start) * 1e3
        if not result.session.rolled_back:
            raise PlatformError(f"a session did not go back: {result.session.note}")
        return taken


class Rewrite:
    """The same pair, each with an array of `size_mb` that a cell writes anew in place. `async with` ends them."""

    def __init__(self, engine: embedded.AsyncLocal, environment: str, size_mb: int) -> None:
        self._size_mb = size_mb
        self._sessions = {
            undo: engine.session(environment=environment, limits=BIG, checkpoints=int(undo)) for undo in (True, False)
        }

    async def __aenter__(self) -> Self:
        try:
            for session in self._sessions.values():
                await session.open()
                check(await session.run(f"import numpy\na = numpy.ones({self._size_mb * MB // 8})"))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for session in self._sessions.values():
            await session.aclose()

    async def rewrite(self, *, undo: bool) -> float:
        """Milliseconds of a cell that adds to each number. Raises PlatformError if there was no checkpoint that it could cost."""
        await asyncio.sleep(BIG_THINK_S)
        start = time.perf_counter()
        result = check(await self._sessions[undo].run("a += 1"))
        taken = (time.perf_counter() - start) * 1e3
        if result.session.checkpoint is not undo:
            raise PlatformError(f"the wrong session had a checkpoint: {result.session.note}")
        return taken


def figures(samples: Mapping[str, Sequence[float]], size_mb: int) -> list[Figure | None]:
    def of(key: str, title: str, note: str = "") -> Figure | None:
        return of_samples(key, title, "ms", samples[key], note)

    think_ms = f"{THINK_S * 1e3:.0f} ms to think"
    think = of("warm_think", f"warm cell `{CELL}`, no undo, {think_ms}", "before each cell")
    undo = of("warm_undo", f"warm cell `{CELL}`, undo, {think_ms}", "in which the checkpoint is made")
    plain = of("rewrite", f"a cell rewrites {size_mb} MB, no undo", "numpy, in place")
    copied = of("rewrite_undo", f"a cell rewrites {size_mb} MB, undo", "the same; `checkpoints=1`; each page is copied")
    return [
        think,
        undo,
        ratio("undo_ratio", f"warm cell, undo : no undo, {think_ms}", undo, think),
        of("warm_undo_back", f"warm cell `{CELL}`, undo, back to back", "making the checkpoint is in the path"),
        of("undo", "`undo()` of a small cell", "pandas imported"),
        of("rollback", "`os._exit(1)`, and the session went back", "pandas imported; from the call to the result"),
        plain,
        copied,
        ratio("rewrite_ratio", f"a cell rewrites {size_mb} MB, undo : no undo", copied, plain),
    ]
