"""Runs that wait for their caller beside those that run: slots, quotas, idle sessions, and how long anybody waits."""

import asyncio
import time

import pytest
from serving_process import Server, async_wait_for, wait_for
from tool_house import answer, pending

from onetrip.settings import Quota

ASK = {"name": "ask", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}
BUSY = "import os, time\nopen('here', 'w')\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'"


@pytest.fixture(scope="module")
def narrow(needs_environment):
    """A server with one slot."""
    server = Server("warm = 1\nmax_running = 1\nqueue_timeout_s = 1.5\n")
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def api(narrow):
    with narrow.client() as api:
        yield api


@pytest.fixture
def sessions(api):
    """Two of them."""
    made = ["/v1/sessions/" + api.post("/v1/sessions", json={"tools": [ASK]}).json()["id"] for _ in range(2)]
    yield made
    for path in made:
        api.delete(path)


def gauge(api, name):
    return next(float(line.rpartition(" ")[2]) for line in api.get("/metrics").text.splitlines() if line.startswith(name + " "))


@pytest.mark.spec("TOL-77")
def test_a_run_that_waits_gives_its_only_slot_to_others_and_takes_one_to_go_on(narrow, api, sessions):
    waiting = api.post(f"{sessions[0]}/runs", json={"code": "x = ask('a')\nx * 2"}).json()
    call = pending(waiting)["a"]
    assert api.post(f"{sessions[1]}/runs", json={"code": "6 * 7"}).json()["value"] == 42  # others go on
    busy = narrow.begin(f"{sessions[1]}/runs", {"code": BUSY})
    wait_for(lambda: api.get(f"{sessions[1]}/files/here").status_code == 200)
    refused = answer(api, waiting, [{"id": call, "value": 4}], "late slot")  # there is no slot for what the answer sets going
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert api.get(f"/v1/runs/{waiting['id']}").json()["status"] == "waiting"
    api.put(f"{sessions[1]}/files/go", content=b"")
    assert answer(api, waiting, [{"id": call, "value": 4}], "late slot").json()["value"] == 8  # the same key, and now it is taken
    assert api.get(f"/v1/runs/{busy}", params={"wait_s": 30}).json()["value"] == "done"


@pytest.mark.spec("TOL-77")
def test_an_answer_waits_for_a_slot_in_the_queue(narrow, sessions):
    async def main():
        async with narrow.aclient() as api:
            waiting = (await api.post(f"{sessions[0]}/runs", json={"code": "ask('a')"})).json()
            busy = asyncio.create_task(api.post(f"{sessions[1]}/runs", json={"code": BUSY}))
            await async_wait_for(lambda: exists(api, f"{sessions[1]}/files/here"))
            body = {"results": [{"id": pending(waiting)["a"], "value": "A"}]}
            answering = asyncio.create_task(api.post(f"/v1/runs/{waiting['id']}/tool_results", json=body))
            await async_wait_for(lambda: queued(api))
            await api.put(f"{sessions[1]}/files/go", content=b"")
            assert (await answering).json()["value"] == "A"
            assert (await busy).json()["value"] == "done"

    async def exists(api, path):
        return (await api.get(path)).status_code == 200

    async def queued(api):
        return "onetrip_runs_queued 1" in (await api.get("/metrics")).text

    asyncio.run(main())


