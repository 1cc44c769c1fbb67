"""Batches: every item once, never before what it needs; failures stay where they are; nothing is left when nobody reads any more."""

import asyncio
import contextlib
import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip.errors import BadRequest, Forbidden, Overloaded, SessionGone
from onetrip.model import Isolation, LimitHit, ProgramError, Result, ToolAnswer, ToolFailure
from onetrip.tools import batch as batches
from onetrip.tools.batch import BatchRequest, Outcome, plan, run_batch


def request(*items, **options) -> BatchRequest:
    return msgspec.json.decode(json.dumps({"items": items, **options}), type=BatchRequest)


def tool(name, *after, **arguments):
    return {"id": name, "tool": "t.f", "arguments": arguments, "after": after}


def ref(path):
    return {"$ref": path}


class Calls:
    """Stands for tools and cells. A call ends when it is told to, or at once; what begins and ends is written down."""

    def __init__(self, answer=lambda item, arguments: arguments, *, at_once=False):
        self.answer, self.at_once = answer, at_once
        self.begun, self.ended, self.running, self.most = [], [], {}, 0

    async def __call__(self, item, arguments):
        self.begun.append(item.id)
        self.running[item.id] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            if not self.at_once:
                await self.running[item.id]
            given = self.answer(item, json.loads(arguments))
        finally:
            del self.running[item.id]
            self.ended.append(item.id)
        if isinstance(given, BaseException):
            raise given
        return given if isinstance(given, Outcome) else Outcome(json.dumps(given).encode())


async def collect(request, calls, *, concurrency=8):
    async with contextlib.aclosing(run_batch(plan(request), calls, concurrency=concurrency)) as results:
        return {result.id: json.loads(msgspec.json.encode(result)) async for result in results}


def results_of(request, answer=lambda item, arguments: arguments, *, concurrency=8):
    return asyncio.run(collect(request, Calls(answer, at_once=True), concurrency=concurrency))


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------------------- any graph


@st.composite
def graphs(draw):
    """Items in any order, each after some that come before it in another order; some fail; cells share sessions."""
    count = draw(st.integers(1, 12))
    items, fails = [], set()
    for number in range(count):
        name = f"i{number}"
        before = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=3)) if number else []
        inputs, after = {}, []
        for one in before:
            if draw(st.booleans()):
                inputs[f"v{one}"] = ref(f"i{one}.{'value.' if items[one].get('code') else ''}n")
            else:
                after.append(f"i{one}")
        if draw(st.booleans()):
            items.append({"id": name, "tool": "t.f", "arguments": inputs, "after": after})
        else:
            items.append({"id": name, "code": "1", "inputs": inputs, "after": after})
            if draw(st.booleans()):
                items[-1]["session_id"] = draw(st.sampled_from(["ses_a", "ses_b"]))
        if draw(st.integers(0, 5)) == 0:
            fails.add(name)
    shuffled = draw(st.permutations(items)) if not any(item.get("session_id") for item in items) else items
    # a generator of Hypothesis' own would end an example that hangs, without a word
    return shuffled, fails, draw(st.integers(1, 6)), random.Random(draw(st.integers(0, 2**32)))


def needs_of(item):
    return {value["$ref"].split(".")[0] for value in (item.get("arguments") or item.get("inputs") or {}).values()} | {
        *item["after"]
    }


def model(items, fails):
    """What a batch comes to, one item after the other: name → number, or the item that is to blame."""
    come, left = {}, {item["id"]: item for item in items}
    while left:
        for name, item in [*left.items()]:
            needs = needs_of(item)
            if not needs <= come.keys():
                continue
            del left[name]
            blamed = [come[one] for one in needs if isinstance(come[one], str)]
            if blamed:
                come[name] = blamed
                come[name] = next(iter(blamed)) if len({*blamed}) == 1 else "several"
            elif name in fails:
                come[name] = name
            else:
                values = [
                    come[value["$ref"].split(".")[0]] for value in (item.get("arguments") or item.get("inputs") or {}).values()
                ]
                come[name] = 1 + sum(values)
    return come


