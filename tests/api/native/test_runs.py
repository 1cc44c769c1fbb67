"""Runs over HTTP: results, interruption, idempotency, and what is left to who asks later."""

import asyncio
import threading

import pytest
from serving_process import wait_for

SLOW = "import time\nprint('begun', flush=True)\ntime.sleep(60)"


def run(api, path="/v1/runs", **body):
    return api.post(path, json=body)


@pytest.mark.spec("HTT-01")
def test_a_program_that_fails_is_a_result_with_status_200(api, session):
    result = run(api, code="print('hi'); 6 * 7")
    assert result.status_code == 200
    assert result.headers["location"] == f"/v1/runs/{result.json()['id']}"
    assert (result.json()["status"], result.json()["text"], result.json()["stdout"]) == ("completed", "42", "hi\n")
    failed = run(api, code="1 / 0")
    assert failed.status_code == 200
    assert failed.json()["error"]["type"] == "ZeroDivisionError"
    over = run(api, code="while True: pass", timeout_s=0.3).json()
    assert (over["status"], over["limit"]["name"]) == ("limit_exceeded", "wall")
    assert run(api, session + "/runs", code="x = [1]").json()["session"]["checkpoint"] is True
    assert run(api, session + "/runs", code="x.append(y); x", inputs={"y": {"ä": None}}).json()["value"] == [1, {"ä": None}]
    assert api.post(session + "/undo").json() == {"cells": 1, "note": None}
    assert api.post(session + "/redo", json={"cells": 1}).json()["cells"] == 2
    branches = api.post(session + "/fork", json={"count": 2})
    assert branches.status_code == 201
    for branch in branches.json()["sessions"]:
        assert run(api, f"/v1/sessions/{branch['id']}/runs", code="len(x)").json()["text"] == "2"
        assert api.delete(f"/v1/sessions/{branch['id']}").status_code == 204


@pytest.mark.spec("HTT-01")
def test_values_beyond_what_frames_can_carry_arrive_whole(api):
    for value in (2**70, -(2**300), 1.5e300, "\U0001f600\0", [[[]]] * 50):
        assert run(api, code="x", inputs={"x": value}).json()["value"] == value
    deep = "[" * 700 + "]" * 700
    refused = api.post("/v1/runs", content='{"code": "x", "inputs": {"x": ' + deep + "}}")
    assert (refused.status_code, refused.json()["field"]) == (400, "inputs")


@pytest.mark.spec("HTT-02")
def test_a_run_can_be_fetched_while_it_runs_and_after(server, api, session):
    rid = server.begin(session + "/runs", {"code": SLOW})
    pending = api.get(f"/v1/runs/{rid}")
    assert (pending.status_code, pending.json()["status"]) == (202, "running")
    assert pending.headers["retry-after"] == "1"
    assert api.post(f"/v1/runs/{rid}/interrupt").status_code == 204
    done = api.get(f"/v1/runs/{rid}", params={"wait_s": 30})
    assert (done.status_code, done.json()["status"], done.json()["stdout"]) == (200, "interrupted", "begun\n")
    assert api.get(f"/v1/runs/{rid}").json() == done.json()
    assert api.post(f"/v1/runs/{rid}/interrupt").status_code == 204  # too late, and no mistake
    for wrong in ("61", "-1", "x", "1.5", "9" * 30):
        assert api.get(f"/v1/runs/{rid}", params={"wait_s": wrong}).json()["field"] == "wait_s"
    assert run(api, session + "/runs", code="1").json()["text"] == "1"