@pytest.mark.spec("TOL-77")
@pytest.mark.parametrize("way", ["it gives up", "nobody answers"])
def test_a_program_that_goes_on_by_itself_has_no_slot_for_nothing(narrow, api, sessions, way):
    """Waiting is no way around the number of programs at once."""
    wait = "import asyncio\ntry:\n    await asyncio.wait_for(ask('a'), 0.3)\nexcept TimeoutError:\n    pass\n"
    options = {}
    if way == "nobody answers":
        wait = "try:\n    ask('a')\nexcept TimeoutError:\n    pass\n"
        options = {"wait_s": 0.3}
    session = "/v1/sessions/" + api.post("/v1/sessions", json={"tools": [ASK], **options}).json()["id"]
    waiting = api.post(f"{session}/runs", json={"code": wait + BUSY}).json()
    assert waiting["status"] == "waiting"
    wait_for(lambda: api.get(f"{session}/files/here").status_code == 200)
    wait_for(lambda: gauge(api, "onetrip_runs_running") == 1)
    assert api.get(f"/v1/runs/{waiting['id']}").status_code == 202  # it runs, and does not wait any more
    refused = api.post(f"{sessions[0]}/runs", json={"code": "1"})
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert answer(api, waiting, [{"id": pending(waiting)["a"], "value": 1}]).status_code == 409
    api.put(f"{session}/files/go", content=b"")
    assert api.get(f"/v1/runs/{waiting['id']}", params={"wait_s": 30}).json()["value"] == "done"
    wait_for(lambda: gauge(api, "onetrip_runs_running") == 0)
    assert api.post(f"{sessions[0]}/runs", json={"code": "1"}).json()["value"] == 1
    api.delete(session)


@pytest.mark.spec("TOL-77")
def test_wait_s_is_how_long_a_call_waits_and_not_longer(api):
    code = "try:\n    r = ask('a')\nexcept TimeoutError as e:\n    r = [type(e).__name__, e.retryable, str(e)]\nr"
    began = time.monotonic()
    waiting = api.post("/v1/runs", json={"code": code, "tools": [ASK], "wait_s": 0.5}).json()
    assert waiting["status"] == "waiting"
    ended = wait_for(lambda: (found := api.get(f"/v1/runs/{waiting['id']}").json())["status"] == "completed" and found)
    assert time.monotonic() - began >= 0.5
    assert ended["value"] == ["ToolTimeout", True, "ask: nobody answered within 0.5 s"]
    assert answer(api, waiting, [{"id": pending(waiting)["a"], "value": 1}]).status_code == 409
    for wrong in (0, -1, 30 * 86_400 + 1, "1"):
        refused = api.post("/v1/runs", json={"code": "1", "wait_s": wrong})
        assert (refused.status_code, refused.json()["field"]) == (400, "wait_s")


@pytest.mark.spec("TOL-77")
def test_a_session_that_waits_is_not_idle(api):
    idle = "/v1/sessions/" + api.post("/v1/sessions", json={"idle_timeout_s": 0.5}).json()["id"]
    session = "/v1/sessions/" + api.post("/v1/sessions", json={"tools": [ASK], "idle_timeout_s": 0.5}).json()["id"]
    waiting = api.post(f"{session}/runs", json={"code": "x = 5\nx + ask('a')"}).json()
    wait_for(lambda: api.get(idle).status_code == 410)  # the janitor came by
    idle = "/v1/sessions/" + api.post("/v1/sessions", json={"idle_timeout_s": 0.5}).json()["id"]
    wait_for(lambda: api.get(idle).status_code == 410)
    assert answer(api, waiting, [{"id": pending(waiting)["a"], "value": 6}]).json()["value"] == 11
    wait_for(lambda: api.get(session).status_code == 410)  # and now it is


@pytest.mark.spec("TOL-77")
def test_runs_that_wait_do_not_count_as_running_against_a_quota_and_those_that_go_on_do(make_server):
    server = make_server("warm = 1\n")
    with server.client(server.key("small", quota=Quota(concurrent_runs=1))) as api:
        first, second = ["/v1/sessions/" + api.post("/v1/sessions", json={"tools": [ASK]}).json()["id"] for _ in range(2)]
        waiting = api.post(f"{first}/runs", json={"code": "ask('a')\n" + BUSY}).json()
        assert api.post(f"{second}/runs", json={"code": "1"}).json()["value"] == 1
        taken = answer(api, waiting, [{"id": pending(waiting)["a"], "value": 1}], wait=False)
        assert taken.status_code == 202
        refused = api.post(f"{second}/runs", json={"code": "2"})
        assert (refused.status_code, refused.json()["field"]) == (429, "concurrent_runs")
        api.put(f"{first}/files/go", content=b"")
        assert api.get(f"/v1/runs/{waiting['id']}", params={"wait_s": 30}).json()["value"] == "done"
