"""The death of the server while programs wait for answers, and while its tools work: nothing is lost, nothing is done twice."""

import pytest
from serving_process import alive, wait_for
from tool_house import answer, pending

from onetrip.store import FILE, Store

ASK = {"name": "ask", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}
SEND = "kept = 7\ntry:\n    r = send('ann', until='{until}')\nexcept tools.ToolError as e:\n    r = [e.code, str(e)]\nr"


def open_session(api, **body):
    return "/v1/sessions/" + api.post("/v1/sessions", json=body).raise_for_status().json()["id"]


@pytest.mark.spec("TOL-78")
def test_after_a_kill_the_next_server_shows_the_same_calls_and_takes_their_answers(make_house):
    house = make_house("warm = 0")
    code = "import asyncio\nx = [1, 2]\nx += await asyncio.gather(ask('a'), ask('b'), shop.pay(50))\nx"
    with house.client() as api:
        session = open_session(api, tools=[ASK], idle_timeout_s=1.0)
        waiting = api.post(f"{session}/runs", json={"code": code}).json()
        shot = api.post("/v1/runs", json={"code": "[ask('s')]", "tools": [ASK]}).json()
        calls = pending(waiting)
        assert list(calls) == ["a", "b", 50]
        taken = answer(api, waiting, [{"id": calls["a"], "value": "A"}], "first").json()
    house.kill()
    house.start()
    with house.client() as api:
        idle = open_session(api, idle_timeout_s=1.0)
        wait_for(lambda: api.get(idle).status_code == 410)  # the new server's janitor has looked
        assert api.get(f"/v1/runs/{waiting['id']}", params={"wait_s": 30}).json() == taken  # the same calls, under the same ids
        refused = api.post(f"{session}/runs", json={"code": "1"})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert answer(api, waiting, [{"id": calls["a"], "value": "A"}], "first").json() == taken  # not taken twice
        assert answer(api, waiting, [{"id": calls["a"], "value": "other"}]).status_code == 409
        assert answer(api, waiting, [{"id": calls["b"], "value": "B"}]).json()["status"] == "waiting"
    house.kill()
    house.start()
    with house.client() as api:
        ended = answer(api, waiting, [{"id": calls[50], "approved": True}]).json()
        assert (ended["status"], ended["value"]) == ("completed", [1, 2, "A", "B", "paid 50"])
        assert house.times("pay:50") == 1
        assert api.post(f"{session}/runs", json={"code": "len(x)"}).json()["value"] == 5
        assert answer(api, shot, [{"id": pending(shot)["s"], "value": "S"}]).json()["value"] == ["S"]


@pytest.mark.spec("TOL-78")
def test_calls_that_work_when_the_server_is_killed(make_house):
    """A write whose end is not known is not made again, a read is, and what a write answered just before is given from the journal."""
    house = make_house("warm = 0")
    with house.client() as api:
        write, read, known = (open_session(api) for _ in range(3))
        writing = house.begin(f"{write}/runs", {"code": SEND.format(until="never")})
        reading = house.begin(f"{read}/runs", {"code": "look('sky', until='clear')"})
        answered = house.begin(f"{known}/runs", {"code": SEND.format(until="later").replace("ann", "bob")})
        for what in ("send:ann", "look:sky", "send:bob"):
            house.wait_told(what)
        (call,) = [told[1] for told in house.told() if told[0] == "send:bob"]
    house.kill()
    with Store.open(house.data / FILE) as store:  # as if it had died a moment later: the answer is written, and not yet told
        store.calls.end(answered, call, b'{"id": "%s", "value": "InNlbnQgdG8gYm9iIg=="}' % call.encode())
    house.let("clear")
    house.start()
    with house.client() as api:
        ended = api.get(f"/v1/runs/{writing}", params={"wait_s": 30}).json()
        assert ended["value"][0] == "outcome_unknown", ended
        assert "not made again" in ended["value"][1]
        assert api.get(f"/v1/runs/{reading}", params={"wait_s": 30}).json()["value"] == "saw sky"
        assert api.get(f"/v1/runs/{answered}", params={"wait_s": 30}).json()["value"] == "sent to bob"
        assert [house.times(what) for what in ("send:ann", "look:sky", "send:bob")] == [1, 2, 1]
        assert api.post(f"{write}/runs", json={"code": "kept"}).json()["value"] == 7
        again = api.post(f"{write}/runs", json={"code": "send('eve')"}).json()
        assert again["value"] == "sent to eve"


@pytest.mark.spec("TOL-78")
def test_with_keep_sessions_a_server_that_is_stopped_leaves_its_waiting_runs_to_the_next(make_house):
    house = make_house("warm = 0\nkeep_sessions = true\ndrain_s = 60")
    with house.client() as api:
        session = open_session(api, tools=[ASK])
        waiting = api.post(f"{session}/runs", json={"code": "x = 'before'\n[x, ask('a'), signed('s')]"}).json()
    node = house.node
    assert house.stop() == 0  # it does not drain what waits for somebody else
    assert alive(node)
    house.start()
    with house.client() as api:
        assert house.node == node
        assert api.get(f"/v1/runs/{waiting['id']}", params={"wait_s": 30}).json() == waiting
        ended = answer(api, waiting, [{"id": pending(waiting)["a"], "value": 1}]).json()
        assert ended["value"][:2] == ["before", 1]
        assert house.counted(api, "onetrip_runs_running") == 0


@pytest.mark.spec("TOL-78")
def test_a_server_that_is_stopped_ends_waiting_runs_with_its_sessions(make_house):
    house = make_house("warm = 0")
    with house.client() as api:
        waiting = api.post("/v1/runs", json={"code": "ask('a')", "tools": [ASK]}).json()
    tree = house.tree()
    assert house.stop() == 0
    assert not [pid for pid in tree if alive(pid)]
    house.start()
    with house.client() as api:
        refused = answer(api, waiting, [{"id": pending(waiting)["a"], "value": 1}])
        assert refused.status_code == 404, refused.text
