"""Tenants over HTTP: what is another's does not exist, keys stop, quotas hold, and everything is written down."""

import asyncio
import os
import signal
import subprocess
import sys

import httpx
import pytest
from serving_process import wait_for

from onetrip.settings import Quota, Settings
from onetrip.tenants import Tenants


@pytest.fixture(scope="module")
def tenants(server):
    """Clients of two tenants, and of a reader of the first."""
    clients = {
        "acme": server.client(server.key("acme")),
        "evil": server.client(server.key("evil")),
        "reader": server.client(server.key("acme", "reader")),
        "admin": server.client(server.key("acme", "admin")),
    }
    yield clients
    for client in clients.values():
        client.close()


@pytest.mark.spec("TEN-09")
def test_sessions_runs_files_events_and_keys_of_others_do_not_exist(server, tenants):
    acme, evil = tenants["acme"], tenants["evil"]
    headers = {"Idempotency-Key": "shared"}
    made = acme.post("/v1/sessions", json={"metadata": {"who": "acme"}}, headers=headers).json()
    session = f"/v1/sessions/{made['id']}"
    acme.put(session + "/files/secret", content=b"secret")
    rid = acme.post(session + "/runs", json={"code": "'secret'"}, headers={"Idempotency-Key": "run"}).json()["id"]
    shot = acme.post("/v1/runs", json={"code": "'secret'"}).json()["id"]
    waiting = server.begin(
        session + "/runs", {"code": "import time; time.sleep(60)"}, token=acme.headers["authorization"].split()[1]
    )
    others = [
        ("GET", session), ("DELETE", session), ("POST", session + "/runs"), ("POST", session + "/undo"), ("POST", session + "/redo"),
        ("POST", session + "/fork"), ("GET", session + "/files"), ("GET", session + "/files/secret"), ("PUT", session + "/files/secret"),
        ("DELETE", session + "/files/secret"), ("GET", f"/v1/runs/{rid}"), ("GET", f"/v1/runs/{rid}/events"), ("GET", f"/v1/runs/{shot}"),
        ("POST", f"/v1/runs/{rid}/interrupt"), ("POST", f"/v1/runs/{rid}/tool_results"), ("GET", f"/v1/runs/{waiting}"),
        ("GET", f"/v1/runs/{waiting}/events"), ("POST", f"/v1/runs/{waiting}/interrupt"),
    ]  # fmt: skip
    for method, path in others:
        answers = {"results": [{"id": "call_1", "value": 1}]}
        body = {"code": "1"} if path.endswith("/runs") else answers if path.endswith("/tool_results") else {}
        told = evil.request(method, path, json=None if method == "GET" else body)
        made_up = evil.request(method, _unknown(path), json=None if method == "GET" else body)
        assert (told.status_code, told.json()["code"]) == (404, "not_found"), (method, path, told.text)
        assert _told(told, path) == _told(made_up, _unknown(path))  # nothing tells a foreign one from none
        assert "secret" not in told.text
    assert evil.get("/v1/sessions").json()["sessions"] == []
    assert [one["id"] for one in acme.get("/v1/sessions").json()["sessions"]] == [made["id"]]
    # The same key is another tenant's own.
    assert evil.post("/v1/sessions", json={"metadata": {"who": "acme"}}, headers=headers).json()["id"] != made["id"]
    assert acme.get(f"/v1/runs/{waiting}").status_code == 202
    assert acme.post(f"/v1/runs/{waiting}/interrupt").status_code == 204
    assert acme.get(session + "/files/secret").content == b"secret"
    acme.delete(session)
    assert acme.get(session).status_code == 410
    assert evil.get(session).status_code == 404  # that it was there is nobody else's business


def _unknown(path):
    return "/".join(part[:4] + "0" * 24 if part.startswith(("ses_", "run_")) else part for part in path.split("/"))


def _told(answer, path):
    said = {name: value for name, value in answer.json().items() if name != "request_id"}
    for part in path.split("/"):
        said["detail"] = said["detail"].replace(part, "…") if part.startswith(("ses_", "run_")) else said["detail"]
    return said


