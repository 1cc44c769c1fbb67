"""Programs that call tools, embedded and on a server: in parallel, with real errors, and waiting for whoever asked for the run."""

import asyncio
import time

import pytest

import onetrip
from onetrip.errors import BadRequest, Conflict, NotFound
from onetrip.model import Done, Tool, ToolAnswered, ToolCalled, ToolFailure

ASK = {
    "name": "ask_user",
    "description": "Ask the person.",
    "input_schema": {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]},
}


def find_product(name: str, limit: int = 3) -> dict:
    """Find products by name.

    Args:
        name: what to look for
    """
    return {"items": [{"id": n, "name": f"{name} {n}"} for n in range(limit)], "total": limit}


async def slow(n: int) -> int:
    await asyncio.sleep(0.2)
    return n


class Meeting:
    """Whoever comes waits until five are there: only calls that are on their way at once get through."""

    def __init__(self) -> None:
        self.here = 0
        self.full: asyncio.Event | None = None

    async def meet(self, n: int) -> int:
        self.full = self.full or asyncio.Event()
        self.here += 1
        if self.here == 5:
            self.full.set()
        await self.full.wait()
        return n


def broken(kind: str) -> None:
    raise {"permission": PermissionError, "timeout": TimeoutError, "other": ValueError}[kind](f"no {kind}")


@pytest.fixture
def ot(anywhere):
    return anywhere


@pytest.fixture
def session(ot):
    with ot.session(tools=[find_product, slow, broken, ASK]) as live:
        yield live


# ---------------------------------------------------------------------------------------------------- calling


@pytest.mark.spec("TOL-55")
@pytest.mark.parametrize(
    "code",
    [
        "find_product(name='pen', limit=2)",
        "find_product('pen', 2)",
        "find_product({'name': 'pen', 'limit': 2})",
        "tools.find_product('pen', limit=2)",
        "import tools\ntools.find_product('pen', limit=2)",
        "from tools import find_product as f\nf('pen', 2)",
        "from functions import find_product\nfind_product('pen', 2)",
        "await find_product('pen', 2)",
        "import asyncio\nasyncio.run(find_product('pen', 2))",
        "import functools\nfunctools.partial(find_product, limit=2)('pen')",
    ],
)
def test_a_tool_is_called_in_every_way_that_programs_are_written(session, code):
    result = session.run(code)
    assert result.value == {"items": [{"id": 0, "name": "pen 0"}, {"id": 1, "name": "pen 1"}], "total": 2}, result.error
    assert [(call.tool, call.arguments, call.status) for call in result.tool_calls] == [
        ("find_product", {"name": "pen", "limit": 2}, "ok")
    ]


@pytest.mark.spec("TOL-55")
def test_results_are_dictionaries_and_lists_with_attributes(session):
    code = (
        "import json, pickle\nr = find_product('pen')\n"
        "[r.items[1].name, r['items'][1]['name'], r.total, [*r.items()] == [*dict(r).items()], isinstance(r, dict), json.loads(json.dumps(r)) == r,"
        " pickle.loads(pickle.dumps(r)) == r, getattr(r, 'nothing', 'none')]"
    )
    assert session.run(code).value == ["pen 1", "pen 1", 3, True, True, True, True, "none"]


@pytest.mark.spec("TOL-55")
def test_a_function_of_a_blocking_cell_works_in_a_cell_that_awaits(session):
    assert session.run("def total(name):\n    return find_product(name).total").ok
    assert session.run("import asyncio\nawait asyncio.sleep(0)\ntotal('pen') + (await find_product('ink')).total").value == 6


@pytest.mark.spec("TOL-56")
@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nawait asyncio.gather(*(meet(n) for n in range(5)))",
        "import asyncio\nasync with asyncio.TaskGroup() as g:\n    ts = [g.create_task(meet(n)) for n in range(5)]\n[t.result() for t in ts]",
        "import asyncio\nsorted([await f for f in asyncio.as_completed([meet(n) for n in range(5)])])",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(5) as pool:\n    r = list(pool.map(meet, range(5)))\nr",
        "import asyncio\nawait asyncio.gather(*(asyncio.to_thread(meet, n) for n in range(5)))",
    ],
)
def test_calls_run_beside_each_other(ot, code):
    result = ot.run(code, tools=[Meeting().meet])
    assert result.value == list(range(5)), result.error