def answer_by(fails):
    def answer(item, arguments):
        if item.id in fails:
            return Outcome(error=ToolFailure("broken"))
        value = {"n": 1 + sum(arguments.values())}
        return {"value": value} if item.is_cell else value

    return answer


async def scheduled(calls, done, random):
    """End the calls that run in any order, some while others have not begun."""
    for _ in range(2_000):
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        if done():
            return
        waiting = [future for future in calls.running.values() if not future.done()]
        if waiting:
            random.choice(waiting).set_result(None)
        await asyncio.sleep(0)
    pytest.fail(f"it hangs: {[*calls.running]} run, {calls.ended} have ended")


@pytest.mark.slow
@pytest.mark.spec("TOL-40")
@given(graphs())
def test_a_batch_comes_to_what_its_items_come_to_one_after_the_other(graph):
    items, fails, concurrency, random = graph
    calls = Calls(answer_by(fails))

    async def main():
        task = asyncio.ensure_future(collect(request(*items), calls, concurrency=concurrency))
        await scheduled(calls, task.done, random)
        return task.result()

    got, come = asyncio.run(main()), model(items, fails)
    assert got.keys() == come.keys()
    ran = {name for name, what in come.items() if not isinstance(what, str) or what == name}
    assert sorted(calls.begun) == sorted(ran), "each once, and only those whose needs were met"
    assert calls.most <= concurrency
    listed = {item["id"]: item for item in items}
    for name, what in come.items():
        result = got[name]
        if not isinstance(what, str):
            assert result["status"] == "ok"
            value = result["result"]["value"] if "code" in listed[name] else result["value"]
            assert value == {"n": what}
        elif what == name:
            assert (result["status"], result["error"]["message"]) == ("error", "broken")
        else:
            assert (result["status"], result["error"]["code"]) == ("skipped", "dependency_failed")
            assert result["because"] in fails
            assert what in {"several", result["because"]}


@pytest.mark.slow
@pytest.mark.spec("TOL-40", "TOL-41")
@given(graphs())
def test_nothing_begins_before_what_it_is_after_and_cells_of_a_session_keep_their_order(graph):
    items, fails, concurrency, random = graph
    log = []

    class Logged(Calls):
        async def __call__(self, item, arguments):
            log.append(("begin", item.id))
            try:
                return await super().__call__(item, arguments)
            finally:
                log.append(("end", item.id))

    calls = Logged(answer_by(fails))

    async def main():
        task = asyncio.ensure_future(collect(request(*items), calls, concurrency=concurrency))
        await scheduled(calls, task.done, random)
        task.result()

    asyncio.run(main())
    for item in items:
        if ("begin", item["id"]) in log:
            for before in needs_of(item):
                assert log.index(("end", before)) < log.index(("begin", item["id"]))
    for session in ("ses_a", "ses_b"):
        cells = {item["id"] for item in items if item.get("session_id") == session}
        seen = [event for event in log if event[1] in cells]
        names = [item["id"] for item in items if item["id"] in {name for _, name in seen} & cells]
        assert seen == [(what, name) for name in names for what in ("begin", "end")]


@pytest.mark.slow
@pytest.mark.spec("TOL-43")
@given(graphs(), st.integers(0, 12))
def test_a_reader_that_goes_away_ends_what_runs_and_waits_for_it(graph, most):
    items, fails, concurrency, random = graph
    calls = Calls(answer_by(fails))

    async def main():
        results = run_batch(plan(request(*items)), calls, concurrency=concurrency)
        task = asyncio.ensure_future(read(results))
        await scheduled(calls, task.done, random)
        assert not calls.running, "aclose came back: nothing runs"
        begun = [*calls.begun]
        await settle()
        assert calls.begun == begun, "and nothing begins any more"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def read(results):
        for _ in range(min(most, len(items))):
            await anext(results)
        await settle()
        await results.aclose()

    asyncio.run(main())
    assert sorted(calls.begun) == sorted({*calls.begun})


