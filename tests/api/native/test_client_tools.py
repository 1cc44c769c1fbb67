"""Tools of the caller's over HTTP: a run that waits, its events, answers in every order, and answers that are not taken."""

import asyncio
import json

import pytest
from serving_process import parse, wait_for
from tool_house import answer, pending

ASK = {
    "name": "ask",
    "description": "Ask the person.",
    "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}
THREE = "import asyncio\nawait asyncio.gather(ask('a'), ask('b'), ask('c'))"
REFUSED = "onetrip_tool_answers_refused_total"


@pytest.fixture
def asking(user):
    """Path of a session with that tool."""
    path = "/v1/sessions/" + user.post("/v1/sessions", json={"tools": [ASK]}).raise_for_status().json()["id"]
    yield path
    user.delete(path)


def run(api, code, session=None, **body):
    tools = {} if session else {"tools": [ASK]}
    response = api.post(f"{session}/runs" if session else "/v1/runs", json={"code": code, **tools, **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.spec("TOL-74")
def test_a_run_waits_with_all_its_calls_and_takes_answers_in_any_order_and_number(user, asking):
    for session in (None, asking):
        result = run(user, THREE, session)
        calls = pending(result)
        assert sorted(calls) == ["a", "b", "c"]
        assert {call["kind"] for call in result["pending"]} == {"call"}
        assert user.get(f"/v1/runs/{result['id']}").json() == result  # also for who asks later
        result = answer(user, result, [{"id": calls["c"], "value": {"said": "C"}}]).json()
        assert sorted(pending(result)) == ["a", "b"]
        error = {"id": calls["a"], "error": {"message": "no", "type": "denied"}}
        ended = answer(user, result, [{"id": calls["b"], "value": None}, error]).json()
        assert (ended["status"], ended["error"]["type"]) == ("failed", "ToolDenied")
        assert {call["arguments"]["q"]: call["status"] for call in ended["tool_calls"]} == {"a": "denied", "b": "ok", "c": "ok"}
        assert user.get(f"/v1/runs/{result['id']}").json() == ended
    assert run(user, "1 + 1", asking)["value"] == 2


@pytest.mark.spec("TOL-74")
def test_values_arrive_as_they_were_sent(user, asking):
    values = [None, True, -1, 2**63, 1.5, "é\u2028\\u0000 \"'", [], {}, [{"a": [1, {"b": None}]}], "x" * 100_000]
    result = run(user, f"[ask(str(n)) for n in range({len(values)})]", asking)
    for value in values:
        result = answer(user, result, [{"id": result["pending"][0]["id"], "value": value}]).json()
    assert result["value"] == values


@pytest.mark.spec("TOL-74")
def test_events_end_with_a_done_that_waits_and_go_on_with_the_answer(user, asking):
    first = parse(user.post(f"{asking}/runs", json={"code": "print('x')\n[ask('a'), ask('b')]", "stream": True}).text)
    assert [name for _, name, _ in first] == ["started", "stdout", "tool_call", "done"]
    result = first[-1][2]
    second = parse(answer(user, result, [{"id": result["pending"][0]["id"], "value": 1}], stream=True).text)
    assert [name for _, name, _ in second] == ["tool_result", "tool_call", "done"]
    result = second[-1][2]
    assert list(pending(result)) == ["b"]
    again = parse(user.get(f"/v1/runs/{result['id']}/events").text)  # while it waits
    assert again == [*first[:-1], *second]
    accept = {"Accept": "text/event-stream"}
    body = {"results": [{"id": result["pending"][0]["id"], "value": 2}]}
    third = parse(user.post(f"/v1/runs/{result['id']}/tool_results", json=body, headers=accept).text)
    assert [name for _, name, _ in third] == ["tool_result", "done"]
    assert third[-1][2]["value"] == [1, 2]
    whole = parse(user.get(f"/v1/runs/{result['id']}/events").text)
    assert whole == [*first[:-1], *second[:-1], *third]
    numbers = [number for number, _, _ in (*first, *second, *third)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert parse(user.get(f"/v1/runs/{result['id']}/events", headers={"Last-Event-ID": str(first[-1][0])}).text) == [
        *second[:-1],
        *third,
    ]


@pytest.mark.spec("TOL-74")
def test_who_does_not_want_to_wait_asks_later(user):
    result = run(user, "ask('a')")
    taken = answer(user, result, [{"id": result["pending"][0]["id"], "value": 5}], wait=False)
    assert (taken.status_code, taken.json()["status"], taken.headers["retry-after"]) == (202, "running", "1")
    assert user.get(f"/v1/runs/{result['id']}", params={"wait_s": 60}).json()["value"] == 5


@pytest.mark.spec("TOL-74")
def test_while_it_waits_its_session_takes_no_cell_and_an_interrupt_ends_it(user, asking):
    result = run(user, "x = 1\nx = ask('a')", asking)
    refused = user.post(f"{asking}/runs", json={"code": "1"}, headers={"Idempotency-Key": "second"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert result["id"] in refused.json()["detail"]
    assert user.post(f"/v1/runs/{result['id']}/interrupt").status_code == 204
    ended = wait_for(
        lambda: (found := user.get(f"/v1/runs/{result['id']}").json())["status"] not in ("waiting", "running") and found
    )
    assert ended["status"] == "interrupted"
    assert answer(user, result, [{"id": result["pending"][0]["id"], "value": 5}]).status_code == 409
    assert user.post(f"{asking}/runs", json={"code": "x"}, headers={"Idempotency-Key": "second"}).json()["value"] == 1


# ---------------------------------------------------------------------------------------------------- answers that are not taken


@pytest.mark.spec("TOL-75")
def test_forged_double_and_late_answers_are_refused_and_counted_and_change_nothing(house, user, asking):
    result = run(user, THREE, asking)
    calls = pending(result)

    def refused(results, status, code):
        before = house.counted(user, REFUSED, code=code)
        found = answer(user, result, results)
        assert (found.status_code, found.json()["code"]) == (status, code), found.text
        assert house.counted(user, REFUSED, code=code) == before + 1

    good = {"id": calls["a"], "value": "A"}
    refused([good, {"id": "call_" + "0" * 24, "value": 1}], 400, "bad_request")
    refused([good, {"id": "", "value": 1}], 400, "bad_request")
    refused([good, good], 400, "bad_request")
    assert user.get(f"/v1/runs/{result['id']}").json() == result  # of all these, nothing was taken
    assert sorted(pending(answer(user, result, [good]).json())) == ["b", "c"]
    refused([good], 409, "conflict")
    refused([{"id": calls["b"], "value": 1}, good], 409, "conflict")
    ended = answer(user, result, [{"id": calls[q], "value": q.upper()} for q in "bc"]).json()
    assert ended["value"] == ["A", "B", "C"]
    refused([good], 409, "conflict")
    assert answer(user, "run_" + "0" * 24, [good]).status_code == 404


@pytest.mark.spec("TOL-75")
def test_the_ids_of_one_run_are_of_no_use_in_another(user):
    one, other = run(user, "ask('a')"), run(user, "ask('a')")
    assert one["pending"][0]["id"] != other["pending"][0]["id"]
    assert answer(user, other, [{"id": one["pending"][0]["id"], "value": 1}]).status_code == 400
    for result in (one, other):
        assert answer(user, result, [{"id": result["pending"][0]["id"], "value": 1}]).json()["value"] == 1


@pytest.mark.spec("TOL-75")
@pytest.mark.parametrize(
    "body",
    [
        b'{"results": [{"id": "%s", "value": {"a": 1,}}]}',
        b'{"results": [{"id": "%s", "value": NaN}]}',
        b'{"results": [{"id": "%s", "value": "\xff"}]}',
        b'{"results": [{"id": "%s", "value": "\\ud800"}]}',
        b'{"results": [{"id": "%s", "value": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
        b'{"results": [{"id": "%s", "value": 1, "extra": 1}]}',
        b'{"results": [{"id": "%s", "error": {}}]}',
        b'{"results": [{"id": "%s", "error": {"message": "x", "type": "explosion"}}]}',
        b'{"results": [{"value": 1}]}',
        b'{"results": []}',
        b'{"results": {"id": "%s"}}',
        b"[]",
        b"",
    ],
)
def test_a_body_that_cannot_be_is_400_and_counted_and_the_run_waits_on(house, user, asking, body):
    result = run(user, "ask('a')", asking)
    call = result["pending"][0]["id"]
    before = house.counted(user, REFUSED)
    content = body.replace(b"%s", call.encode())
    refused = user.post(f"/v1/runs/{result['id']}/tool_results", content=content)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request"), refused.text
    assert house.counted(user, REFUSED) == before + 1
    assert answer(user, result, [{"id": call, "value": 1}]).json()["value"] == 1


@pytest.mark.spec("TOL-75")
def test_what_is_too_large_is_refused_and_the_run_waits_on(house, user, asking):
    result = run(user, "len(ask('a'))", asking)
    call = result["pending"][0]["id"]
    before = house.counted(user, REFUSED)
    over = answer(user, result, [{"id": call, "value": "x" * (64 << 20)}])
    assert (over.status_code, over.json()["code"]) == (413, "too_large")
    over = answer(user, result, [{"id": call, "value": "x" * (33 << 20)}])
    assert (over.status_code, over.json()["code"]) == (400, "bad_request")
    assert house.counted(user, REFUSED) == before + 2
    assert answer(user, result, [{"id": call, "value": "x" * (4 << 20)}]).json()["value"] == 4 << 20


@pytest.mark.spec("TOL-75")
def test_answers_under_one_key_are_taken_once_and_answered_the_same(user, asking):
    result = run(user, "[ask('a'), ask('b')]", asking)
    first = [{"id": result["pending"][0]["id"], "value": 1}]
    taken = answer(user, result, first, "one").json()
    assert list(pending(taken)) == ["b"]
    assert answer(user, result, first, "one").json() == taken
    events = parse(user.post(f"/v1/runs/{result['id']}/tool_results", json={"results": first}, headers={"Idempotency-Key": "one", "Accept": "text/event-stream"}).text)  # fmt: skip
    assert events[-1][1:] == ("done", taken)
    other = answer(user, result, [{"id": result["pending"][0]["id"], "value": 2}], "one")
    assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")
    second = [{"id": taken["pending"][0]["id"], "value": 2}]
    ended = answer(user, result, second, "two").json()
    assert ended["value"] == [1, 2]
    for results, key in ((first, "one"), (second, "two")):
        assert answer(user, result, results, key).json() == ended  # also when it is long over


@pytest.mark.spec("TOL-75")
def test_a_key_does_not_make_a_late_or_wrong_answer_look_as_if_it_were_taken(user, asking):
    result = run(user, "[ask('a'), ask('b')]", asking)
    call = result["pending"][0]["id"]
    for _ in range(2):  # and not when it is sent again
        assert answer(user, result, [{"id": "call_no", "value": 1}], "wrong").status_code == 400
    taken = answer(user, result, [{"id": call, "value": 1}], "wrong").json()  # the key is free: nothing was done under it
    for _ in range(2):
        assert answer(user, result, [{"id": call, "value": 9}], "late").status_code == 409
    ended = answer(user, result, [{"id": taken["pending"][0]["id"], "value": 2}]).json()
    assert ended["value"] == [1, 2]
    for _ in range(2):
        assert answer(user, result, [{"id": call, "value": 9}], "later").status_code == 409


@pytest.mark.spec("TOL-75")
def test_of_many_who_answer_the_same_call_at_once_one_is_taken(house, key):
    async def main():
        async with house.aclient(key) as api:
            made = await api.post("/v1/runs", json={"code": "[ask('a'), ask('b')]", "tools": [ASK]})
            result = made.json()
            call = result["pending"][0]["id"]

            async def one(n):
                body = {"results": [{"id": call if n % 4 else "call_forged", "value": n}]}
                return await api.post(f"/v1/runs/{result['id']}/tool_results", json=body)

            found = await asyncio.gather(*(one(n) for n in range(24)))
            taken = [n for n, response in enumerate(found) if response.status_code == 200]
            assert len(taken) == 1
            assert {response.status_code for response in found} == {200, 400, 409}
            waiting = found[taken[0]].json()
            assert [call["arguments"]["q"] for call in waiting["pending"]] == ["b"]
            now = (await api.get(f"/v1/runs/{result['id']}")).json()
            assert now == waiting
            body = {"results": [{"id": waiting["pending"][0]["id"], "value": "B"}]}
            ended = (await api.post(f"/v1/runs/{result['id']}/tool_results", json=body)).json()
            assert ended["value"] == [taken[0], "B"]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- declarations


@pytest.mark.spec("TOL-76")
@pytest.mark.parametrize(
    ("tools", "field"),
    [
        ([{"name": "a b"}], "tools[0].name"),
        ([{"name": "ok"}, {"name": "1st"}], "tools[1].name"),
        ([{"name": "class"}], "tools[0].name"),
        ([{"name": "shop..find"}], "tools[0].name"),
        ([{"name": ""}], "tools[0].name"),
        ([{"name": "é"}], "tools[0].name"),
        ([{"name": "x" * 201}], "tools[0].name"),
        ([{"name": "search"}], "tools[0].name"),
        ([{"name": "ToolError"}], "tools[0].name"),
        ([{"name": "__class__"}], "tools[0].name"),
        ([{"name": "a"}, {"name": "a"}], "tools[1].name"),
        ([{"name": "a"}, {"name": "a.b"}], "tools"),
        ([{"name": "shop"}], "tools"),  # a namespace of the server's tools
        ([{"name": "add.one"}], "tools"),  # below one of the server's tools
        ([{"name": "a", "input_schema": {"type": "string"}}], "tools[0].input_schema"),
        ([{"name": "a", "input_schema": {"type": "nonsense"}}], "tools[0].input_schema"),
        ([{"name": "a", "input_schema": {"properties": {"x": {"$ref": "https://example.com/s.json"}}}}], "tools[0].input_schema"),
        ([{"name": "a", "input_schema": {"properties": {"x": {"$ref": "#/no/where"}}}}], "tools[0].input_schema"),
        ([{"name": "a", "input_schema": {"properties": {"x": {"pattern": "(a+)+\\1"}}}}], "tools[0].input_schema"),
        ([{"name": "a", "input_schema": []}], "tools[0].input_schema"),
        ([{"name": "a", "effect": "maybe"}], "tools[0].effect"),
        ([{"name": "a", "approval": True}], "tools[0].approval"),
        ([{"name": "a", "side": "server"}], "tools[0].side"),
        ([{"name": f"t{n}"} for n in range(2001)], "tools"),
        ([{"description": "x"}], "tools[0].name"),
    ],
    ids=lambda part: json.dumps(part)[:60] if isinstance(part, list) else part,
)
def test_a_declaration_that_cannot_be_is_400_with_its_place(user, place, tools, field):
    for path, body in (("/v1/sessions", {}), ("/v1/runs", {"code": "1"}), (f"{place}/runs", {"code": "1"})):
        refused = user.post(path, json={**body, "tools": tools})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request"), (path, refused.text[:300])
        assert refused.json()["field"].startswith(field), (path, refused.text[:300])


@pytest.mark.spec("TOL-76")
def test_a_declared_tool_wins_over_a_server_tool_of_the_same_name(house, user):
    result = run(user, "add(1, 2)", tools=[{"name": "add", "input_schema": {"properties": {"a": {}, "b": {}}}}])
    assert answer(user, result, [{"id": result["pending"][0]["id"], "value": "mine"}]).json()["value"] == "mine"


@pytest.mark.spec("TOL-76")
def test_arguments_that_do_not_fit_never_reach_the_caller(user, asking):
    for code in ("ask(5)", "ask()", "ask('x', more=1)", "ask(q=None)"):
        result = run(user, code, asking)
        assert (result["status"], result["error"]["type"]) == ("failed", "ToolArgumentError"), code
    assert run(user, "1", asking)["value"] == 1