@pytest.mark.spec("TOL-57")
@pytest.mark.parametrize(
    ("kind", "caught", "name"),
    [
        ("permission", "PermissionError", "ToolDenied"),
        ("timeout", "TimeoutError", "ToolTimeout"),
        ("other", "RuntimeError", "ToolError"),
    ],
)
def test_errors_are_real_types_that_a_program_can_catch(session, kind, caught, name):
    code = f"try:\n    broken('{kind}')\nexcept {caught} as e:\n    r = [type(e).__name__, e.retryable, e.tool, 'no {kind}' in str(e), isinstance(e, tools.ToolError)]\nr"
    assert session.run(code).value == [name, False, "broken", True, True]


@pytest.mark.spec("TOL-57")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("find_product(nam='x')", "did you mean 'name'?"),
        ("find_product()", "needs 'name'"),
        ("find_product(1, 2, 3)", "takes 2 arguments"),
        ("find_product(name='x', limit='many')", "arguments.limit"),
        ("find_product(name=object())", "no JSON form"),
        ("ask_user(question=5)", "arguments.question"),
    ],
)
def test_wrong_arguments_are_an_error_that_says_which(session, code, words):
    result = session.run(code)
    assert (result.status, result.error.type) == ("failed", "ToolArgumentError")
    assert words in result.error.message
    assert result.error.line == 1
    assert session.run("1 + 1").value == 2


@pytest.mark.spec("TOL-57")
def test_a_tool_that_there_is_not_is_named_with_its_neighbours(session):
    result = session.run("tools.find_prodct('x')")
    assert result.error.type == "AttributeError"
    assert "find_product" in result.error.message


@pytest.mark.spec("TOL-24")
def test_a_forgotten_await_is_mended_and_told(session):
    result = session.run("import asyncio\nr = find_product('pen')\nprint(r['total'])\nawait asyncio.sleep(0)")
    assert (result.stdout, result.status) == ("3\n", "completed")
    assert any("await" in note for note in result.notes)


@pytest.mark.spec("TOL-55")
def test_a_task_that_nobody_awaited_is_finished_before_the_cell_ends(session):
    result = session.run("import asyncio\nt = asyncio.create_task(slow(7))\nawait asyncio.sleep(0)\nNone")
    assert [(call.tool, call.status) for call in result.tool_calls] == [("slow", "ok")]
    assert session.run("t.result()").value == 7


@pytest.mark.spec("TOL-58")
def test_a_program_over_its_number_of_calls_is_stopped(ot):
    with ot.session(tools=[find_product], limits=onetrip.Limits(tool_calls=5)) as session:
        result = session.run("n = 0\nwhile True:\n    find_product('x')\n    n += 1")
        assert (result.status, result.limit.name, result.limit.limit) == ("limit_exceeded", "tool_calls", 5)
        assert sum(call.status == "ok" for call in result.tool_calls) == 5
        assert session.run("1").ok


# ---------------------------------------------------------------------------------------------------- waiting


@pytest.mark.spec("TOL-60")
def test_a_run_waits_with_all_its_calls_and_goes_on_when_they_are_answered(session):
    result = session.run("import asyncio\na, b, n = await asyncio.gather(ask_user('a?'), ask_user('b?'), slow(1))\n[a, b, n]")
    assert result.status == "waiting"
    assert sorted(call.arguments["question"] for call in result.pending) == ["a?", "b?"]
    by_question = {call.arguments["question"]: call.id for call in result.pending}
    result = session.answer(result, {by_question["b?"]: {"said": "B"}})
    assert [call.arguments["question"] for call in result.pending] == ["a?"]
    result = session.answer(result, {by_question["a?"]: "A"})
    assert (result.status, result.value) == ("completed", ["A", {"said": "B"}, 1])