@pytest.mark.spec("TOL-43")
def test_a_call_that_takes_its_time_to_end_is_waited_for():
    async def main():
        begun, release, ended = asyncio.Event(), asyncio.Event(), []

        async def call(item, arguments):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await release.wait()
                ended.append(item.id)

        async def read():
            async with contextlib.aclosing(run_batch(plan(request(tool("a"))), call, concurrency=1)) as results:
                await anext(results)

        reader = asyncio.ensure_future(read())
        await begun.wait()
        reader.cancel()
        await settle()
        assert not reader.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert ended == ["a"]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- failures, time, readers


@pytest.mark.spec("TOL-42")
@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (Forbidden("not yours"), "denied", "forbidden"),
        (Overloaded("later"), "error", "overloaded"),
        (SessionGone("it ended"), "error", "session_gone"),
        (RuntimeError("secret of ours"), "error", "internal"),
        (TimeoutError(), "timeout", None),
        (asyncio.CancelledError(), "error", "cancelled"),
        (Outcome(error=ToolFailure("no", "denied")), "denied", None),
        (Outcome(error=ToolFailure("late", "timeout", retryable=True)), "timeout", None),
        (Outcome(error=ToolFailure("wrong", "arguments")), "error", None),
        (Outcome(b"no JSON"), "error", "not_json"),
        (Outcome(b'"\xff"'), "error", "not_json"),
        (Outcome(b"[" * 100_000), "error", "not_json"),
    ],
)
def test_whatever_goes_wrong_with_one_item_loses_no_other(raised, status, code, caplog):
    got = results_of(
        request(tool("a"), tool("bad"), tool("needs", "bad"), tool("z", "a")),
        lambda item, arguments: raised if item.id == "bad" else {"fine": item.id},
    )
    assert (got["bad"]["status"], got["bad"]["error"].get("code")) == (status, code)
    assert "secret" not in json.dumps(got["bad"]["error"])
    assert [got[name]["status"] for name in ("a", "needs", "z")] == ["ok", "skipped", "ok"]
    assert got["needs"]["because"] == "bad"
    assert got["needs"]["error"]["message"] == "not run: bad failed, and this needs it"
    assert got["z"]["value"] == {"fine": "z"}


@pytest.mark.spec("TOL-42")
def test_when_time_is_over_what_runs_is_cancelled_and_the_rest_is_skipped():
    class Slow(Calls):
        async def __call__(self, item, arguments):
            if item.id == "quick":
                return Outcome(b"1")
            return await super().__call__(item, arguments)

    calls = Slow()
    got = asyncio.run(
        collect(request(tool("quick"), tool("slow"), tool("other"), tool("more"), timeout_s=0.05), calls, concurrency=2)
    )
    assert {name: result["status"] for name, result in got.items()} == {
        "quick": "ok",
        "slow": "timeout",
        "other": "timeout",
        "more": "skipped",
    }
    assert calls.begun == ["slow", "other"]
    assert got["slow"]["error"]["code"] == got["more"]["error"]["code"] == "batch_timeout"
    assert "whether it took effect is not known" in got["slow"]["error"]["message"]
    assert "whether" not in got["more"]["error"]["message"]


@pytest.mark.spec("TOL-42")
def test_a_call_may_have_a_time_of_its_own():
    calls = Calls()
    got = asyncio.run(collect(request({**tool("a"), "timeout_s": 0.01}), calls))
    assert (got["a"]["status"], got["a"]["error"]["code"]) == ("timeout", "item_timeout")
    assert calls.ended == ["a"]


