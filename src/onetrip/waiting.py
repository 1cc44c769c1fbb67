"""Runs that wait for their caller, as the caller has them: their results so far, and the rest of their events."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

from onetrip.errors import BadRequest, Conflict, PlatformError
from onetrip.model import Done, Event, Result, ToolAnswer, ToolFailure
from onetrip.seam import Engine

Answers = Mapping[str, Any]  # id of a call → what it gives: a JSON value, or a `ToolFailure` or exception
_ANSWER_FIRST: Final = "Answer them with `answer`, or `interrupt` it; then the session takes the next cell."


class Waiting:
    """Runs whose result is `waiting`, with the rest of their events."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._events: dict[str, tuple[str | None, AsyncGenerator[Event]]] = {}  # run → its session, and its events

    async def result(self, events: AsyncGenerator[Event]) -> Result:
        """The next result among these events."""
        keep = False
        try:
            async for event in events:
                if isinstance(event, Done):
                    if keep := event.result.status == "waiting":
                        self._events[event.result.id] = event.result.session_id, events
                    return event.result
        finally:
            if not keep:
                await events.aclose()
        raise PlatformError("the run ended without a result")

    async def answer(self, run: Result | str, answers: Answers) -> Result:
        """See `AsyncLocal.answer`."""
        run_id = run.id if isinstance(run, Result) else run
        if answers:
            await self._engine.answer(run_id, [_answer(call_id, given) for call_id, given in answers.items()])
        _, events = self._events.pop(run_id, (None, None))
        return await self.result(events or self._engine.follow(run_id))

    def check(self, session_id: str) -> None:
        """Raises Conflict while a run of this session waits: the next cell would wait for it."""
        for run_id, (session, _) in self._events.items():
            if session == session_id:
                raise Conflict(f"the session waits: its run {run_id} has calls without an answer", hint=_ANSWER_FIRST)

    async def give_up(self, session_id: str) -> None:
        """Leave the runs of this session that wait; embedded, they end."""
        for run_id in [run_id for run_id, (session, _) in self._events.items() if session == session_id]:
            await self._events.pop(run_id)[1].aclose()

    async def aclose(self) -> None:
        while self._events:
            await self._events.popitem()[1][1].aclose()


def _answer(call_id: str, given: object) -> ToolAnswer:
    if isinstance(given, ToolFailure):
        return ToolAnswer(call_id, error=given)
    if isinstance(given, BaseException):
        kind = "denied" if isinstance(given, PermissionError) else "timeout" if isinstance(given, TimeoutError) else "error"
        return ToolAnswer(call_id, error=ToolFailure(f"{type(given).__name__}: {given}", kind))
    try:
        return ToolAnswer(call_id, msgspec.json.encode(given))
    except (TypeError, ValueError, RecursionError) as err:
        raise BadRequest(f"answers: the value of {call_id!r} is not JSON: {err}", field="answers") from err
