"""What survives the death of each process: the server's, a zygote's, the node's; a full disk; and that nothing is left after the last."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving_process import alive, async_wait_for, cmdline, descendants, wait_for

CLIENTS = 16


@pytest.mark.spec("CRS-01", "CRS-02")
def test_a_server_killed_under_load_loses_no_session_no_undo_no_file_and_no_run(make_server):
    server = make_server()

    async def load():
        """16 users, each in the middle of something when the server dies."""
        async with server.aclient(limits=httpx.Limits(max_connections=None)) as api:
            sessions = []
            for number in range(CLIENTS):
                made = await api.post("/v1/sessions", json={"metadata": {"n": str(number)}})
                path = f"/v1/sessions/{made.json()['id']}"
                await api.post(path + "/runs", json={"code": f"n, log = {number}, ['first']"})
                await api.post(path + "/runs", json={"code": "log.append('second')"})
                await api.put(path + "/files/f.txt", content=str(number).encode())
                sessions.append(path)
            ids = []
            streams = contextlib.AsyncExitStack()
            async with streams:
                for number, path in enumerate(sessions):
                    body = {
                        "code": "import time; time.sleep(2); log.append('in flight'); print('printed'); len(log)",
                        "stream": True,
                    }
                    response = await streams.enter_async_context(
                        api.stream("POST", path + "/runs", json=body, headers={"Idempotency-Key": f"flight-{number}"})
                    )
                    async for line in response.aiter_lines():
                        if line.startswith("data: "):
                            ids.append(line.partition('"run_id":"')[2].partition('"')[0])
                            break
                server.kill()
            return sessions, ids

    sessions, ids = asyncio.run(load())
    node = server.node
    server.start()
    assert server.node == node  # the same one, adopted
    assert server.adopted == CLIENTS
    with server.client() as api:
        assert {one["id"] for one in api.get("/v1/sessions").json()["sessions"]} == {path[13:] for path in sessions}
        for number, (path, rid) in enumerate(zip(sessions, ids, strict=True)):
            result = api.get(f"/v1/runs/{rid}", params={"wait_s": 60}).json()
            assert (result["status"], result["text"], result["stdout"]) == ("completed", "3", "printed\n")
            body = {"code": "import time; time.sleep(2); log.append('in flight'); print('printed'); len(log)", "stream": True}
            again = api.post(path + "/runs", json=body | {"stream": False}, headers={"Idempotency-Key": f"flight-{number}"})
            assert again.status_code in {200, 409}  # `stream` is part of the request
            same = api.post(path + "/runs", json=body, headers={"Idempotency-Key": f"flight-{number}"}).text
            assert f'"id":"{rid}"' in same  # it ran once, and is answered the same
            events = api.get(f"/v1/runs/{rid}/events", headers={"Last-Event-ID": "1"}).text
            assert events.startswith("id: 2\n")
            assert "event: done" in events
            assert (
                api.post(path + "/runs", json={"code": "n, log"}).json()["text"]
                == f"({number}, ['first', 'second', 'in flight'])"
            )
            assert api.get(path + "/files/f.txt").content == str(number).encode()
            assert api.post(path + "/undo", json={"cells": 3}).status_code == 200
            assert api.post(path + "/runs", json={"code": "log"}).json()["text"] == "['first']"
            assert api.get(path).json()["metadata"] == {"n": str(number)}
        with server.store() as store:
            wait_for(lambda: store.usage()[-1].runs >= CLIENTS * 5)  # written a moment after they are answered
            runs = [line.target for line in store.audit(limit=10_000) if line.action == "run"]
            assert len(runs) == len(set(runs)) == store.usage()[-1].runs == CLIENTS * 5  # each exactly once


@pytest.mark.spec("CRS-01")
def test_a_server_killed_while_it_opens_and_forks_answers_the_same_keys_afterwards(make_server):
    server = make_server("warm = 0\n")
    with server.client() as api:
        origin = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        api.post(origin + "/runs", json={"code": "x = 1"})

    async def half():
        async with server.aclient() as api:
            opening = asyncio.create_task(api.post("/v1/sessions", json={}, headers={"Idempotency-Key": "open"}))
            forking = asyncio.create_task(api.post(origin + "/fork", json={"count": 2}, headers={"Idempotency-Key": "fork"}))
            with server.store() as store:
                while len(store._rows("SELECT * FROM idempotency")) < 2:  # noqa: ASYNC110 -- the server's database says it
                    await asyncio.sleep(0)
            server.kill()
            await asyncio.gather(opening, forking, return_exceptions=True)

    asyncio.run(half())
    server.start()
    with server.client() as api:
        opened = api.post("/v1/sessions", json={}, headers={"Idempotency-Key": "open"})
        assert opened.status_code == 201, opened.text
        branches = api.post(origin + "/fork", json={"count": 2}, headers={"Idempotency-Key": "fork"})
        assert branches.status_code == 201, branches.text
        for one in [opened.json(), *branches.json()["sessions"]]:
            assert api.post(f"/v1/sessions/{one['id']}/runs", json={"code": "1"}).json()["text"] == "1"
        assert len(api.get("/v1/sessions").json()["sessions"]) == 4


@pytest.mark.spec("CRS-03")
def test_a_killed_zygote_costs_only_its_sandboxes_which_say_so_and_is_replaced(make_server):
    server = make_server("warm = 0\n")
    with server.client() as api:
        lost = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        api.post(lost + "/runs", json={"code": "x = 1"}).raise_for_status()
        rid = server.begin(lost + "/runs", {"code": "import time; time.sleep(60)"})
        reduced = api.post("/v1/sessions", json={"isolation_floor": "reduced"}).json()["id"]
        launcher = {pid for pid in descendants(server.node) if _parent(pid) == server.node}
        zygotes = [pid for pid in descendants(server.node) if _parent(pid) in launcher and "island" in cmdline(pid)]
        assert zygotes, [cmdline(pid) for pid in descendants(server.node)]
        for pid in zygotes:
            os.kill(pid, signal.SIGKILL)
        result = api.get(f"/v1/runs/{rid}", params={"wait_s": 30})
        assert (result.status_code, result.json()["status"], result.json()["session"]["survived"]) == (200, "lost", False), (
            result.text
        )
        gone = api.post(lost + "/runs", json={"code": "x"})
        assert (gone.status_code, gone.json()["code"]) == (410, "session_gone")
        assert api.get(lost).status_code == 410
        assert len(gone.json()["detail"]) > 30  # the reason
        assert api.post("/v1/runs", json={"code": "1 + 1"}).json()["text"] == "2"
        fresh = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        assert api.post(fresh + "/runs", json={"code": "1"}).json()["text"] == "1"
        assert api.get("/readyz").status_code == 200
        assert reduced


@pytest.mark.spec("CRS-03")
@pytest.mark.parametrize("how", ["its zygote is killed", "it is closed"])
def test_cells_that_wait_for_a_session_which_ends_are_told_why(make_server, how):
    server = make_server("warm = 0\n")

    async def main():
        async with server.aclient() as api:
            session = "/v1/sessions/" + (await api.post("/v1/sessions", json={})).json()["id"]
            running = asyncio.create_task(
                api.post(session + "/runs", json={"code": "open('go', 'w')\nimport time; time.sleep(60)"})
            )
            await async_wait_for(lambda: _files(api, session))
            waiting = [asyncio.create_task(api.post(session + "/runs", json={"code": "1"})) for _ in range(8)]
            await asyncio.gather(*(api.get(session) for _ in waiting))  # those asked before are waiting by now
            if how == "it is closed":
                await api.delete(session)
            else:
                (launcher,) = (pid for pid in descendants(server.node) if _parent(pid) == server.node)
                os.kill(next(pid for pid in descendants(launcher) if _parent(pid) == launcher), signal.SIGKILL)
            assert (await running).json()["status"] in {"lost", "interrupted"}
            for one in waiting:
                told = (await one).json()
                assert told.get("code") == "session_gone", told
                assert ("closed by its owner" if how == "it is closed" else "zygote") in told["detail"]

    asyncio.run(main())


def _parent(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])
    return 0


@pytest.mark.spec("CRS-04")
def test_a_killed_node_costs_the_sessions_which_say_so_and_the_server_is_ready_again(make_server):
    server = make_server("warm = 1\n")
    with server.client() as api:
        session = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        done = api.post(session + "/runs", json={"code": "'saved'"}).json()
        rid = server.begin(session + "/runs", {"code": "import time; time.sleep(60)"})
        node, tree = server.node, server.tree()
        groups = server.groups(node)
        os.kill(node, signal.SIGKILL)
        lost = api.get(f"/v1/runs/{rid}", params={"wait_s": 30})
        assert (lost.status_code, lost.json()["status"]) == (200, "lost")
        gone = api.get(session)
        assert (gone.status_code, gone.json()["code"]) == (410, "session_gone")
        assert "died" in gone.json()["detail"]
        assert api.get(f"/v1/runs/{done['id']}").json() == done
        events = api.get(f"/v1/runs/{rid}/events").text
        assert "event: done" in events
        assert '"status":"lost"' in events
        wait_for(lambda: api.get("/readyz").status_code == 200, 60)
        server.nodes.add(server.node)
        assert server.node != node
        assert api.post("/v1/runs", json={"code": "1"}).json()["text"] == "1"
        wait_for(lambda: not [pid for pid in tree if alive(pid)], 30, "processes of the dead node live on")
    server.stop()
    left = {group for group in groups if os.path.isdir(group)}
    assert left == set(), "control groups of the dead node are left"


async def _files(api, session):
    return (await api.get(session + "/files")).json()["files"]


async def _not_ready(api):
    answer = await api.get("/readyz")
    return answer if answer.status_code != 200 else None


@pytest.mark.spec("CRS-05")
def test_sigterm_drains_what_runs_refuses_what_is_new_and_leaves_nothing(make_server):
    server = make_server("warm = 1\ndrain_s = 30\n")
    mounts = Path("/proc/self/mountinfo").read_text()

    async def main():
        async with server.aclient() as api:
            session = "/v1/sessions/" + (await api.post("/v1/sessions", json={})).json()["id"]
            running = asyncio.create_task(
                api.post(session + "/runs", json={"code": "open('go', 'w')\nimport time; time.sleep(2); 'drained'"})
            )
            await async_wait_for(lambda: _files(api, session))
            tree, groups = server.tree(), server.groups(server.node)
            assert groups or os.geteuid() != 0
            server.send(signal.SIGTERM)
            ready = await async_wait_for(lambda: _not_ready(api))
            assert ready.json()["status"] == "draining"
            for path, body in (("/v1/runs", {"code": "1"}), ("/v1/sessions", {}), (session + "/runs", {"code": "1"})):
                refused = await api.post(path, json=body)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            assert (await api.get(session)).status_code == 200
            assert (await running).json()["text"] == "'drained'"
            return tree, groups

    tree, groups = asyncio.run(main())
    assert server.wait() == 0
    assert not [pid for pid in tree if alive(pid)]
    assert {group for group in groups if os.path.isdir(group)} == set()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(os.listdir(server.data)) == ["lock", "node.log", "onetrip.db", "token"]
    server.start()
    with server.client() as api, server.store() as store:
        assert server.adopted == 0
        assert store._rows("SELECT ended_why FROM sessions") == [("the server was stopped",)]
        assert api.get("/v1/sessions").json()["sessions"] == []


@pytest.mark.spec("CRS-05")
def test_what_is_not_done_in_time_is_told_so_and_a_second_signal_does_not_wait(make_server):
    server = make_server("warm = 0\ndrain_s = 300\n")

    async def main():
        async with server.aclient() as api:
            session = "/v1/sessions/" + (await api.post("/v1/sessions", json={})).json()["id"]
            running = asyncio.create_task(
                api.post(session + "/runs", json={"code": "open('go', 'w')\nimport time; time.sleep(60)"})
            )
            waiting = asyncio.create_task(api.post(session + "/runs", json={"code": "1"}))
            await async_wait_for(lambda: _files(api, session))
            server.send(signal.SIGTERM)
            await async_wait_for(lambda: _not_ready(api))
            server.send(signal.SIGTERM)
            for one in (running, waiting):
                told = await one
                assert (told.status_code, told.json()["code"]) == (503, "unavailable")
                assert "stopped" in told.json()["detail"]

    asyncio.run(main())
    assert server.wait() == 0


@pytest.mark.spec("CRS-06")
def test_with_keep_sessions_they_live_on_after_sigterm_for_the_next_server(make_server):
    server = make_server("warm = 0\nkeep_sessions = true\nlease_s = 60\n")
    with server.client() as api:
        session = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        api.post(session + "/runs", json={"code": "kept = 'kept'"})
    node = server.node
    assert server.stop() == 0
    assert alive(node)
    server.start()
    assert (server.node, server.adopted) == (node, 1)
    with server.client() as api:
        assert api.post(session + "/runs", json={"code": "kept"}).json()["text"] == "'kept'"
    server.send(signal.SIGINT)  # Ctrl-C ends everything
    assert server.wait() == 0
    assert not alive(node)


@pytest.mark.spec("CRS-06")
def test_a_node_without_a_server_ends_after_its_lease(make_server):
    server = make_server("warm = 0\nlease_s = 1\n")
    with server.client() as api:
        api.post("/v1/sessions", json={}).raise_for_status()
    tree = server.tree()
    server.kill()
    wait_for(lambda: not [pid for pid in tree if alive(pid)], 30, "the node did not end")
    assert not (server.data / "node.sock").exists()
    server.start()
    with server.client() as api:
        assert api.get("/v1/sessions").json()["sessions"] == []


@pytest.mark.spec("CRS-07")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk (mount of a tmpfs)")
def test_a_full_disk_refuses_by_name_loses_no_result_and_is_made_good_when_there_is_space(make_server):
    server = make_server("warm = 0\n", start=False)
    data = server.data
    data.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(data)], check=True)
    try:
        server.start()
        with server.client() as api:
            session = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
            (data / "ballast").write_bytes(b"")
            with contextlib.suppress(OSError), open(data / "ballast", "wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            results = [api.post(session + "/runs", json={"code": f"'x' * 20_000 + '{i}'"}) for i in range(20)]
            assert {one.status_code for one in results} == {200}  # the caller has its result
            refused = api.post("/v1/runs", json={"code": "1"}, headers={"Idempotency-Key": "full"})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
            assert "disk" in refused.json()["hint"]
            assert api.post("/v1/sessions", json={}).json()["code"] == "unavailable"
            last = results[-1].json()
            assert api.get(f"/v1/runs/{last['id']}").json() == last
            (data / "ballast").unlink()

            def saved():
                with server.store() as store:
                    return all(store.load_run(one.json()["id"], None) for one in results)

            wait_for(saved, 20, "results were not saved when there was space again")
            assert api.post("/v1/runs", json={"code": "1"}, headers={"Idempotency-Key": "full"}).json()["text"] == "1"
        server.send(signal.SIGINT)
        server.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


@pytest.mark.spec("CRS-08")
def test_a_port_that_is_taken_is_named_and_nothing_is_left(make_server):
    server = make_server("warm = 0\n", start=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["-m", "onetrip", "serve", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(
            [sys.executable, *command], env=server.environ, capture_output=True, text=True, check=False, timeout=60
        )
    assert ended.returncode == 4
    assert "Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert server.find_nodes() == set()
