"""Batches over HTTP: graphs of tool calls and cells, streamed, refused, sent twice, and left alone by their caller."""

import asyncio
import contextlib
import json
import threading

import pytest
from serving_process import async_wait_for, parse, wait_for


def batch(api, *items, key=None, **options):
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.post("/v1/batch", json={"items": list(items), **options}, headers=headers)


def call(name, tool, after=(), /, **arguments):
    return {"id": name, "tool": tool, "arguments": arguments, "after": list(after)}


def by_id(response):
    assert response.status_code == 200, response.text
    return {item["id"]: item for item in response.json()["items"]}


@pytest.mark.spec("TOL-79")
def test_a_graph_of_calls_and_cells_with_references(user, place):
    found = batch(
        user,
        {"id": "sum", "code": "import json\nsum(prices)", "inputs": {"prices": [{"$ref": "p1"}, {"$ref": "p2"}]}},
        call("f", "find", name="pen", limit=2),
        call("p1", "shop.price", item={"$ref": "f.items[0].name"}),
        call("p2", "shop.price", item={"$ref": "f.items[1].name"}),
        {"id": "one", "code": "seen = [total]", "inputs": {"total": {"$ref": "sum.value"}}, "session_id": place[13:]},
        {"id": "two", "code": "seen.append('two')\nseen", "session_id": place[13:]},
        call("add", "add", a=1, b={"$ref": "f.total"}),
    )
    items = by_id(found)
    assert list(items) == ["sum", "f", "p1", "p2", "one", "two", "add"]  # in the order of the request
    assert {item["status"] for item in items.values()} == {"ok"}, found.text
    assert items["sum"]["result"]["value"] == 2.5
    assert items["two"]["result"]["value"] == [2.5, "two"]
    assert items["add"]["value"] == 3
    assert user.post(f"{place}/runs", json={"code": "seen"}).json()["value"] == [2.5, "two"]


