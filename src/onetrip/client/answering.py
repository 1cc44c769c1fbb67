"""Calls of the caller's own functions, made by a program on a server: answered here, as they come, and sent back."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import msgspec

from onetrip.model import PendingCall, Result, Tool, ToolAnswer, ToolCall, ToolRequest
from onetrip.seam import Ask

Send = Callable[[str, Sequence[ToolAnswer]], Awaitable[None]]


class Functions:
    """`ask` answers these tools. Of one run after the other, or of many at once."""

    def __init__(self, tools: Collection[Tool], ask: Ask) -> None:
        self._names = {tool.name for tool in tools}
        self._at_once = {tool.name for tool in tools if tool.approval == "never"}
        self._ask = ask

    def begin_early(self, call: ToolCall, run_id: str, session_id: str | None, running: "Running") -> None:
        """Begin a call as soon as it is told of, while the program goes on; one that needs a permission, or is told in short, waits its turn."""
        if call.tool in self._at_once and call.status == "pending" and call.arguments is not None:
            running.run_id = run_id
            self._begin(call, run_id, session_id, running)

    def begin(self, result: Result, running: "Running") -> Result | None:
        """Begin those calls of a run that waits which are ours. Returns what is left for the caller to answer, if anything."""
        running.run_id = result.id
        mine = [call for call in result.pending if call.tool in self._names and call.kind == "call"]
        for call in mine:
            self._begin(call, result.id, result.session_id, running)
        rest = tuple(call for call in result.pending if call not in mine)
        return msgspec.structs.replace(result, pending=rest) if rest else None

    def _begin(self, call: ToolCall | PendingCall, run_id: str, session_id: str | None, running: "Running") -> None:
        if call.id not in running.begun:
            running.begun.add(call.id)
            request = ToolRequest(call.id, call.tool, msgspec.json.encode(call.arguments), run_id, session_id)
            running.tasks.add(asyncio.create_task(_answered(self._ask, request)))


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
