"""Events of runs over SSE: order, resumption, readers that go away, that are slow, and that never read."""

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
from serving_process import alive, descendants, parse, rss_bytes, wait_for

COUNT = "import time\nfor i in range(5): print(i, flush=True); time.sleep(0.02)\n6 * 7"
FLOOD = "for i in range(200_000): print(i, 'x' * 90)"  # 19 MB: more than all buffers between the program and its reader
SLOW = "import time\nprint('begun', flush=True)\ntime.sleep(60)"


def send(server, method, path, body=None, **headers):
    """A request on a socket of ours, which decides itself when it reads."""
    sock = server.raw(1 << 20)
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {server.token}",
        f"Content-Length: {len(content)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    return sock


def read_until(sock, wanted):
    data = b""
    while wanted not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


@pytest.mark.spec("HTT-04")
def test_events_come_in_order_with_ids_that_count_up_and_the_result_last(api, session):
    for path, body in (("/v1/runs", {"code": COUNT, "stream": True}), (session + "/runs", {"code": COUNT, "stream": True})):
        response = api.post(path, json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = parse(response.text)
        assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
        assert [events[0][1], events[-1][1]] == ["started", "done"]
        assert "".join(data["text"] for _, name, data in events if name == "stdout") == "0\n1\n2\n3\n4\n"
        result = events[-1][2]
        assert (result["status"], result["text"], result["id"]) == ("completed", "42", events[0][2]["run_id"])
        assert api.get(f"/v1/runs/{result['id']}").json() == result
    asked = api.post("/v1/runs", json={"code": "1"}, headers={"Accept": "text/event-stream"})
    assert parse(asked.text)[-1][1] == "done"


@pytest.mark.spec("HTT-04")
def test_what_cannot_begin_has_a_status_of_its_own_also_for_who_asked_for_a_stream(api):
    refused = api.post("/v1/runs", json={"code": "1", "stream": True, "environment": "none-such"})
    assert (refused.status_code, refused.json()["code"]) == (400, "unknown_environment")


@pytest.mark.spec("HTT-05")
def test_a_stream_is_resumed_after_its_last_event_id_while_it_runs_and_afterwards(server, api, session):
    rid = server.begin(session + "/runs", {"code": "import time\nfor i in range(40): print(i, flush=True); time.sleep(0.02)"})
    seen, last = [], 0
    while not seen or seen[-1][1] != "done":  # a connection that breaks after every second event
        with api.stream("GET", f"/v1/runs/{rid}/events", headers={"Last-Event-ID": str(last)}) as response:
            text = ""
            for part in response.iter_text():
                text += part
                if len(parse(text)) >= 2:
                    break
        seen += parse(text)[:2]
        last = seen[-1][0]
    assert [number for number, _, _ in seen] == list(range(1, len(seen) + 1))
    printed = "".join(data["text"] for _, name, data in seen if name == "stdout")
    assert printed == "".join(f"{i}\n" for i in range(40))
    again = parse(api.get(f"/v1/runs/{rid}/events").text)
    assert again == seen
    assert parse(api.get(f"/v1/runs/{rid}/events", params={"after": last - 1}).text) == seen[-1:]
    assert api.get(f"/v1/runs/{rid}/events", headers={"Last-Event-ID": str(last)}).status_code == 204
    for wrong in ("x", "-1", "1.0", "٣".encode()):
        assert api.get(f"/v1/runs/{rid}/events", headers={"Last-Event-ID": wrong}).json()["field"] == "Last-Event-ID"


@pytest.mark.spec("HTT-06")
def test_a_reader_that_goes_away_leaves_the_run_alone_unless_it_asked_for_its_end(server, api, session):
    rid = server.begin(session + "/runs", {"code": "import time; time.sleep(0.3); 'whole'"})
    assert api.get(f"/v1/runs/{rid}", params={"wait_s": 30}).json()["text"] == "'whole'"
    rid = server.begin(session + "/runs", {"code": SLOW, "on_disconnect": "interrupt"})
    assert api.get(f"/v1/runs/{rid}", params={"wait_s": 30}).json()["status"] == "interrupted"
    with contextlib.closing(
        send(server, "POST", session + "/runs", {"code": SLOW, "on_disconnect": "interrupt"}, Idempotency_Key="g")
    ):
        wait_for(lambda: api.get(session).json()["running"] == 1)
    wait_for(lambda: api.get(session).json()["running"] == 0)  # without a stream, too


@pytest.mark.spec("HTT-06")
def test_who_leaves_before_the_run_had_its_turn_interrupts_it_too(server, api, session):
    first = server.begin(session + "/runs", {"code": SLOW})
    body = {"code": "never = 1", "on_disconnect": "interrupt"}
    for stream in (True, False):
        with contextlib.closing(send(server, "POST", session + "/runs", body | {"stream": stream})):
            wait_for(lambda: api.get(session).json()["running"] == 2)
        wait_for(lambda: api.get(session).json()["running"] == 1)
    api.post(f"/v1/runs/{first}/interrupt")
    assert api.post(session + "/runs", json={"code": "'never' in globals()"}).json()["value"] is False


def writers(server):
    """Processes of sandboxes that wait in the kernel for room in a pipe (proc_pid_wchan(5))."""
    found = []
    for pid in descendants(server.node):
        with contextlib.suppress(OSError):
            if "pipe_write" in Path(f"/proc/{pid}/wchan").read_text():
                found.append(pid)
    return found


@pytest.mark.spec("HTT-07")
@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may read where another user's process waits in the kernel (proc_pid_wchan)"
)
def test_a_slow_reader_slows_the_program_down(server):
    body = {"code": FLOOD, "stream": True, "limits": {"output_mb": 64}}
    with contextlib.closing(send(server, "POST", "/v1/runs", body, Connection="close")) as sock:
        sock.settimeout(60)
        stuck = wait_for(lambda: writers(server), 30, "the program did not wait for its reader")
        assert rss_bytes(server.pid) < 300 << 20
        data = b"".join(iter(lambda: sock.recv(1 << 20), b""))  # now it is read
        assert not set(stuck) & set(writers(server))
    assert data.count(b"199999 xxx") >= 1
    assert b'"status":"completed"' in data