@pytest.mark.spec("TOL-43")
def test_a_slow_reader_slows_the_batch():
    async def main():
        calls = Calls(at_once=True)
        items = [tool(f"i{number}") for number in range(200)]
        async with contextlib.aclosing(run_batch(plan(request(*items)), calls, concurrency=4)) as results:
            await anext(results)
            await settle()
            assert len(calls.begun) <= 1 + batches.UNREAD + 4
            assert len([result async for result in results]) == 199
            assert len(calls.begun) == 200

    asyncio.run(main())


@pytest.mark.spec("TOL-40")
def test_a_thousand_items_wait_together():
    async def main():
        calls = Calls()
        items = [tool(f"i{number}") for number in range(1000)]
        task = asyncio.ensure_future(collect(request(*items, concurrency=1000), calls, concurrency=5000))
        await settle()
        assert len(calls.running) == 1000
        for future in [*calls.running.values()]:
            future.set_result(None)
        assert len(await task) == 1000

    asyncio.run(main())


@pytest.mark.spec("TOL-40")
@pytest.mark.parametrize(("asked", "allowed", "most"), [(2, 8, 2), (9, 3, 3), (None, 3, 3)])
def test_a_batch_may_ask_for_less_at_once_but_not_for_more(asked, allowed, most):
    calls, options = Calls(), {} if asked is None else {"concurrency": asked}

    async def main():
        items = (tool(f"i{number}") for number in range(20))
        task = asyncio.ensure_future(collect(request(*items, **options), calls, concurrency=allowed))
        await scheduled(calls, task.done, random.Random(1))
        return task.result()

    assert len(asyncio.run(main())) == 20
    assert calls.most == most


def a_result(**changes):
    return Result(
        **{"id": "run_1", "session_id": None, "status": "completed", "isolation": Isolation("jail", "strict", ()), **changes}
    )


@pytest.mark.spec("TOL-42")
@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (a_result(value=4, text="4"), "ok", None),
        (a_result(status="failed", stdout="so far", error=ProgramError("KeyError", "'x'")), "error", "program_failed"),
        (a_result(status="limit_exceeded", limit=LimitHit("wall", 1, "s")), "timeout", "limit_exceeded"),
        (a_result(status="limit_exceeded", limit=LimitHit("memory", 1, "MB")), "error", "limit_exceeded"),
        (a_result(status="waiting"), "error", "waiting"),
        (a_result(status="lost"), "error", "lost"),
        (a_result(status="interrupted"), "error", "interrupted"),
    ],
)
def test_a_cell_that_fails_is_a_failed_item_with_its_whole_result(result, status, code):
    got = results_of(request({"id": "c", "code": "f()"}), lambda item, arguments: Outcome.of_result(result))["c"]
    assert (got["status"], (got.get("error") or {}).get("code")) == (status, code)
    assert got["result"]["stdout"] == result.stdout
    assert "value" not in got


def test_an_answer_of_a_tool_is_an_outcome():
    failure = ToolFailure("no")
    assert Outcome.of_answer(ToolAnswer("call_1", b"[1]")) == Outcome(b"[1]")
    assert Outcome.of_answer(ToolAnswer("call_1", error=failure)).error == failure


# ---------------------------------------------------------------------------------------------------- references


