"""The four ways to do a task, each as an exchange with the simulated model, which emits what the plan says and makes no mistake."""

from collections.abc import Sequence
from typing import Literal

from onetrip.demo.simulated import Assumptions, Conversation, Cost, compact
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
