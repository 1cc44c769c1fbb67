"""Calls of server tools that programs make in the node: answered by the toolbox, each once, also when a server died in between.

A tool that changes something is entered in the database before it is called, and its answer when it is there. What the server before us was
doing when it died is asked of us again: an answer that is there is given; a call that was begun and has none may have been made or not, and
the program is told so instead of making it twice. Tools that change nothing are simply called again.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from onetrip.errors import OnetripError, Unavailable
from onetrip.model import Tool, ToolAnswer, ToolFailure, ToolRequest
from onetrip.node import messages
from onetrip.service.nodes import Nodes
from onetrip.service.observer import Observer
from onetrip.service.owned import Owned
from onetrip.store import Store
from onetrip.tools import Toolbox

_UNKNOWN: Final = "this call was begun before, and the server died or whoever asked went away before it had an answer, so it may have been made or not. It is not made again. Look what is there before you go on."
_NOT_MADE: Final = "the call could not be entered in the server's database, so it was not made"
_encode: Final = msgspec.json.Encoder().encode


class ToolCalls:
    """`toolbox` None: there are no server tools."""

    def __init__(self, toolbox: Toolbox | None, store: Store, nodes: Nodes, owned: Owned, observer: Observer) -> None:
        self._toolbox, self._store, self._nodes, self._owned, self._observer = toolbox, store, nodes, owned, observer
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._made: dict[tuple[str, str], asyncio.Task[ToolAnswer]] = {}  # for batches

    def tools(self, *allowed: Sequence[str] | None) -> tuple[Tool, ...]:
        """Those that every one of these lists of patterns allows; None allows all."""
        box = self._toolbox
        for patterns in allowed:
            if box is not None and patterns is not None:
                box = box.allowed(patterns)
        return () if box is None else box.tools

    def refused(self, run_id: str, error: OnetripError) -> None:
        """Answers to a run that were not even understood."""
        self._observer.answers_refused(run_id, error)

    def adopt(self, described: messages.Described) -> None:
        """Answer what the server before us was asked."""
        for request in described.calls:
            self._begin(request)

    def heard(self, message: messages.Asked | messages.Unasked) -> None:
        """From the node."""
        match message:
            case messages.Asked(request):
                self._begin(request)
            case messages.Unasked(run_id, call_id):
                if (task := self._running.get((run_id, call_id))) is not None:
                    task.cancel()

    async def call(self, request: ToolRequest) -> ToolAnswer:
        """One that a batch makes. Cancelling it cancels the tool; who asks for the same call meanwhile gets the same answer."""
        key = request.run_id, request.id
        if (making := self._made.get(key)) is None:
            making = self._made[key] = asyncio.create_task(self._observed(request))
            making.add_done_callback(lambda _: self._made.pop(key, None) and None)
            return await making
        await asyncio.wait((making,))
        return _unknown(request) if making.cancelled() else making.result()

    async def _observed(self, request: ToolRequest) -> ToolAnswer:
        began = time.monotonic()
        answer = await self._answer(request)
        self._observer.tool_called(request, answer, time.monotonic() - began)
        return answer

    def _begin(self, request: ToolRequest) -> None:
        key = request.run_id, request.id
        if key not in self._running:
            task = self._running[key] = self._owned.spawn(self._serve(request))
            task.add_done_callback(lambda _: self._running.pop(key, None) and None)

    async def _serve(self, request: ToolRequest) -> None:
        answer = await self._observed(request)
        try:
            self._nodes.client.told(request.run_id, answer)
        except OnetripError:
            return  # the node is gone, and with it whoever waited

    async def _answer(self, request: ToolRequest) -> ToolAnswer:
        toolbox = self._toolbox
        tool = next((tool for tool in self.tools() if tool.name == request.tool), None)
        if toolbox is None or tool is None:
            return ToolAnswer(
                request.id, error=ToolFailure(f"this server has no tool {request.tool!r}", "denied", code="unknown_tool")
            )
        if tool.effect != "write":
            return await toolbox.ask(request)
        try:
            known = self._store.calls.begin(request.run_id, request.id)
        except Unavailable as err:
            return ToolAnswer(request.id, error=ToolFailure(f"{_NOT_MADE}: {err}", retryable=True, code="not_made"))
        if isinstance(known, bytes):
            return msgspec.json.decode(known, type=ToolAnswer)
        if known == "begun":
            return _unknown(request)
        answer = await toolbox.ask(request)
        try:
            self._store.calls.end(request.run_id, request.id, _encode(answer))
        except Unavailable as err:  # it was made, and the program hears so; only the next server would not know
            self._observer.not_saved(err)
        return answer


def _unknown(request: ToolRequest) -> ToolAnswer:
    return ToolAnswer(request.id, error=ToolFailure(_UNKNOWN, code="outcome_unknown"))
