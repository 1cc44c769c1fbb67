"""Measures one task with all four strategies: what was run for it, and what the simulated model needs."""

import json
from dataclasses import dataclass

from onetrip.demo.simulated import Assumptions, Cost
from trips import plan, ways
from trips.place import Runner
from trips.sets import SETS
from trips.task import Task
from trips.ways import Strategy


@dataclass(frozen=True, slots=True)
class Measured:
    task: Task
    costs: dict[Strategy, Cost]


class WrongError(Exception):
    """A program did not do what its task says: another answer, or other calls. Nothing is measured of it."""


def measure(task: Task, runner: Runner, assumptions: Assumptions) -> Measured:
    """Raises WrongError, and ProgramFailedError as the runner does."""
    planned = plan.make(task)
    wanted = sorted(call.key() for call in planned.calls)
    costs: dict[Strategy, Cost] = {
        "classic": ways.classic(task, planned, assumptions),
        "batches": ways.in_batches(task, planned, assumptions),
    }
    programs: dict[Strategy, str] = {"program": task.sequential, "gather": task.gathered}
    for strategy, code in programs.items():
        ran = runner.run(code, SETS[task.space], assumptions.tool_s)
        if not task.right(ran.answer):
            raise WrongError(f"{task.name}, {strategy}: the answer is {json.dumps(ran.answer)}, not {json.dumps(task.expected)}")
        if sorted(call.key() for call in ran.calls) != wanted:
            raise WrongError(f"{task.name}, {strategy}: its calls are not those of the plan")
        costs[strategy] = ways.with_program(task, code, calls=len(ran.calls), took_s=ran.took_s, assumptions=assumptions)
    return Measured(task, costs)