@pytest.mark.spec("TEN-10")
def test_a_wrong_or_missing_key_gets_401_in_the_same_words(server):
    key = server.key("acme")
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer x",
        f"Basic {key}",
        f"Bearer {key[:-1]}{int(key[-1], 16) ^ 1:x}",
        f"Bearer {key}x",
        "Bearer ot_000000000000_" + "0" * 64,
    ]
    said = set()
    with httpx.Client(base_url=server.url) as client:
        for header in wrong:
            for path in ("/v1/sessions", "/v1/sessions/ses_0", "/v1/capabilities"):
                answer = client.get(path, headers={} if header is None else {"Authorization": header})
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), header
                said.add(answer.json()["hint"])
        assert client.get("/v1/sessions", headers={"Authorization": f"bearer  {key}"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/openapi.json").status_code == 200
    assert len(said) == 1


@pytest.mark.spec("TEN-11")
def test_a_key_that_is_revoked_by_another_process_stops_within_a_second(server):
    token = server.key("acme")
    with server.client(token) as client, server.store() as store:
        assert client.get("/v1/sessions").status_code == 200
        Tenants(store, Settings()).revoke(token.split("_")[1])
        wait_for(lambda: client.get("/v1/sessions").status_code == 401, 2.0)
        assert client.post("/v1/runs", json={"code": "1"}).json()["code"] == "unauthorized"


@pytest.mark.spec("TEN-12")
def test_roles_hold_and_what_they_forbid_is_403(tenants):
    reader = tenants["reader"]
    session = "/v1/sessions/" + tenants["acme"].post("/v1/sessions", json={}).json()["id"]
    for path in ("/v1/sessions", session, session + "/files", "/v1/capabilities", "/v1/tools"):
        assert reader.get(path).status_code == 200
    for method, path in (
        ("POST", "/v1/runs"), ("POST", "/v1/sessions"), ("DELETE", session), ("POST", session + "/runs"), ("POST", session + "/undo"),
        ("POST", session + "/fork"), ("PUT", session + "/files/x"), ("DELETE", session + "/files/x"),
    ):  # fmt: skip
        refused = reader.request(method, path, json={"code": "1"})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), (method, path)
    assert tenants["admin"].post("/v1/runs", json={"code": "1"}).json()["text"] == "1"
    assert tenants["acme"].delete(session).status_code == 204


@pytest.mark.spec("TEN-13")
def test_quotas_are_429_with_the_seconds_to_wait_and_touch_nobody_else(server, tenants):
    token = server.key("small", quota=Quota(sessions=1, concurrent_runs=1, memory_mb=1500, disk_mb=600, cpu_s_per_day=0.2))
    with server.client(token) as small:

        def refused(answer, field):
            assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (429, "quota_exceeded", field), (
                answer.text
            )
            return answer.headers.get("retry-after")

        big = {"code": "1", "limits": {"memory_mb": 2000}}
        refused(small.post("/v1/runs", json=big), "memory_mb")
        refused(small.post("/v1/runs", json={"code": "1", "limits": {"disk_mb": 1000}}), "disk_mb")
        session = "/v1/sessions/" + small.post("/v1/sessions", json={}).json()["id"]
        assert int(refused(small.post("/v1/sessions", json={}), "sessions")) >= 1
        refused(small.post(session + "/fork"), "sessions")
        running = server.begin(session + "/runs", {"code": "import time; time.sleep(60)"}, token=token)
        refused(small.post("/v1/runs", json={"code": "1", "limits": {"memory_mb": 100, "disk_mb": 10}}), "concurrent_runs")
        assert tenants["acme"].post("/v1/runs", json={"code": "1"}).json()["text"] == "1"
        small.post(f"/v1/runs/{running}/interrupt")
        spent = small.post(session + "/runs", json={"code": "import time\nwhile time.process_time() < 0.5: pass"})
        assert spent.json()["status"] == "completed"
        over = small.post(session + "/runs", json={"code": "1"})
        assert 1 <= int(refused(over, "cpu_s_per_day")) <= 86_400
        small.delete(session)

    quick = server.key("quick", quota=Quota(requests_per_s=1))

    async def flood():
        async with server.aclient(quick) as client:
            answers = await asyncio.gather(*(client.get("/v1/sessions") for _ in range(20)))
            codes = [one.status_code for one in answers]
            assert 2 <= codes.count(200) <= 6
            assert codes.count(429) == 20 - codes.count(200)
            assert all(int(one.headers["retry-after"]) >= 1 for one in answers if one.status_code == 429)

    asyncio.run(flood())


@pytest.mark.spec("TEN-14")
def test_what_is_made_ended_and_refused_is_in_the_audit_log_with_key_and_request(server):
    token = server.key("audited")
    with server.client(token) as client, server.store() as store:
        made = client.post("/v1/sessions", json={}, headers={"X-Request-Id": "req-open"}).json()["id"]
        session = f"/v1/sessions/{made}"
        run = client.post(session + "/runs", json={"code": "1"}, headers={"X-Request-Id": "req-run"}).json()["id"]
        failed = client.post("/v1/runs", json={"code": "1/0"}).json()["id"]
        client.post(session + "/undo")
        client.post(session + "/redo")
        branch = client.post(session + "/fork").json()["sessions"][0]["id"]
        client.post("/v1/sessions", json={"environment": "none-such"}, headers={"X-Request-Id": "req-bad"})
        client.post("/v1/runs", json={"code": "1", "environment": "none-such"})
        client.delete(session, headers={"X-Request-Id": "req-close"})
        client.delete(f"/v1/sessions/{branch}")
        with server.client(server.key("audited", "reader")) as reader:
            reader.post("/v1/runs", json={"code": "1"}, headers={"X-Request-Id": "req-role"})
        done = {run, failed}  # written a moment after they are answered, so not always in order
        wait_for(lambda: done <= {line.target for line in store.audit("audited")})
        lines = [
            line for line in store.audit("audited") if not line.action.startswith(("key.", "tenant.")) and line.target not in done
        ]
        key = token.split("_")[1]
        assert {line.key for line in lines[:-1]} == {key}
        assert [(line.action, line.outcome) for line in lines] == [
            ("session.open", "ok"), ("session.undo", "ok"), ("session.redo", "ok"),
            ("session.fork", "ok"), ("session.open", "unknown_environment"), ("run", "unknown_environment"), ("session.close", "ok"),
            ("session.close", "ok"), ("POST /v1/runs", "forbidden"),
        ]  # fmt: skip
        by_request = {line.request_id: line.target for line in store.audit("audited")}
        assert {line.target: line.outcome for line in store.audit("audited") if line.target in done} == {
            run: "completed",
            failed: "failed",
        }
        assert (by_request["req-open"], by_request["req-close"], by_request["req-run"]) == (made, made, run)
        assert "req-role" in by_request
        client.get("/v1/sessions", headers={"Authorization": "Bearer stolen", "X-Request-Id": "req-stranger"})
        stranger = [line for line in store.audit("") if line.request_id == "req-stranger"]
        assert [(line.key, line.action, line.outcome) for line in stranger] == [("", "GET /v1/sessions", "unauthorized")]
        assert "stolen" not in str(stranger)


@pytest.mark.spec("TEN-14")
def test_a_flood_of_refusals_does_not_fill_the_disk_and_says_how_many_it_left_out(server):
    async def main():
        async with server.aclient("stolen") as client:
            for _ in range(10):
                await asyncio.gather(*(client.get("/v1/sessions") for _ in range(40)))

    with server.store() as store:
        before = len(store.audit("", limit=100_000))
        asyncio.run(main())
        lines = store.audit("", limit=100_000)[before:]
        assert 1 <= len(lines) <= 80

        def next_says_it():
            httpx.get(f"{server.url}/v1/sessions")
            return "more like it" in store.audit("", limit=100_000)[-1].detail

        wait_for(next_says_it, 10)


@pytest.mark.spec("TEN-15")
def test_usage_is_counted_per_tenant_and_day(server):
    token = server.key("counted")
    with server.client(token) as client:
        session = "/v1/sessions/" + client.post("/v1/sessions", json={}).json()["id"]
        client.post(session + "/runs", json={"code": "import time\nwhile time.process_time() < 0.1: pass\nprint('x' * 99)"})
        client.post("/v1/runs", json={"code": "1/0"})
        client.put(session + "/files/f", content=b"x" * 10)
        client.delete(session)
    with server.store() as store:
        row = wait_for(lambda: next((one for one in store.usage("counted") if one.runs == 2), None))
    assert (row.sessions, row.runs, row.failed, row.bytes_in, row.output_bytes) == (1, 2, 1, 10, 100)
    assert 90 <= row.cpu_ms < 10_000
    assert row.wall_ms >= 90


# ------------------------------------------------------------------------------------------------ without keys, and web pages


@pytest.mark.spec("TEN-16")
def test_without_keys_it_serves_loopback_alone_with_a_token_that_ends_with_the_first_key(make_server):
    server = make_server("warm = 0\n", start=False)
    refused = subprocess.run(
        [sys.executable, "-m", "onetrip", "serve", "--host", "0.0.0.0", "--port", "0"],
        env=server.environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "there is no key" in refused.stderr
    assert "Traceback" not in refused.stderr
    server.start()
    assert f"curl -s {server.url}/v1/runs -H 'Authorization: Bearer {server.token}'" in server.log
    assert os.stat(server.data / "token").st_mode & 0o777 == 0o600
    token = server.token
    with server.client(token) as client:
        assert client.get("/v1/sessions").status_code == 200
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 200
        server.kill()
        server.start()
    assert server.token == token  # the same after a restart
    with server.client(token) as client:
        assert client.get("/v1/sessions").status_code == 200
        key = server.key("acme")
        wait_for(lambda: client.get("/v1/sessions").status_code == 401, 3)
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.spec("TEN-17")
def test_no_web_page_can_drive_it(server, make_server):
    with server.client() as client:
        client.headers["Authorization"] = f"Bearer {server.key('acme')}"
        port = server.url.rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0", "[::2]", "", "localhost.evil"):
            for path in ("/v1/sessions", "/healthz", "/docs", "/openapi.json", "/metrics"):
                refused = client.get(path, headers={"Host": host})
                assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), (host, path)
        for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}", "localhost."):
            assert client.get("/v1/sessions", headers={"Host": host}).status_code == 200, host
        for origin in (
            "http://evil.example",
            "null",
            "https://127.0.0.1",
            "file://",
            f"http://localhost:{port}",
            "http://127.0.0.1:1",
        ):
            refused = client.post("/v1/runs", json={"code": "1"}, headers={"Origin": origin})
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), origin
        assert client.get("/v1/sessions", headers={"Origin": server.url}).status_code == 200
    open_to = make_server('warm = 0\nallowed_hosts = ["ot.example"]\nallowed_origins = ["https://ui.example"]\n')
    with open_to.client() as client:
        assert client.get("/v1/sessions", headers={"Host": "ot.example", "Origin": "https://ui.example"}).status_code == 200
        assert client.get("/v1/sessions", headers={"Host": "ot.example", "Origin": "https://other.example"}).status_code == 403


@pytest.mark.spec("CRS-08")
def test_two_servers_never_share_a_folder(make_server):
    first = make_server("warm = 0\n")
    second = subprocess.run(
        [sys.executable, "-m", "onetrip", "serve", "--port", "0"],
        env=first.environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert second.returncode == 4
    assert "another server uses" in second.stderr
    assert "Traceback" not in second.stderr
    with first.client() as client:
        assert client.post("/v1/runs", json={"code": "1"}).json()["text"] == "1"
    first.send(signal.SIGINT)
    assert first.wait() == 0
