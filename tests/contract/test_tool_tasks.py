"""The forty tasks of bench/tools in real sandboxes, and the demo's task of seven tool calls."""

import io

import pytest
from rich.console import Console

from onetrip.demo import comparison, waterfall
from trips import plan
from trips.place import Sandbox
from trips.sets import SETS
from trips.tasks import TASKS


@pytest.fixture(scope="module")
def sandbox(embedded_ot):
    return Sandbox(embedded_ot)


@pytest.mark.slow
@pytest.mark.spec("TOL-30")
@pytest.mark.parametrize("space", SETS)
def test_programs_give_the_right_answers_by_the_same_calls_one_after_another_and_gathered(space, sandbox):
    for task in TASKS.values():
        if task.space == space:
            wanted = sorted(call.key() for call in plan.make(task).calls)
            for code in (task.sequential, task.gathered):
                ran = sandbox.run(code, SETS[space], 0)
                assert task.right(ran.answer), (task.name, ran.answer)
                assert sorted(call.key() for call in ran.calls) == wanted, task.name


@pytest.mark.slow
@pytest.mark.spec("TOL-33")
def test_the_demo_makes_its_seven_calls_from_a_sandbox_and_those_that_can_be_at_once_are(embedded_ot):
    compared = comparison.run(embedded_ot)
    assert compared.problems == []
    assert [(way.name, way.cost.inferences, way.cost.calls) for way in compared.ways] == [
        ("classic loop", 8, 7),
        ("parallel calls", 4, 7),
        ("one program", 2, 7),
    ]
    assert [call.status for call in compared.calls] == ["ok"] * 7
    ends = {
        name: [call.started_ms + call.duration_ms for call in compared.calls if call.tool == name] for name in comparison.TOOLS
    }
    starts = {name: [call.started_ms for call in compared.calls if call.tool == name] for name in comparison.TOOLS}
    for name in ("get_station", "get_forecast"):
        assert max(starts[name]) < min(ends[name]), "all were on their way at once"
    out = io.StringIO()
    for part in waterfall.shown(compared):
        Console(file=out, width=80).print(part)
    assert "Torgersen" in out.getvalue()
