"""Pause and resume, with random programs: every call is made exactly once, has one id, and every result is right."""

import random

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import onetrip
import tool_programs
from onetrip.errors import Conflict

# Programs come of a seed, so a failure is made again by its seed; a smaller seed is no smaller program.
SOME = settings(
    max_examples=25, derandomize=True, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
SEEDS = st.integers(0, 2**32 - 1)


class Tools:
    """`compute` is a function here, `ask` is left to `drive`."""

    def __init__(self) -> None:
        self.made: list[tool_programs.Key] = []

    def compute(self, n: int, x: int) -> int:
        self.made.append(("compute", n, x))
        given = tool_programs.answer("compute", n, x)
        if isinstance(given, Exception):
            raise given
        return given


def drive(ot, program, rng, tools):
    """Run it, and answer what waits: some of it, in any order, each time. Gives the result and the calls that ever waited, by id."""
    seen, given = {}, set()
    result = ot.run(program.code, tools=[tools.compute, tool_programs.CLIENT], limits=onetrip.Limits(wall_s=300))
    while result.status == "waiting":
        seen |= {call.id: (call.tool, call.arguments["n"], call.arguments["x"]) for call in result.pending}
        ours = [call for call in result.pending if not tool_programs.is_held(call.arguments)]
        assert not given & {call.id for call in result.pending}, "an answered call waits again"
        some = rng.sample(ours, rng.randint(1, len(ours))) if ours else []
        given |= {call.id for call in some}
        result = ot.answer(result, {call.id: tool_programs.answer(**{"tool": "ask"} | call.arguments) for call in some})
    return result, seen


@pytest.mark.spec("TOL-80")
@SOME
@given(seed=SEEDS)
@example(seed=0)
def test_random_programs_make_every_call_once_and_are_right_whatever_is_answered_when(ot, seed):
    program, tools = tool_programs.program(seed), Tools()
    result, seen = drive(ot, program, random.Random(seed), tools)
    assert program.problems(result, seen) == [], f"tool_programs.program({seed})"
    assert sorted(tools.made) == sorted(key for key in program.calls if key[0] == "compute")


@pytest.mark.spec("TOL-81")
@settings(SOME, max_examples=8)
@given(seed=SEEDS)
def test_a_call_has_the_same_id_in_whatever_order_answers_come(ot, seed):
    program = tool_programs.program(seed)
    ids = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onetrip.engine.new_run_id", lambda: "run_the_same")
        for order in (1, 2):
            result, _ = drive(ot, program, random.Random(seed + order), Tools())
            ids.append({(call.tool, call.arguments["n"], call.arguments["x"]): call.id for call in result.tool_calls})
    assert ids[0] == ids[1], f"tool_programs.program({seed})"
    assert set(ids[0]) == set(program.calls)


@pytest.mark.spec("TOL-80")
def test_a_run_waits_again_for_what_is_left_when_the_program_gave_a_call_up(ot):
    """Nothing was answered between the two: that one call fewer waits is all that has changed."""
    code = (
        "import asyncio\nasync def short():\n    try:\n        await asyncio.wait_for(ask(n=4, x=0), 0.2)\n"
        "    except TimeoutError:\n        return 'gave up'\nawait asyncio.gather(short(), ask(n=0, x=0))"
    )
    first = ot.run(code, tools=[tool_programs.CLIENT])
    assert len(first.pending) == 2
    second = ot.answer(first, {})
    assert [call.arguments["n"] for call in second.pending] == [0]
    with pytest.raises(Conflict):
        ot.answer(second, {call.id: "late" for call in first.pending if call.arguments["n"] == 4})
    assert ot.answer(second, {second.pending[0].id: "answered"}).value == ["gave up", "answered"]


@pytest.mark.spec("TOL-80")
@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nawait asyncio.to_thread(ask, 0, 0)",
        "import asyncio\nawait ask(0, 0)\nawait asyncio.to_thread(ask, 0, 0)",
        "import asyncio\nasyncio.run(asyncio.to_thread(ask, 0, 0))",
        "import asyncio\n(await asyncio.gather(ask(0, 0), asyncio.to_thread(ask, 0, 1)))[1]",
        "import asyncio\nfrom concurrent.futures import ThreadPoolExecutor as Pool\ndef pool():\n    with Pool(2) as p:\n        return max(p.map(lambda x: ask(0, x), range(3)))\nawait asyncio.to_thread(pool)",
    ],
)
def test_a_run_waits_when_threads_wait_and_the_event_loop_waits_for_them(ot, code):
    result = ot.run(code, tools=[tool_programs.CLIENT], limits=onetrip.Limits(wall_s=20))
    assert result.status == "waiting"
    while result.status == "waiting":
        result = ot.answer(result, {call.id: 5 for call in result.pending[:1]})
    assert (result.status, result.value) == ("completed", 5)


@pytest.mark.spec("TOL-80")
def test_a_permission_alone_leaves_a_run_waiting_for_the_call_itself(ot):
    result = ot.run("ask(n=0, x=0)", tools=[tool_programs.CLIENT | {"approval": "required"}])
    assert [call.kind for call in result.pending] == ["approval"]
    result = ot.answer(result, {result.pending[0].id: True})
    assert [call.kind for call in result.pending] == ["call"]
    assert ot.answer(result, {result.pending[0].id: 5}).value == 5