@pytest.mark.spec("TOL-44")
def test_references_stand_for_what_others_gave_down_to_the_last_digit():
    given = {
        "items": [{"id": 7}, {"a b": {'"': [True, None]}}],
        "big": 123456789012345678901234567890,
        "ü": "ä",
        "x-y": {"": 0},
    }
    got = results_of(
        request(
            tool("a"),
            tool(
                "b",
                first=ref("a.items[0].id"),
                last=ref('a.items[-1]["a b"]["\\""][0]'),
                deep=[{"in": [ref("a.big"), ref("a.ü")]}],
                odd=ref('a.x-y[""]'),
                literal={"$literal": {"$ref": "a.items", "more": [ref("nobody")]}},
                plain="$ref",
            ),
            {"id": "whole", "tool": "t.f", "arguments": ref("a")},
            {"id": "cell", "code": "x", "inputs": {"x": ref("a.items")}},
            tool("after_cell", x=ref("cell.value[0]"), out=ref("cell.stdout")),
        ),
        lambda item, arguments: (
            given if item.id == "a" else {"value": arguments["x"], "stdout": "said\n"} if item.id == "cell" else arguments
        ),
    )
    assert got["b"]["value"] == {
        "first": 7,
        "last": True,
        "deep": [{"in": [given["big"], "ä"]}],
        "odd": 0,
        "literal": {"$ref": "a.items", "more": [{"$ref": "nobody"}]},
        "plain": "$ref",
    }
    assert got["whole"]["value"] == given
    assert got["cell"]["result"]["value"] == given["items"]
    assert got["after_cell"]["value"] == {"x": {"id": 7}, "out": "said\n"}


@pytest.mark.spec("TOL-44")
def test_numbers_that_no_float_holds_pass_through():
    got = results_of(
        request(tool("a"), tool("b", x=ref("a.x"))),
        lambda item, arguments: Outcome(b'{"x": 1e999}') if item.id == "a" else {"is": arguments["x"] == float("inf")},
    )
    assert got["b"]["value"] == {"is": True}


@pytest.mark.spec("TOL-44")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.price", 'items[1].arguments.x[0]: a.price: a has no .price; its keys: items, name, \\"k k\\", null'),
        ("a.items[2]", "items[1].arguments.x[0]: a.items[2]: a.items is a list of length 2: it has no [2]"),
        ("a.items[-3]", "a.items is a list of length 2: it has no [-3]"),
        ("a.items.id", "a.items is a list of length 2: say which, such as a.items[0].id"),
        ("a.name.first", "a.name is a text: it has no .first"),
        ("a.null.x", "a.null is null: it has no .x"),
        ("a.items[0].x", "a.items[0] is a number: it has no .x"),
        ("a[0]", "a has no [0]; its keys: "),
        ('a["k k"].x', 'a["k k"] has no .x; its keys: none'),
    ],
)
def test_a_reference_to_nothing_says_what_is_there_instead(path, message):
    given = {"items": [1, 2], "name": "n", "k k": {}, "null": None}
    got = results_of(request(tool("a"), tool("b", x=[ref(path)]), tool("c")), lambda item, arguments: given)
    assert got["c"]["status"] == "ok"
    assert (got["b"]["status"], got["b"]["error"]["type"], got["b"]["error"]["code"]) == ("error", "arguments", "bad_reference")
    assert message.replace('\\"k k\\"', "k k") in got["b"]["error"]["message"]


@pytest.mark.slow
@pytest.mark.spec("TOL-44")
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
    st.randoms(),
)
def test_every_place_of_any_value_can_be_referred_to(value, random):
    steps, here, path = [], value, "a"
    while isinstance(here, list | dict) and here and random.random() < 0.8:
        step = random.choice([*here]) if isinstance(here, dict) else random.randrange(len(here))
        steps.append(step)
        path += f"[{json.dumps(step)}]"
        here = here[step]
    if len(steps) > 32 or len(path) > 1000:
        return
    got = results_of(request(tool("a"), tool("b", x=ref(path))), lambda item, arguments: value if item.id == "a" else arguments)
    assert got["b"]["value"] == {"x": here}


@pytest.mark.spec("TOL-44")
def test_what_a_tool_gives_cannot_steer_the_terminal_of_whoever_reads_the_error():
    given = {"\x1b[2J" + "k" * 500: 1, **{f"key{number}": 1 for number in range(5000)}}
    got = results_of(request(tool("a"), tool("b", x=ref("a.x"))), lambda item, arguments: given)
    message = got["b"]["error"]["message"]
    assert message.isprintable()
    assert len(message) < 2000
    assert "and 4981 more" in message


