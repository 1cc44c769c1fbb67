"""Overload and expiry over HTTP: refused fast and with the seconds to wait; sessions end with a reason that is told."""

import asyncio
import time

import httpx
import pytest
from serving_process import async_wait_for, wait_for

SLOW = {"code": "import time; time.sleep(60)"}


@pytest.mark.spec("ADM-06")
def test_more_than_the_queue_takes_is_503_at_once_and_what_waits_too_long_too(make_server):
    server = make_server("warm = 1\nmax_running = 2\nmax_queue = 3\nqueue_timeout_s = 1.5\n")

    async def main():
        async with server.aclient() as api:
            shots = [asyncio.create_task(api.post("/v1/runs", json=SLOW | {"timeout_s": 4})) for _ in range(2)]
            await _metric(api, "onetrip_runs_running", 2)
            waiting = [asyncio.create_task(api.post("/v1/runs", json={"code": "1"})) for _ in range(3)]
            await _metric(api, "onetrip_runs_queued", 3)
            began = time.monotonic()
            refused = await asyncio.gather(*(api.post("/v1/runs", json={"code": "1"}) for _ in range(30)))
            took = time.monotonic() - began
            assert {(one.status_code, one.json()["code"]) for one in refused} == {(503, "overloaded")}
            assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
            assert took < 1.4  # none of them waited
            streamed = await api.post("/v1/runs", json={"code": "1", "stream": True})
            assert (streamed.status_code, streamed.json()["code"]) == (503, "overloaded")
            late = await asyncio.gather(*waiting)
            assert {one.status_code for one in late} == {503}
            assert "waited too long" in late[0].json()["detail"]
            done = await asyncio.gather(*shots)
            assert {one.json()["limit"]["name"] for one in done} == {"wall"}
            assert (await api.post("/v1/runs", json={"code": "1"})).json()["text"] == "1"  # it never collapsed

    asyncio.run(main())


async def _metric(api, name, value):
    async def shown():
        return f"\n{name} {value:.1f}\n" in (await api.get("/metrics")).text

    await async_wait_for(shown)


@pytest.mark.spec("ADM-07")
def test_an_idle_session_ends_and_says_so_while_one_that_works_does_not(make_server):
    server = make_server("warm = 0\n")
    with server.client() as api:
        idle, busy = (
            "/v1/sessions/" + api.post("/v1/sessions", json={"idle_timeout_s": 1.0, "checkpoints": 0}).json()["id"]
            for _ in range(2)
        )
        rid = server.begin(busy + "/runs", {"code": "import time; time.sleep(3); 'worked'"})
        gone = wait_for(lambda: (answer := api.get(idle)).status_code == 410 and answer, 20)
        assert gone.json()["code"] == "session_gone"
        assert "idle for 1 s (idle_timeout_s)" in gone.json()["detail"]
        for method, path in (
            ("POST", "/runs"),
            ("POST", "/undo"),
            ("POST", "/fork"),
            ("GET", "/files"),
            ("GET", "/files/x"),
            ("PUT", "/files/x"),
        ):
            told = api.request(method, idle + path, json={"code": "1"} if path == "/runs" else None)
            assert (told.status_code, told.json()["detail"]) == (410, gone.json()["detail"]), path
        assert api.delete(idle).status_code == 410
        assert api.get(f"/v1/runs/{rid}", params={"wait_s": 20}).json()["text"] == "'worked'"
        wait_for(lambda: api.get(busy).status_code == 410, 20)
        with server.store() as store:
            ended = [(line.key, line.target, line.outcome) for line in store.audit() if line.action == "session.end"]
        assert ("server", idle.rpartition("/")[2], "idle") in ended


@pytest.mark.spec("ADM-08")
def test_when_memory_runs_short_the_session_idle_for_longest_ends_first(make_server):
    server = make_server("warm = 0\nmin_free_memory_mb = 1_000_000_000\nmin_idle_s = 1.0\n")
    with server.client() as api:
        paths = []
        for _ in range(10):  # more than end at once
            paths.append("/v1/sessions/" + api.post("/v1/sessions", json={"checkpoints": 0}).json()["id"])
        running = server.begin(paths[0] + "/runs", {"code": "import time; time.sleep(60)"})
        api.post(paths[1] + "/runs", json={"code": "1"}).raise_for_status()  # used last
        gone = wait_for(lambda: (answer := api.get(paths[2])).status_code == 410 and answer, 20)
        assert "memory ran short" in gone.json()["detail"]
        wait_for(lambda: api.get(paths[1]).status_code == 410, 20)
        with server.store() as store:
            order = [line.target for line in store.audit(limit=10_000) if line.action == "session.end"]
        assert order[:8] == [path.rpartition("/")[2] for path in paths[2:]]
        assert order[-1] == paths[1].rpartition("/")[2]
        assert api.get(paths[0]).status_code == 200  # it works, so it is not idle
        api.post(f"/v1/runs/{running}/interrupt")


@pytest.mark.spec("ADM-09")
def test_more_sessions_than_the_server_takes_are_503_and_closing_one_makes_room(make_server):
    server = make_server("warm = 0\nmax_sessions = 2\n")
    with server.client() as api:
        opened = ["/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"] for _ in range(2)]
        for path, body in (("/v1/sessions", {}), (opened[0] + "/fork", {"count": 1})):
            refused = api.post(path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
        assert api.post("/v1/runs", json={"code": "1"}).json()["text"] == "1"
        server.kill()
        server.start()
    with server.client() as api:
        assert server.adopted == 2
        assert api.post("/v1/sessions", json={}).status_code == 503  # adopted ones count
        api.delete(opened[0])
        assert api.post("/v1/sessions", json={}).status_code == 201


@pytest.mark.spec("ADM-06")
def test_a_session_takes_a_bounded_number_of_waiting_cells(server, api, session):
    first = server.begin(session + "/runs", SLOW)

    async def main():
        async with server.aclient(limits=httpx.Limits(max_connections=None)) as client:
            sent = [asyncio.create_task(client.post(session + "/runs", json={"code": "1"})) for _ in range(70)]
            done, _ = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            assert {one.result().json()["code"] for one in done} == {"overloaded"}
            await client.post(f"/v1/runs/{first}/interrupt")
            answers = [one.json() for one in await asyncio.gather(*sent)]
        assert [one.get("text") for one in answers].count("1") == 64

    asyncio.run(main())
