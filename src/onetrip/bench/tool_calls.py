"""What calls of tools from a sandbox cost, embedded: one after another, and a thousand in parallel."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Self

import onetrip
from onetrip import embedded
from onetrip.model import Limits

from .figures import Figure, of_samples
from .ours import check

PARALLEL: Final = 1000
TOOL_S: Final = 0.02
CALLS: Final = 100_000  # more than a session makes here
ONE_BY_ONE: Final = """import time
def measure(tool, count):
    took = []
    for n in range(count):
        began = time.perf_counter()
        tool(n=n)
        took.append((time.perf_counter() - began) * 1e3)
    return took
"""
BESIDE: Final = """import asyncio, time
began = time.perf_counter()
answers = await asyncio.gather(*(rest(n=n) for n in range({count})))
assert answers == list(range({count}))
(time.perf_counter() - began) * 1e3
"""


async def plus_one(n: int) -> int:
    """The next number."""
    return n + 1


def plus_one_blocking(n: int) -> int:
    """The next number, by a function that is called on a thread."""
    return n + 1


@onetrip.tool(concurrency=PARALLEL)
async def rest(n: int) -> int:
    """The number, after a while."""
    await asyncio.sleep(TOOL_S)
    return n


class ToolCalls:
    """A session whose programs call Python functions of this process. `async with` ends it. Times are the program's own clock."""

    def __init__(self, engine: embedded.AsyncLocal, environment: str) -> None:
        self._session = engine.session(
            environment=environment, tools=[plus_one, plus_one_blocking, rest], limits=Limits(tool_calls=CALLS), checkpoints=0
        )

    async def __aenter__(self) -> Self:
        try:
            await self._session.open()
            check(await self._session.run(ONE_BY_ONE))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with contextlib.suppress(onetrip.OnetripError):
            await self._session.aclose()

    async def one_by_one(self, tool: str, count: int) -> list[float]:
        """Milliseconds of each call."""
        result = await self._session.run(f"measure({tool}, {count})")
        check(result)
        return list(result.value)

    async def beside_each_other(self, count: int) -> float:
        """Milliseconds until all of so many calls, made at once, are answered."""
        result = await self._session.run(BESIDE.format(count=count))
        check(result)
        return float(result.value)


def figures(samples: Mapping[str, Sequence[float]], parallel: int) -> list[Figure | None]:
    return [
        of_samples("tool_call", "a tool is called, `async def`", "ms", samples["tool_call"], "one after another, from a sandbox to this process"),
        of_samples("tool_call_sync", "a tool is called, `def`", "ms", samples["tool_call_sync"], "the same; the function runs on a thread"),
        of_samples(
            "tool_parallel", f"{parallel:,} calls at once, {TOOL_S * 1e3:.0f} ms each", "ms", samples["tool_parallel"], "`asyncio.gather`"
        ),
    ]  # fmt: skip