# ---------------------------------------------------------------------------------------------------- attacks


@pytest.mark.slow
@pytest.mark.spec("TOL-45")
def test_references_that_double_what_they_refer_to_end_at_the_size_of_a_request():
    items = [tool("i0", x="y" * 100_000)]
    items += [tool(f"i{number}", a=ref(f"i{number - 1}"), b=ref(f"i{number - 1}")) for number in range(1, 40)]
    sizes = []

    def echo(item, arguments):
        sizes.append(len(json.dumps(arguments)))
        return arguments

    got = results_of(request(*items), echo)
    failed = [name for name, result in got.items() if result["status"] == "error"]
    assert failed == ["i9"], "100 kB, doubled nine times, is over 32 MiB"
    assert "over 33,554,432 bytes of JSON" in got["i9"]["error"]["message"]
    assert max(sizes) <= 33_554_432
    assert [got[f"i{number}"]["because"] for number in range(10, 40)] == ["i9"] * 30


@pytest.mark.slow
@pytest.mark.spec("TOL-45")
def test_references_that_nest_what_they_refer_to_end_at_the_depth_of_a_request():
    items = [tool("i0", x=1), *(tool(f"i{number}", x=ref(f"i{number - 1}")) for number in range(1, 600))]
    got = results_of(request(*items))
    assert {name for name, result in got.items() if result["status"] == "error"} == {"i500"}
    assert got["i500"]["error"]["message"] == "items[500].arguments: nested more than 500 deep"


@pytest.mark.spec("TOL-45")
def test_results_that_are_referred_to_are_kept_up_to_a_bound_and_only_as_long_as_needed(monkeypatch):
    monkeypatch.setattr(batches, "MAX_KEPT_BYTES", 3000)
    large = "y" * 1000
    wide = [tool(f"i{number}") for number in range(5)]
    users = [tool(f"u{number}", *(f"i{other}" for other in range(5)), x=ref(f"i{number}")) for number in range(5)]
    got = results_of(request(*wide, *users), lambda item, arguments: large, concurrency=1)
    assert [got[f"u{number}"]["status"] for number in range(5)] == ["ok", "ok", "error", "error", "error"]
    assert (
        "i2 is too large to be kept" in got["u2"]["error"]["message"]
        or "is too large to be kept" in got["u2"]["error"]["message"]
    )
    chain = [tool("i0"), *(tool(f"i{number}", x=ref(f"i{number - 1}")) for number in range(1, 20))]
    got = results_of(request(*chain), lambda item, arguments: large, concurrency=1)
    assert {result["status"] for result in got.values()} == {"ok"}