@pytest.mark.spec("TOL-79")
def test_results_are_streamed_as_they_come_and_calls_run_beside_each_other(house, user):
    """`slow` waits for a file that is made only when `quick` has been read."""
    items = [
        call("slow", "look", what="slow-one", until="streamed"),
        call("quick", "add", a=1, b=2),
        call("then", "add", ["slow"], a=2, b=2),
    ]
    text, seen = "", []
    with user.stream("POST", "/v1/batch", json={"items": items, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for part in response.iter_text():
            text += part
            seen = parse(text)
            if [name for _, name, _ in seen] == ["item"]:
                assert seen[0][2]["id"] == "quick"
                house.let("streamed")
    assert [(number, name, data.get("id")) for number, name, data in seen] == [
        (1, "item", "quick"), (2, "item", "slow"), (3, "item", "then"), (4, "done", None),
    ]  # fmt: skip
    assert seen[-1][2] == {"items": 3, "failed": 0}


@pytest.mark.spec("TOL-79")
def test_a_failure_loses_only_what_needed_it(user):
    items = by_id(
        batch(
            user,
            call("bad", "leaves", how="denied"),
            call("needs", "add", a={"$ref": "bad.x"}, b=1),
            call("after", "add", ["needs"], a=1, b=1),
            call("other", "add", a=1, b=1),
            {"id": "broken", "code": "1 / 0"},
            {"id": "fine", "code": "'fine'"},
            call("nowhere", "add", a={"$ref": "other.no.such"}, b=1),
            call("wrong", "add", a="x", b=1),
            call("hangs", "hang"),
            call("waits", "shop.pay", amount=60),
            call("none", "no.such"),
        )
    )
    assert {name: item["status"] for name, item in items.items()} == {
        "bad": "denied", "needs": "skipped", "after": "skipped", "other": "ok", "broken": "error", "fine": "ok", "nowhere": "error",
        "wrong": "error", "hangs": "timeout", "waits": "denied", "none": "error",
    }  # fmt: skip
    assert [items[name]["because"] for name in ("needs", "after")] == ["bad", "bad"]
    assert items["broken"]["result"]["error"]["type"] == "ZeroDivisionError"
    assert "approval" in items["waits"]["error"]["message"]


@pytest.mark.spec("TOL-79")
@pytest.mark.parametrize(
    ("items", "field", "words"),
    [
        ([call("a", "add", ["b"]), call("b", "add", ["c"]), call("c", "add", ["a"])], "items", ["a", "b", "c"]),
        ([call("a", "add", a={"$ref": "b"}), call("b", "add", a={"$ref": "a"})], "items", ["a", "b"]),
        ([call("a", "add", ["a"])], "items[0]", ["a → a"]),
        ([call("a", "add"), call("a", "add")], "items[1].id", ["a"]),
        ([call("a", "add", ["nobody"])], "items[0].after", ["nobody"]),
        ([call("a", "add", a={"$ref": "nobody.x"})], "items[0].arguments.a", ["nobody"]),
        ([{"id": "a"}], "items[0]", []),
        ([{"id": "a", "tool": "add", "code": "1"}], "items[0]", []),
        ([{"id": "a b", "code": "1"}], "items[0].id", []),
        ([{"id": "a", "code": "1", "timeout_s": -1}], "items[0].timeout_s", []),
        ([{"id": "a", "tool": "add", "session_id": "s"}], "items[0]", []),
        ([], "items", []),
        ([{"id": "a", "code": "1", "extra": 1}], "items[0].extra", []),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_is_400_with_the_place_before_anything_is_called(house, user, items, field, words):
    items = [*items, call("sends", "send", to="nobody-yet")] if items else []
    refused = batch(user, *items)
    assert not house.times("send:nobody-yet")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    assert refused.json()["field"].startswith(field), refused.text
    for word in words:
        assert word in refused.json()["detail"]
    streamed = batch(user, *items, stream=True)
    assert (streamed.status_code, streamed.json()["code"]) == (400, "bad_request")  # also for who asked for a stream


@pytest.mark.spec("TOL-79")
def test_a_batch_has_the_permissions_of_its_key_and_its_tenants_sessions(house, user, place):
    with house.client(house.cli_key("acme", "--tools", "shop.*")) as buyer:
        items = by_id(batch(buyer, call("may", "shop.price", item="four"), call("may_not", "add", a=1, b=1)))
        assert [items[name]["status"] for name in items] == ["ok", "error"]
        assert "no server tool 'add'" in items["may_not"]["error"]["message"]
    with house.client(house.cli_key("strangers")) as stranger:
        items = by_id(batch(stranger, {"id": "theirs", "code": "1", "session_id": place[13:]}))
        assert items["theirs"]["error"]["code"] == "not_found"


@pytest.mark.spec("TOL-79")
def test_under_a_key_writes_and_cells_are_made_once_and_another_batch_is_409(house, user, place):
    items = [
        call("w", "send", to="once"),
        {"id": "c", "code": "n = globals().get('n', 0) + 1\nn", "session_id": place[13:]},
        call("bad", "shop.order", item=5),
    ]
    first = by_id(batch(user, *items, key="batch"))
    again = by_id(batch(user, *items, key="batch"))
    for found in (first, again):
        assert (found["w"]["value"], found["c"]["result"]["value"], found["bad"]["status"]) == ("sent to once", 1, "error")
    assert first["c"]["result"] == again["c"]["result"]
    assert house.times("send:once") == 1
    other = batch(user, call("w", "shop.order", item="x"), key="batch")
    assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")
    assert not house.times("order:x")
    assert by_id(batch(user, *items, key="new"))["c"]["result"]["value"] == 2
    assert house.times("send:once") == 2


@pytest.mark.spec("TOL-79")
def test_the_same_batch_twice_at_once_makes_its_writes_once(house, key):
    async def main():
        async with house.aclient(key) as api:

            def send():
                body = {
                    "items": [
                        call("w", "send", to="both", until="both-wait"),
                        {"id": "c", "code": "import os\nos.urandom(8).hex()"},
                    ]
                }
                return asyncio.create_task(api.post("/v1/batch", json=body, headers={"Idempotency-Key": "both"}))

            one = send()
            await async_wait_for(told)
            other = send()
            done, _ = await asyncio.wait((one, other), timeout=0.2)
            assert not done
            house.let("both-wait")
            first, second = (by_id(response) for response in await asyncio.gather(one, other))
            assert first["w"]["value"] == second["w"]["value"] == "sent to both"
            assert first["c"]["result"] == second["c"]["result"]
            assert house.times("send:both") == 1

    async def told():
        return house.times("send:both")

    asyncio.run(main())


@pytest.mark.spec("TOL-79")
@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_ends_what_runs(house, key, user, place, stream):
    what = f"leaving-{stream}"
    items = [
        call("look", "look", what=what, until="never"),
        {"id": "cell", "code": "open('begun', 'w')\nimport time\ntime.sleep(600)", "session_id": place[13:]},
        call("later", "send", ["look"], to=what),
    ]
    leave = threading.Event()

    def ask():
        async def main():
            async with house.aclient(key) as api:
                asking = asyncio.create_task(api.post("/v1/batch", json={"items": items, "stream": stream}))
                await asyncio.to_thread(leave.wait)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking

        asyncio.run(main())

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        house.wait_told(f"look:{what}")
        wait_for(lambda: user.get(f"{place}/files/begun").status_code == 200)
    finally:
        leave.set()
        caller.join()
    house.wait_told(f"cancelled:{what}")
    wait_for(lambda: user.get(place).json()["running"] == 0, 30, "the cell was not interrupted")
    assert not house.times(f"send:{what}")
    assert user.post(f"{place}/runs", json={"code": "'alive'"}).json()["value"] == "alive"


@pytest.mark.spec("TOL-79")
def test_a_write_that_was_cut_off_is_not_made_again_under_its_key(house, key, user):
    async def main():
        async with house.aclient(key) as api:
            body = {"items": [call("w", "send", to="cut", until="never")]}
            asking = asyncio.create_task(api.post("/v1/batch", json=body, headers={"Idempotency-Key": "cut"}))
            await async_wait_for(told)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    async def told():
        return house.times("send:cut")

    asyncio.run(main())

    def again():
        found = by_id(batch(user, call("w", "send", to="cut", until="never"), key="cut"))["w"]
        assert found["status"] == "error", json.dumps(found)
        return found["error"]

    assert again()["code"] == "outcome_unknown"
    assert house.times("send:cut") == 1


@pytest.mark.spec("TOL-79")
def test_a_batch_ends_with_its_time(user):
    items = by_id(
        batch(user, call("look", "look", what="time", until="never"), call("then", "add", ["look"], a=1, b=1), timeout_s=0.5)
    )
    assert [(items[name]["status"], items[name]["error"]["code"]) for name in ("look", "then")] == [
        ("timeout", "batch_timeout"),
        ("skipped", "dependency_failed"),
    ]