@pytest.mark.spec("HTT-02")
def test_a_cell_that_waits_for_its_turn_can_be_interrupted_at_once(server, api, session):
    first = server.begin(session + "/runs", {"code": SLOW})
    answers = []

    def wait():
        with server.client() as other:
            answers.append(other.post(session + "/runs", json={"code": "never = 1"}, headers={"Idempotency-Key": "waits"}).json())

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(lambda: api.get(session).json()["running"] == 2)
    with server.store() as store:  # who waits for the answer does not know the id yet
        rid = store._rows("SELECT target FROM idempotency WHERE key = 'waits'")[0][0]
    assert api.get(f"/v1/runs/{rid}").json()["status"] == "queued"
    assert api.post(f"/v1/runs/{rid}/interrupt").status_code == 204
    waiting.join(30)
    assert (answers[0]["id"], answers[0]["status"], answers[0]["session"]["survived"]) == (rid, "interrupted", True)
    assert api.get(f"/v1/runs/{rid}").json() == answers[0]
    assert api.get(f"/v1/runs/{first}").status_code == 202  # the first goes on
    api.post(f"/v1/runs/{first}/interrupt")
    assert run(api, session + "/runs", code="'never' in globals()").json()["value"] is False


@pytest.mark.spec("HTT-03")
def test_the_same_key_runs_once_however_often_and_at_once_it_is_sent(server, session):
    async def main():
        async with server.aclient() as api:
            headers = {"Idempotency-Key": "append"}
            body = {"code": "try: n += 1\nexcept NameError: n = 1\nn"}
            async with asyncio.TaskGroup() as group:
                sent = [group.create_task(api.post(session + "/runs", json=body, headers=headers)) for _ in range(12)]
            answers = [one.result().json() for one in sent]
            assert {one["id"] for one in answers} == {answers[0]["id"]}
            assert answers[0]["text"] == "1"
            again = await api.post(session + "/runs", json=body, headers=headers)
            assert again.json() == answers[0]
            other = await api.post(session + "/runs", json={"code": "n"}, headers=headers)
            assert (other.status_code, other.json()["code"]) == (409, "conflict")
            assert (await api.post("/v1/runs", json=body, headers=headers)).status_code == 409
            for key in ("", "x" * 256, "ü".encode()):
                refused = await api.post("/v1/runs", json=body, headers={"Idempotency-Key": key})
                assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key")

    asyncio.run(main())


@pytest.mark.spec("HTT-03")
def test_sessions_branches_and_undo_are_made_once_per_key(server, session):
    async def main():
        async with server.aclient() as api:
            for _ in range(3):
                await api.post(session + "/runs", json={"code": "pass"})
            for path, body in (("/v1/sessions", {}), (session + "/fork", {"count": 2}), (session + "/undo", {"cells": 1})):
                headers = {"Idempotency-Key": path[-12:]}
                async with asyncio.TaskGroup() as group:
                    sent = [group.create_task(api.post(path, json=body, headers=headers)) for _ in range(4)]
                answers = [one.result() for one in sent if one.result().status_code != 503]  # undo: "at work, come back"
                assert len({one.text for one in answers}) == 1, path
                assert (await api.post(path, json=body, headers=headers)).json() == answers[0].json()
            assert (await api.post(session + "/undo", headers={"Idempotency-Key": "other"})).json()["cells"] == 1

    asyncio.run(main())


@pytest.mark.spec("HTT-03")
def test_a_result_under_a_key_outlives_its_session(api):
    session = "/v1/sessions/" + api.post("/v1/sessions", json={"checkpoints": 0}).json()["id"]
    headers = {"Idempotency-Key": "last"}
    body = {"code": "import os; os._exit(7)"}
    first = api.post(session + "/runs", json=body, headers=headers).json()
    assert first["session"]["survived"] is False
    assert api.post(session + "/runs", json=body, headers=headers).json() == first
    gone = api.post(session + "/runs", json=body, headers={"Idempotency-Key": "next"})
    assert (gone.status_code, gone.json()["code"]) == (410, "session_gone")
    assert "ended" in gone.json()["detail"]


@pytest.mark.spec("HTT-03")
def test_a_run_that_came_to_nothing_is_begun_again_under_its_key(api):
    headers, body = {"Idempotency-Key": "nothing"}, {"code": "1", "environment": "no-such-one"}
    for _ in range(2):
        refused = api.post("/v1/runs", json=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (400, "unknown_environment")
