"""The forty tasks of bench/tools: their programs, the calls that loops would make, and what is counted of both."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from onetrip.demo.simulated import Assumptions, Conversation, Cost
from trips import plan, prompts, report, ways
from trips.measure import Measured, WrongError, measure
from trips.place import Plain, ProgramFailedError
from trips.recorder import Call
from trips.sets import SETS
from trips.tasks import TASKS

QUICK = Assumptions(tool_s=0.001)


@pytest.fixture(scope="module")
def plans():
    return {name: plan.make(task) for name, task in TASKS.items()}


def calls(batches):
    return sorted(call.key() for batch in batches for call in batch)


def test_there_are_ten_tasks_for_each_of_the_four_sets():
    assert [sum(task.space == space for task in TASKS.values()) for space in SETS] == [10, 10, 10, 10]


@pytest.mark.spec("TOL-30")
@pytest.mark.parametrize("name", TASKS)
def test_both_programs_give_the_right_answer_by_the_same_calls_and_leave_the_same_behind(name, plans):
    planned = plans[name]
    assert [TASKS[name].right(answer) for answer in planned.answers] == [True, True], planned.answers
    assert calls([planned.calls]) == calls(planned.batches)
    assert planned.states[0] == planned.states[1]


@pytest.mark.spec("TOL-31")
@pytest.mark.parametrize("name", TASKS)
def test_every_call_of_a_batch_comes_as_early_as_its_arguments_allow_or_says_why(name, plans):
    assert plan.unexplained(TASKS[name], plans[name].batches) == []


def test_a_program_that_waits_for_nothing_is_found():
    code = "await shop.get_stock(sku='TE-01')\nawait shop.get_stock(sku='ST-02')\n(await shop.get_stock(sku='LI-03'))['sku']\n"
    slow = dataclasses.replace(TASKS["one-warehouse"], gathered=code)
    assert [line.rpartition(") is ")[2] for line in plan.unexplained(slow, plan.make(slow).batches)] == [
        "in batch 2, but could be in 1",
        "in batch 3, but could be in 1",
    ]


def test_tasks_have_few_and_many_calls_loops_and_writes(plans):
    counts = sorted(len(planned.calls) for planned in plans.values())
    assert counts[0] == 3
    assert counts[-1] >= 40
    written = {call.tool for planned in plans.values() for call in planned.calls}
    assert {"shop.refund", "calendar.move_event", "fs.delete", "travel.book_flight"} <= written


@pytest.mark.spec("TOL-31")
def test_what_a_conversation_reads_and_writes_adds_up():
    talk = Conversation("é" * 50, Assumptions(latency_s=2, token_s=0.5, bytes_per_token=4))  # 100 bytes
    talk.infer("x" * 8)
    talk.told("y" * 30, calls=3, tools_s=1.5)
    talk.infer("z" * 4)
    assert talk.cost == Cost(
        inferences=2,
        calls=3,
        new_bytes=100 + 8 + 30 + 4,
        read_bytes=100 + (100 + 8 + 30),
        written_bytes=12,
        model_s=2 * 2 + 3 * 0.5,
        tools_s=1.5,
    )


@pytest.mark.spec("TOL-31")
def test_a_loop_needs_an_inference_for_each_call_or_batch_and_one_for_the_answer(plans):
    for name, task in TASKS.items():
        planned = plans[name]
        classic, batches = (strategy(task, planned, QUICK) for strategy in (ways.classic, ways.in_batches))
        assert (classic.inferences, classic.calls) == (len(planned.calls) + 1, len(planned.calls))
        assert (batches.inferences, batches.calls) == (len(planned.batches) + 1, len(planned.calls))
        assert classic.tools_s == pytest.approx(len(planned.calls) * QUICK.tool_s)
        assert batches.read_bytes <= classic.read_bytes


def test_the_model_is_told_every_tool_in_both_ways():
    for kind in SETS.values():
        tools = kind()
        for name in tools.tools():
            assert f'"name":"{name}"' in prompts.for_calls(tools)
            assert f"async def {name.rpartition('.')[2]}(" in prompts.for_programs(tools)


@pytest.mark.parametrize("name", ["settings", "largest-log", "broken-links", "plan-review"])
def test_a_task_is_measured_in_all_four_ways(name):
    measured = measure(TASKS[name], Plain(), QUICK)
    assert list(measured.costs) == list(ways.STRATEGIES)
    assert len({cost.calls for cost in measured.costs.values()}) == 1
    assert measured.costs["program"].inferences == 2


def test_a_program_that_is_wrong_is_not_measured():
    task = TASKS["one-warehouse"]
    with pytest.raises(WrongError, match="the answer is"):
        measure(dataclasses.replace(task, expected={"TE-01": "moon"}), Plain(), QUICK)
    other = dataclasses.replace(task, gathered=f"await shop.list_categories()\n{task.gathered}")
    with pytest.raises(WrongError, match="its calls are not those of the plan"):
        measure(other, Plain(), QUICK)
    with pytest.raises(ProgramFailedError, match="ZeroDivisionError"):
        Plain().run("1 / 0", SETS["shop"], 0)


def test_an_answer_must_be_the_expected_one():
    task = dataclasses.replace(TASKS["settings"], expected={"a": [1.0, True], "b": None})
    assert task.right({"a": [1.0 + 1e-12, True], "b": None})
    for wrong in ({"a": [1.0, 1], "b": None}, {"a": [1.0, True]}, {"a": [1.0], "b": None}, {"a": {}, "b": None}, [], None, "1"):
        assert not task.right(wrong)


@pytest.mark.spec("TOL-32")
def test_every_table_says_that_the_model_is_simulated_and_fits_into_80_columns(tmp_path):
    costs = {strategy: Cost(234, 345, 345_678, 1_456_789, 3, 456.7, 9.0) for strategy in ways.STRATEGIES}
    measured = [Measured(TASKS[name], costs) for name in ("settings", "archive", "weekend")]
    out = io.StringIO()
    report.print_tables(measured, QUICK, "a place", Console(file=out, width=80))
    shown = out.getvalue()
    assert "…" not in shown
    assert shown.count("simulated model\n") + shown.count("simulated model ") >= 3
    assert "SIMULATED MODEL: 1.5 s" in shown
    found = json.loads(report.as_json(measured, QUICK, "a place"))
    assert found["simulated_model"] is True
    assert [one["simulated_model"] for one in (*found["sets"], *found["tasks"])] == [True] * 6
    assert found["assumptions"] == dataclasses.asdict(QUICK)
    assert found["programs_ran_in"] == "a place"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.write_between_markers(page, report.as_markdown(measured, QUICK, "a place"))
    text = page.read_text()
    assert (text.startswith("before\n"), text.endswith("after\n"), "old" in text) == (True, True, False)
    assert text.count("simulated model:") == 3
    assert "SIMULATED MODEL" in text


def test_a_page_without_markers_is_not_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{report.END}{report.START}")
    with pytest.raises(ValueError, match="does not have one"):
        report.write_between_markers(page, "new")
    assert page.read_text() == f"{report.END}{report.START}"


def test_a_call_is_the_same_whatever_the_order_of_its_arguments():
    assert Call("t", {"a": 1, "b": 2}, None).key() == Call("t", {"b": 2, "a": 1}, 3).key()