BAD = [
    ([], "items: 0 items; a batch has 1 to 1,000.", "items"),
    ([tool(f"i{number}") for number in range(1001)], "items: 1,001 items; a batch has 1 to 1,000.", "items"),
    ([tool("a"), tool("b"), tool("a")], "items[2].id: items[0] has the id 'a', too", "items[2].id"),
    ([tool("")], "items[0].id: '' is no id: use up to 64 letters, digits, `_` and `-`", "items[0].id"),
    ([tool("a.b")], "items[0].id: 'a.b' is no id", "items[0].id"),
    ([tool("a\n")], "items[0].id: 'a�' is no id", "items[0].id"),
    ([tool("a" * 65)], "is no id", "items[0].id"),
    ([{"id": "a"}], "items[0]: an item has either `tool` or `code`", "items[0]"),
    ([{"id": "a", "tool": "t", "code": "1"}], "items[0]: an item has either `tool` or `code`", "items[0]"),
    (
        [{"id": "a", "tool": "t", "inputs": {}}],
        "items[0].inputs: a call of a tool takes `arguments`, not `inputs`",
        "items[0].inputs",
    ),
    ([{"id": "a", "tool": "t", "session_id": "s"}], "items[0].session_id: a call of a tool takes", "items[0].session_id"),
    (
        [{"id": "a", "code": "1", "arguments": {}}],
        "items[0].arguments: a cell takes `inputs`, not `arguments`",
        "items[0].arguments",
    ),
    ([{"id": "a", "tool": "no name"}], "items[0].tool: 'no name' is no name of a tool", "items[0].tool"),
    ([{"id": "a", "tool": "a..b"}], "items[0].tool: 'a..b' is no name of a tool", "items[0].tool"),
    ([{"id": "a", "code": "\0"}], "items[0].code: the source holds a NUL character in line 1", "items[0].code"),
    ([{"id": "a", "code": "1", "timeout_s": -1}], "items[0].timeout_s: -1.0 is out of range", "items[0].timeout_s"),
    ([{"id": "a", "code": "1", "inputs": {"no name": 1}}], "items[0].inputs: 'no name' is not a name", "items[0].inputs.no name"),
    (
        [tool("call_1"), tool("b", "call_2")],
        "items[1].after[0]: there is no item 'call_2'; did you mean 'call_1'?",
        "items[1].after[0]",
    ),
    ([tool("a", to=[{"x": ref("zzz.y")}])], "items[0].arguments.to[0].x: there is no item 'zzz'", "items[0].arguments.to[0].x"),
    (
        [tool("a", to=ref("..")), tool("b")],
        "items[0].arguments.to: '..' does not begin with the id of an item.",
        "items[0].arguments.to",
    ),
    ([tool("a", **{"a b": ref(5)})], 'items[0].arguments["a b"]: a reference is a text, not int', 'items[0].arguments["a b"]'),
    ([tool("a", to={"$ref": "b", "x": 1})], "items[0].arguments.to: `$ref` stands alone in its object", "items[0].arguments.to"),
    ([tool("a", to={"$literal": 1, "x": 1})], "items[0].arguments.to: `$literal` stands alone", "items[0].arguments.to"),
    ([{"id": "a", "tool": "t", "arguments": {"$literal": [1]}}], "items[0].arguments: is to be an object", "items[0].arguments"),
    (
        [{"id": "c", "code": "1"}, tool("a", x=ref("c"))],
        "items[1].arguments.x: c: of a cell say which part: c.value",
        "items[1].arguments.x",
    ),
    (
        [{"id": "c", "code": "1"}, tool("a", x=ref("c.usage"))],
        "c.usage: of a cell say which part: c.value, c.text",
        "items[1].arguments.x",
    ),
    ([tool("a", "a")], "items[0]: a cycle, in which each waits for the next: a → a", "items[0]"),
    ([tool("a", x=ref("a"))], "items[0]: a cycle, in which each waits for the next: a → a", "items[0]"),
    ([tool("x", "c"), tool("a", "b"), tool("b", x=ref("c.v")), tool("c", "a")], ": c → a → b → c", "items[3]"),
    (
        [{"id": "a", "code": "1", "session_id": "s", "after": ["b"]}, {"id": "b", "code": "1", "session_id": "s"}],
        "items[0]: a cycle, in which each waits for the next: a → b → a (cells of one session wait for those listed before)",
        "items[0]",
    ),
]


@pytest.mark.spec("TOL-46")
@pytest.mark.parametrize(("items", "message", "field"), BAD, ids=range(len(BAD)))
def test_a_batch_that_cannot_be_is_refused_with_the_place(items, message, field):
    with pytest.raises(BadRequest) as refused:
        plan(request(*items))
    assert message in str(refused.value)
    assert refused.value.field == field
    assert str(refused.value).isprintable()


@pytest.mark.spec("TOL-46")
def test_a_long_cycle_is_shown_by_its_ends():
    with pytest.raises(BadRequest) as refused:
        plan(request(*(tool(f"i{number}", f"i{(number + 1) % 1000}") for number in range(1000))))
    assert "i0 → i1 → i2 → i3 → i4 → i5 → i6 → i7 → i8 → i9 → (990 more) → i0" in str(refused.value)


