"""Calls of the caller's own functions, made by a program on a server: answered here, as they come, and sent back."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import msgspec

from onetrip.model import Result, ToolAnswer, ToolRequest
from onetrip.seam import Ask

Send = Callable[[str, Sequence[ToolAnswer]], Awaitable[None]]


class Functions:
    """`ask` answers the tools of these names. Of one run after the other, or of many at once."""

    def __init__(self, names: Collection[str], ask: Ask) -> None:
        self.names, self._ask = frozenset(names), ask

    def begin(self, result: Result, running: "Running") -> Result | None:
        """Begin those calls of a run that waits which are ours. Returns what is left for the caller to answer, if anything."""
        running.run_id = result.id
        mine = [call for call in result.pending if call.tool in self.names and call.kind == "call"]
        for call in mine:
            if call.id not in running.begun:
                running.begun.add(call.id)
                request = ToolRequest(call.id, call.tool, msgspec.json.encode(call.arguments), result.id, result.session_id)
                running.tasks.add(asyncio.create_task(_answered(self._ask, request)))
        rest = tuple(call for call in result.pending if call not in mine)
        return msgspec.structs.replace(result, pending=rest) if rest else None


class Running:
    """The calls of one run that are on their way. `aclose` in any case."""

    def __init__(self) -> None:
        self.run_id = ""
        self.begun: set[str] = set()
        self.tasks: set[asyncio.Task[ToolAnswer]] = set()

    async def before(self, coming: asyncio.Future[Any]) -> list[ToolAnswer]:
        """Wait for the first answers, or for `coming`; then there may be none."""
        await asyncio.wait({*self.tasks, coming}, return_when=asyncio.FIRST_COMPLETED)
        done = {task for task in self.tasks if task.done()}
        self.tasks -= done
        return [task.result() for task in done]

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)


async def _answered(ask: Ask, request: ToolRequest) -> ToolAnswer:
    return await ask(request)