@pytest.mark.spec("TOL-60")
def test_threads_that_all_wait_make_the_run_wait(session):
    result = session.run(
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(3) as pool:\n    r = list(pool.map(ask_user, ['a', 'b', 'c']))\nr"
    )
    seen = {}
    while result.status == "waiting":
        for call in result.pending:
            seen[call.id] = call.arguments["question"]
        result = session.answer(result, {result.pending[-1].id: seen[result.pending[-1].id] * 2})
    assert (result.value, len(seen)) == (["aa", "bb", "cc"], 3)


@pytest.mark.spec("TOL-61")
@pytest.mark.parametrize(
    "code",
    [
        "try:\n    r = ask_user('x')\nexcept BaseException as e:\n    r = repr(e)\nfinally:\n    done = True\nr",
        "import asyncio\ntry:\n    r = await ask_user('x')\nexcept BaseException as e:\n    r = repr(e)\nr",
        "import contextlib\nwith contextlib.suppress(BaseException):\n    r = ask_user('x')\nr",
    ],
)
def test_a_program_cannot_catch_the_pause(session, code):
    result = session.run("count = globals().get('count', 0) + 1\n" + code)
    assert result.status == "waiting"
    result = session.answer(result, {result.pending[0].id: "answer"})
    assert result.value == "answer"
    assert session.run("count").value == 1  # nothing ran twice


@pytest.mark.spec("TOL-61")
def test_an_answer_may_be_an_error(session):
    result = session.run("try:\n    ask_user('x')\nexcept PermissionError as e:\n    r = str(e)\nr")
    result = session.answer(result, {result.pending[0].id: ToolFailure("not today", "denied")})
    assert result.value == "ask_user: not today"
    result = session.run("ask_user('x')")
    result = session.answer(result, {result.pending[0].id: TimeoutError("nobody there")})
    assert (result.status, result.error.type) == ("failed", "ToolTimeout")


@pytest.mark.spec("TOL-62")
def test_answers_that_are_unknown_late_or_twice_are_refused_and_change_nothing(session):
    result = session.run("[ask_user('x'), ask_user('y')]")
    first = result.pending[0].id
    with pytest.raises(BadRequest):
        session.answer(result, {"call_forged": 1, first: "X"})
    with pytest.raises(BadRequest):
        session.answer(result, {first: object()})
    result = session.answer(result, {first: "X"})
    with pytest.raises(Conflict):
        session.answer(result, {first: "again"})
    with pytest.raises(Conflict):
        session.answer(result, {result.pending[0].id: "Y", first: "again"})
    result = session.answer(result, {result.pending[0].id: "Y"})
    assert result.value == ["X", "Y"]
    with pytest.raises((Conflict, NotFound)):
        session.answer(result, {first: "too late"})


@pytest.mark.spec("TOL-60")
def test_while_a_run_waits_its_session_takes_no_other_cell_and_can_be_interrupted(session):
    waiting = session.run("ask_user('x')")
    with pytest.raises(Conflict):
        session.run("1")
    session.interrupt()
    with pytest.raises((Conflict, NotFound)):
        session.answer(waiting, {waiting.pending[0].id: "too late"})
    assert session.run("1 + 1").value == 2


@pytest.mark.spec("TOL-60")
def test_a_wait_costs_no_wall_time_and_nobody_waits_longer_than_agreed(ot):
    with ot.session(tools=[ASK], limits=onetrip.Limits(wall_s=1), wait_s=3.0) as session:
        result = session.run("ask_user('x')")
        time.sleep(1.5)  # longer than the program may run
        assert session.answer(result, {result.pending[0].id: 1}).value == 1
        result = session.run("try:\n    ask_user('x')\nexcept TimeoutError as e:\n    r = str(e)\nr")
        assert result.status == "waiting"
        time.sleep(3.5)  # longer than it waits for an answer
        with pytest.raises((Conflict, NotFound)):
            session.answer(result, {result.pending[0].id: 1})