@pytest.mark.spec("HTT-08")
def test_a_reader_that_never_reads_is_dropped_and_leaves_nothing(make_server):
    server = make_server("stall_s = 0.5\nwarm = 0\n")
    with server.client() as api:
        session = "/v1/sessions/" + api.post("/v1/sessions", json={"checkpoints": 0}).json()["id"]
        before = len(os.listdir(f"/proc/{server.pid}/fd"))
        body = {"code": FLOOD, "stream": True, "on_disconnect": "interrupt", "limits": {"output_mb": 64}}
        socks = [send(server, "POST", "/v1/runs", body) for _ in range(3)]
        del body["limits"]
        socks.append(send(server, "POST", session + "/runs", body))
        # They are never read and never closed.
        wait_for(lambda: api.get(session).json()["running"] == 0, 60, "the runs of who never reads did not end")
        wait_for(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, 30, "connections were left")
        assert api.post(session + "/runs", json={"code": "1"}).json()["text"] == "1"
        for sock in socks:
            sock.close()
        assert alive(server.node)


@pytest.mark.spec("HTT-04")
def test_many_readers_of_one_run_each_get_every_event(server, api):
    rid = server.begin("/v1/runs", {"code": "import time\nfor i in range(10): print(i, flush=True); time.sleep(0.03)"})
    socks = [send(server, "GET", f"/v1/runs/{rid}/events", None, Connection="close") for _ in range(20)]
    wanted = parse(api.get(f"/v1/runs/{rid}/events").text)
    for sock in socks:
        with sock:
            data = b""
            while part := sock.recv(65536):
                data += part
        body = re.sub(rb"(?m)^[0-9a-f]+\r\n", b"", data.partition(b"\r\n\r\n")[2]).replace(b"\r\n", b"").decode()
        assert parse(body) == wanted