@pytest.mark.spec("TOL-46")
@pytest.mark.parametrize(
    "path",
    [
        "a.",
        "a..b",
        "a[",
        "a[0",
        "a[x]",
        "a['b']",
        'a["b]',
        "a[--1]",
        "a[1.5]",
        "a b",
        "a.b c",
        "a[9999999999]",
        'a["\\x"]',
        "a.$ref",
        "a[]",
        "a.b]",
        "a" + ".b" * 33,
        "a" * 65,
        "a." + "b" * 1000,
        "a" + "[" * 500,
        'a["\\ud800"]',
        "a\n",
        " a",
        "ä.b",
        "a.\x1b",
    ],
)
def test_a_reference_that_cannot_be_read_is_refused_before_anything_runs(path):
    with pytest.raises(BadRequest) as refused:
        plan(request(tool("a"), tool("b", x=ref(path))))
    assert refused.value.field == "items[1].arguments.x"
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.mark.spec("TOL-46")
@given(st.text(max_size=200))
def test_no_text_makes_reading_a_reference_fail_otherwise(text):
    for path in (text, f"a.{text}", f"a[{text}]", f'a["{text}"]'):
        with contextlib.suppress(BadRequest):
            plan(
                BatchRequest(
                    items=(batches.BatchItem(id="a", tool="t"), batches.BatchItem(id="b", tool="t", arguments={"x": ref(path)}))
                )
            )


@pytest.mark.slow
@pytest.mark.spec("TOL-46")
def test_what_is_nested_too_deep_or_not_json_or_too_much_is_refused():
    def nested(depth):
        value: object = 1
        for _ in range(depth):
            value = [value]
        return value

    def item(value):
        return BatchRequest(items=(batches.BatchItem(id="a", tool="t", arguments={"x": value}),))

    plan(item(nested(499)))
    plan(item({"$literal": nested(499)}))
    for value in (nested(500), {"$literal": nested(500)}, nested(100_000), {"$literal": nested(100_000)}):
        with pytest.raises(BadRequest, match="nested more than 500 deep|not JSON"):
            plan(item(value))
    with pytest.raises(BadRequest, match="not JSON: a object"):
        plan(item(object()))
    with pytest.raises(BadRequest, match="over 33,554,432 bytes"):
        plan(item("x" * 34_000_000))
    with pytest.raises(BadRequest, match="over 10,000 references in one batch"):
        plan(request(tool("a"), tool("b", x=[ref("a")] * 10_001)))
    with pytest.raises(BadRequest, match="timeout_s: 0.0 is out of range"):
        plan(request(tool("a"), timeout_s=0))


@pytest.mark.spec("TOL-46")
@pytest.mark.parametrize("extra", [{"concurrency": 0}, {"concurrency": 1001}, {"unknown": 1}])
def test_options_that_are_out_of_range_or_unknown_are_refused_while_decoding(extra):
    with pytest.raises(msgspec.ValidationError):
        request(tool("a"), **extra)
    with pytest.raises(msgspec.ValidationError):
        request({**tool("a"), "unknown": 1})


def test_a_result_is_json_as_it_stands():
    async def main():
        calls = Calls(lambda item, arguments: None, at_once=True)
        return [result async for result in run_batch(plan(request(tool("a"), tool("b", x=ref("a.x")))), calls, concurrency=1)]

    first, second = asyncio.run(main())
    encoded = json.loads(msgspec.json.encode(batches.BatchResult((first, second))))["items"]
    assert encoded[0] == {
        "id": "a",
        "status": "ok",
        "value": None,
        "started_ms": first.started_ms,
        "duration_ms": first.duration_ms,
    }
    assert encoded[1]["error"]["type"] == "arguments"