@pytest.mark.spec("TOL-60")
def test_a_guard_of_the_program_ends_its_wait(session):
    """While the caller thinks, the program gives up and asks something else: the caller's answer to the first is late, and it is told the second."""
    events = session.stream(
        "import asyncio\ntry:\n    await asyncio.wait_for(ask_user('x'), 0.5)\nexcept TimeoutError:\n    r = 'gave up'\n[r, await ask_user('y')]"
    )
    results = (event.result for event in events if isinstance(event, Done))
    assert [call.arguments["question"] for call in next(results).pending] == ["x"]
    second = next(results)
    assert [call.arguments["question"] for call in second.pending] == ["y"]
    assert [call.status for call in second.tool_calls] == ["cancelled", "pending"]


@pytest.mark.spec("TOL-59")
def test_events_tell_of_calls_and_their_answers(session):
    events = list(session.stream("find_product('pen').total"))
    told = [
        (type(event).__name__, event.call.tool, event.call.status)
        for event in events
        if isinstance(event, ToolCalled | ToolAnswered)
    ]
    assert told == [("ToolCalled", "find_product", "pending"), ("ToolAnswered", "find_product", "ok")]
    assert isinstance(events[-1], Done)


@pytest.mark.spec("TOL-60")
def test_approval_is_asked_for_before_a_tool_is_called(ot):
    calls = []

    @onetrip.tool(approval="required")
    def pay(amount: int) -> str:
        calls.append(amount)
        return f"paid {amount}"

    with ot.session(tools=[pay]) as session:
        result = session.run("pay(5)")
        assert [(call.tool, call.arguments, call.kind) for call in result.pending] == [("pay", {"amount": 5}, "approval")]
        assert calls == []
        result = session.answer(result, {result.pending[0].id: True})
        assert (result.value, calls) == ("paid 5", [5])
        result = session.run("pay(6)")
        result = session.answer(result, {result.pending[0].id: ToolFailure("too much", "denied")})
        assert (result.error.type, calls) == ("ToolDenied", [5])


@pytest.mark.spec("TOL-59")
def test_ids_of_calls_do_not_depend_on_the_order_of_arrival(ot):
    """The same program, with its tasks held up in opposite orders: the same call has the same place in it."""
    code = (
        "import asyncio\nasync def one(n, order):\n    await asyncio.sleep(0.05 * (n if order else 3 - n))\n    return await find_product(f'p{n}')\n"
        "await asyncio.gather(*(one(n, order) for n in range(4)))\nNone"
    )
    with ot.session(tools=[Tool(name="x"), find_product]) as session:
        arrivals = [session.run(code, inputs={"order": order}).tool_calls for order in (True, False)]
    names = [[call.arguments["name"] for call in calls] for calls in arrivals]
    assert names == [["p0", "p1", "p2", "p3"], ["p3", "p2", "p1", "p0"]]
    assert all(len({call.id for call in calls}) == 4 for calls in arrivals)


@pytest.mark.spec("TOL-47")
def test_a_program_that_is_sent_again_repeats_no_write(ot):
    sent = []

    def send(to: str) -> str:
        sent.append(to)
        return f"sent to {to}"

    with ot.session(tools=[send]) as session:
        first = session.run("a = send('ann')\nb = send('bob')\n1 / 0")
        assert first.status == "failed"
        assert first.session.variables[:2] == ("a", "b")
        assert any("not made again" in note for note in first.notes)
        again = session.run("a = send('ann')\nb = send('bob')\nc = send('cid')\n[a, b, c]")
        assert again.value == ["sent to ann", "sent to bob", "sent to cid"]
        assert sent == ["ann", "bob", "cid"]
        assert [call.reused for call in again.tool_calls] == [True, True, False]


@pytest.mark.spec("TOL-52")
def test_the_third_time_the_same_failure_is_a_loop(ot):
    with ot.session(tools=[find_product]) as session:
        results = [session.run("r = find_product('x')\nr['price']") for _ in range(3)]
    assert [result.loop_detected for result in results] == [False, False, True]
    assert "loop_detected" in " ".join(results[2].notes)
