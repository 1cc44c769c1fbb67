"""The simulated model: it emits what a task's plan says, without a mistake, and every inference reads the conversation again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trips import prompts
from trips.plan import Plan
from trips.recorder import Call
from trips.sets import SETS
from trips.task import Task

Strategy = Literal["classic", "batches", "program", "gather"]
STRATEGIES: dict[Strategy, str] = {
    "classic": "classic loop, one JSON call an inference",
    "batches": "best legal batches of parallel JSON calls",
    "program": "one program, one call after another",
    "gather": "one program with asyncio.gather",
}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """How fast the simulated model and the tools are."""

    latency_s: float = 1.5  # from the request to the first token, however long the conversation is
    token_s: float = 0.0125  # for each token of the answer: 80 a second
    bytes_per_token: float = 4.0
    tool_s: float = 0.1  # each call of a tool


@dataclass(frozen=True, slots=True)
class Cost:
    """What one strategy needs for one task, or for several together."""

    inferences: int = 0
    calls: int = 0
    new_bytes: int = 0  # everything that was read or written, counted once
    read_bytes: int = 0  # what all inferences read: each the whole conversation up to it
    written_bytes: int = 0  # what the model wrote
    model_s: float = 0.0
    tools_s: float = 0.0  # while the model waited for tools, or for the program

    @property
    def time_s(self) -> float:
        return self.model_s + self.tools_s

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class Conversation:
    """Counts what a model reads and writes. Bytes are those of UTF-8."""

    def __init__(self, prompt: str, assumptions: Assumptions) -> None:
        self._assumptions = assumptions
        self._unread, self._context = len(prompt.encode()), 0
        self._cost = Cost()

    def infer(self, written: str) -> None:
        """One inference: it reads the conversation with what was said to it since, and writes."""
        said = len(written.encode())
        self._context += self._unread
        tokens = said / self._assumptions.bytes_per_token
        self._cost += Cost(
            inferences=1,
            new_bytes=self._unread + said,
            read_bytes=self._context,
            written_bytes=said,
            model_s=self._assumptions.latency_s + tokens * self._assumptions.token_s,
        )
        self._context += said
        self._unread = 0

    def told(self, text: str, *, calls: int, tools_s: float) -> None:
        """What comes back from outside, after so many seconds; the next inference reads it."""
        self._unread += len(text.encode())
        self._cost += Cost(calls=calls, tools_s=tools_s)

    @property
    def cost(self) -> Cost:
        return self._cost


def with_calls(task: Task, batches: Sequence[Sequence[Call]], assumptions: Assumptions) -> Cost:
    """JSON calls, a batch in each inference; the calls of a batch are made at once. The last inference writes the answer."""
    talk = Conversation(f"{prompts.for_calls(SETS[task.space]())}\n{task.question}", assumptions)
    number = 0
    for batch in batches:
        ids = [f"call_{number + place}" for place in range(1, len(batch) + 1)]
        number += len(batch)
        talk.infer(
            "\n".join(
                compact({"id": name, "name": call.tool, "arguments": call.arguments})
                for name, call in zip(ids, batch, strict=True)
            )
        )
        talk.told(
            "\n".join(compact({"id": name, "output": call.value}) for name, call in zip(ids, batch, strict=True)),
            calls=len(batch),
            tools_s=assumptions.tool_s,
        )
    talk.infer(compact(task.expected))
    return talk.cost


def with_program(task: Task, code: str, *, calls: int, took_s: float, assumptions: Assumptions) -> Cost:
    """One inference writes the program, one the answer. `took_s`: from its start to its result, as measured."""
    talk = Conversation(f"{prompts.for_programs(SETS[task.space]())}\n{task.question}", assumptions)
    talk.infer(compact({"id": "call_1", "name": "run_python", "arguments": {"code": code.strip()}}))
    result = {"status": "completed", "value": task.expected, "stdout": "", "tool_calls": calls}
    talk.told(compact({"id": "call_1", "output": result}), calls=calls, tools_s=took_s)
    talk.infer(compact(task.expected))
    return talk.cost


def classic(task: Task, plan: Plan, assumptions: Assumptions) -> Cost:
    return with_calls(task, [[call] for call in plan.calls], assumptions)


def in_batches(task: Task, plan: Plan, assumptions: Assumptions) -> Cost:
    return with_calls(task, plan.batches, assumptions)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
