"""Calls of server tools on their way: asked of whichever server is connected, answered by it or by the next one."""

import asyncio
from collections.abc import Callable

from onetrip.model import ToolAnswer, ToolRequest
from onetrip.node import messages


class Asking:
    """`ask` waits for the answer, however many servers come and go; the node's lease ends it, or the run."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[ToolRequest, asyncio.Future[ToolAnswer]]] = {}
        self._send: Callable[[messages.Asked | messages.Unasked], None] | None = None

    def connected(self, send: Callable[[messages.Asked | messages.Unasked], None]) -> None:
        """A server is there. It learns from `held` what was asked before."""
        self._send = send

    def disconnected(self) -> None:
        self._send = None

    async def ask(self, request: ToolRequest) -> ToolAnswer:
        key = request.run_id, request.id
        future: asyncio.Future[ToolAnswer] = asyncio.get_running_loop().create_future()
        self._open[key] = request, future
        try:
            if self._send is not None:
                self._send(messages.Asked(request))
            return await future
        except asyncio.CancelledError:
            if self._send is not None:
                self._send(messages.Unasked(*key))
            raise
        finally:
            del self._open[key]

    def told(self, run_id: str, answer: ToolAnswer) -> None:
        """A server's answer; one that nobody waits for any more is dropped."""
        found = self._open.get((run_id, answer.id))
        if found is not None and not found[1].done():
            found[1].set_result(answer)

    def held(self) -> tuple[ToolRequest, ...]:
        return tuple(request for request, _ in self._open.values())
