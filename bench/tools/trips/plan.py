"""The calls of a task, as a model would have to emit them: one after another, and in the best legal batches."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from trips import place
from trips.recorder import Call, Recorder
from trips.sets import SETS
from trips.task import Task


@dataclass(frozen=True, slots=True)
class Plan:
    """`calls`: in the order of the sequential program. `batches`: the same calls; all that can be made at once are in one batch."""

    calls: list[Call]
    batches: list[list[Call]]
    answers: tuple[Any, Any]  # of the sequential and of the gathered program
    states: tuple[object, object]  # what they left behind in the data


def make(task: Task) -> Plan:
    """Run both programs of a task in this process, without a sandbox, under a clock that jumps.

    Each call takes one second of that clock, so a call that began at second 2 could not begin before the answers of second 1
    were there: batch 2.
    """
    kind = SETS[task.space]

    async def sequential(_loop: place.VirtualLoop) -> tuple[Recorder, Any]:
        recorder = Recorder(kind, _nothing, float)
        return recorder, await place.run_plainly(task.sequential, recorder.tools())

    async def gathered(loop: place.VirtualLoop) -> tuple[Recorder, Any]:
        recorder = Recorder(kind, lambda: asyncio.sleep(1), loop.time)
        return recorder, await place.run_plainly(task.gathered, recorder.tools())

    one, first = place.run_virtually(sequential)
    other, second = place.run_virtually(gathered)
    batches: dict[int, list[Call]] = {}
    for call, began in zip(other.calls, other.began, strict=True):
        batches.setdefault(round(began), []).append(call)
    return Plan(
        one.calls,
        [batches[number] for number in sorted(batches)],
        (_json(first), _json(second)),
        (one.set.state, other.set.state),
    )


def unexplained(task: Task, batches: Sequence[Sequence[Call]]) -> list[str]:
    """Calls that wait longer than their arguments would make them, and no reason is given: the batches were not the best.

    An argument is known as soon as its text is part of the question or of an answer; one that is computed is never found there,
    and nothing can be said about its call.
    """
    known: list[str] = [task.question]  # what can be read before each batch
    wrong: list[str] = []
    for number, batch in enumerate(batches):
        for call in batch:
            texts = [str(leaf) for leaf in _leaves(call.arguments)]
            first = next((place for place in range(len(known)) if all(_in(text, known[: place + 1]) for text in texts)), number)
            if first < number and call.tool not in task.waits:
                wrong.append(f"{call.tool}({json.dumps(call.arguments)}) is in batch {number + 1}, but could be in {first + 1}")
        known.append(json.dumps([call.value for call in batch], ensure_ascii=False))
    return wrong


async def _nothing() -> None:
    """What a tool does that takes no time."""


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _in(text: str, known: Sequence[str]) -> bool:
    return any(text in one for one in known)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        inside = cast("dict[str, Any] | list[Any]", value)
        return [leaf for one in (inside.values() if isinstance(inside, dict) else inside) for leaf in _leaves(one)]
    return [value]
