"""Requests that no good client sends: each gets the error of the table or the end of its connection, never a traceback, and nothing is lost."""

import contextlib
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_process import Server, rss_bytes, wait_for


@pytest.fixture(scope="module")
def strict(needs_environment):
    """A server whose patience is short."""
    here = Server("warm = 0\nhead_s = 0.5\nstall_s = 1.0\nmax_body_mb = 1\n")
    try:
        yield here.start()
    finally:
        here.close()


def told(answer, status, code):
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) >= {"type", "title", "status", "detail", "code", "hint", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "msgspec" not in answer.text
    return body


@pytest.mark.spec("BAD-11")
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"}", b"nonsense", b"[]", b"1", b"null", b'"text"', b'{"code": "1"', b'{"code": "1"}{}', b'{"code": "\xff"}', b"\xff\xfe{}",
        b'{"code": "\\ud800"}', b'{"code": NaN}', b'{"code": 1}', b'{"code": null}', b'{"code": ["1"]}', b'{"code": "\\u0000"}',
        b"[" * 100_000, b'{"code":"1","inputs":{"a":' + b"[" * 100_000, b'{"code":"1","inputs":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"code":"1","inputs":{"a":' + b"9" * 5000 + b"}}", b'{"code":"1","inputs":{"a":1e999}}', b"\x00" * 1000, b'{"code":"1",}',
    ],
    ids=lambda body: repr(body[:24]) + str(len(body)),
)  # fmt: skip
def test_what_is_not_the_json_that_was_asked_for_is_400(api, session, body):
    for path in ("/v1/runs", session + "/runs"):
        told(api.post(path, content=body, headers={"Content-Type": "application/json"}), 400, "bad_request")
    assert api.post(session + "/runs", json={"code": "1"}).json()["text"] == "1"


@pytest.mark.spec("BAD-11")
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/runs", {"code": "1", "cod": 1}, "cod"),
        ("/v1/runs", {"cod": "1"}, "cod"),
        ("/v1/runs", {}, "code"),
        ("/v1/runs", {"code": 1}, "code"),
        ("/v1/runs", {"code": "1", "limits": {"wall": 1}}, "limits.wall"),
        ("/v1/runs", {"code": "1", "limits": {"wall_s": "1"}}, "limits.wall_s"),
        ("/v1/runs", {"code": "1", "limits": {"wall_s": -1}}, "limits.wall_s"),
        ("/v1/runs", {"code": "1", "limits": {"wall_s": 1e300}}, "limits.wall_s"),
        ("/v1/runs", {"code": "1", "limits": {"memory_mb": 2**80}}, "limits.memory_mb"),
        ("/v1/runs", {"code": "1", "limits": {"memory_mb": 9000}}, "limits.memory_mb"),
        ("/v1/runs", {"code": "1", "timeout_s": 0}, "timeout_s"),
        ("/v1/runs", {"code": "1", "inputs": {"a b": 1}}, "inputs.a b"),
        ("/v1/runs", {"code": "1", "files": [{"path": "../x", "content": ""}]}, "path"),
        ("/v1/runs", {"code": "1", "files": [{"path": "x", "content": "!", "encoding": "base64"}]}, "files[0].content"),
        ("/v1/runs", {"code": "1", "files": [{"path": "x"}]}, "files[0].content"),
        ("/v1/runs", {"code": "1", "files": [{"path": "x", "content": ""}] * 2}, "files[1].path"),
        ("/v1/runs", {"code": "1", "files": [{"path": f"f{i}", "content": ""} for i in range(1001)]}, "files"),
        ("/v1/runs", {"code": "1", "policy": {"network": {"allow": ["example.com"]}}}, "policy.network"),
        ("/v1/runs", {"code": "1", "policy": {"network": "on"}}, "policy.network"),
        ("/v1/runs", {"code": "1", "tools": [{"name": "a b"}]}, "tools[0].name"),
        ("/v1/runs", {"code": "1", "tool_choice": "auto"}, "tool_choice"),
        ("/v1/runs", {"code": "1", "environment": "../../etc"}, "environment"),
        ("/v1/runs", {"code": "1", "isolation_floor": "none"}, "isolation_floor"),
        ("/v1/runs", {"code": "1", "threads": 0}, "threads"),
        ("/v1/sessions", {"idle_timeout_s": 0}, "idle_timeout_s"),
        ("/v1/sessions", {"checkpoints": 65}, "checkpoints"),
        ("/v1/sessions", {"metadata": {"a": 1}}, "metadata[...]"),
        ("/v1/sessions", {"metadata": {"a": "x" * 257}}, "metadata[...]"),
        ("/v1/sessions", {"nope": 1}, "nope"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_field_that_is_wrong_is_named(api, path, body, field):
    assert told(api.post(path, json=body), 400, "bad_request")["field"] == field


@pytest.mark.spec("BAD-11")
def test_unknown_paths_methods_and_ids_are_404_and_405(api):
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v2/runs",
        "/v1/runs/",
        "/v1/runs/x/y",
        "/v1/sessions/",
        "//v1/runs",
        "/v1/%0a",
    ):
        told(api.get(path), 404, "not_found")
    for path in (
        "/v1/runs/undo_1",
        "/v1/runs/%00",
        "/v1/sessions/%F0%9F",
        "/v1/sessions/" + "x" * 5000,
        "/v1/runs/'; DROP TABLE runs; --",
    ):
        told(api.get(path), 404, "not_found")
    wrong = api.put("/v1/runs", json={})
    told(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert api.request("BREW", "/v1/runs").status_code in {400, 405}


@pytest.mark.spec("BAD-12")
def test_a_body_that_is_too_large_is_413_before_it_is_read(strict):
    with strict.client() as api:
        refused = api.post("/v1/runs", json={"code": "x" * (2 << 20)})
        told(refused, 413, "too_large")

        def chunks():
            for _ in range(100):
                yield b"x" * (1 << 20)

        with contextlib.suppress(Exception):  # it may hang up while we still send
            told(api.post("/v1/runs", content=chunks()), 413, "too_large")
    head = (
        f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {strict.token}\r\nContent-Length: {10**18}\r\n\r\n"
    )
    assert b" 413 " in exchange(strict, head.encode())
    assert rss_bytes(strict.pid) < 300 << 20


@pytest.mark.spec("BAD-12")
@pytest.mark.parametrize(
    ("host", "token", "status"), [("localhost", "", 401), ("evil.example", None, 403), ("localhost", None, 413)]
)
def test_an_answer_before_the_body_is_there_says_that_the_connection_ends(strict, host, token, status):
    token = strict.token if token is None else token
    head = f"POST /v1/runs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: {10**9}\r\n\r\n"
    answer = exchange(strict, head.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close\r\n" in answer.partition(b"\r\n\r\n")[0] + b"\r\n"


def exchange(server, data, *, half_close=False):
    """What comes back for these bytes, until the server closes or has answered."""
    with server.raw() as sock:
        sock.settimeout(15)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                answer += part
        assert b"Traceback" not in answer or b'"traceback":"Traceback' in answer  # a program's own, in its result
        return answer


@pytest.mark.spec("BAD-13")
def test_slow_and_endless_heads_end_the_connection_and_cost_no_memory(strict):
    before = rss_bytes(strict.pid)
    line = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\n"
    for half in (b"", b"P", line, line + b"X-Half: ", b"\r\n" * 10):  # slow loris: nothing more comes
        assert exchange(strict, half) == b""
    one_name = line + b"X-Long: " + b"x" * (8 << 20)
    many = line + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(8000))
    long_path = b"GET /" + b"x" * (8 << 20)
    for bomb in (one_name, many, long_path):
        assert exchange(strict, bomb) in {b"", _TOO_LARGE}, bomb[:40]
    whole = line + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n"
    assert exchange(strict, whole) in {b"", _TOO_LARGE}
    with_key = line + f"Authorization: Bearer {strict.token}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    trailers = with_key + b'd\r\n{"code": "1"}\r\n0\r\n' + b"".join(b"T-%d: %s\r\n" % (i, b"z" * 1000) for i in range(8000))
    extension = with_key + b"1;" + b"e" * (8 << 20)
    for bomb in (trailers, extension):
        answer = exchange(strict, bomb)
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0], answer[:300]
    assert rss_bytes(strict.pid) - before < 64 << 20
    with strict.client() as api:
        assert api.post("/v1/runs", json={"code": "1"}).json()["text"] == "1"


_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 32\r\nconnection: close\r\n\r\nThe head of the request is large"
)


@pytest.mark.spec("BAD-13")
def test_bodies_that_stop_in_the_middle_are_answered_and_nothing_runs(strict):
    head = f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {strict.token}\r\nContent-Length: 100\r\n\r\n".encode()
    assert b"did not arrive within 1 s" in exchange(strict, head + b'{"code": "1"')  # and waits
    assert exchange(strict, head + b'{"code": "1"', half_close=True).count(b"HTTP/1.1") <= 1  # or leaves
    with strict.client() as api:
        session = "/v1/sessions/" + api.post("/v1/sessions", json={}).json()["id"]
        put = f"PUT {session}/files/f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {strict.token}\r\nContent-Length: 100\r\n\r\n"
        assert b"the file is as it was" in exchange(strict, put.encode() + b"half")
        assert api.get(session + "/files").json()["files"] == []
        wait_for(lambda: api.get(session).json()["running"] == 0)


@pytest.mark.spec("BAD-14")
def test_what_is_no_http_gets_400_or_nothing(strict):
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\nConnection: close\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: \x00\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):  # fmt: skip
        answer = exchange(strict, nonsense)
        assert answer == b"" or answer.split(b" ")[1] in {b"400", b"403", b"404", b"431"}, (nonsense, answer)
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert exchange(strict, upgrade).split(b" ")[1] in {b"200", b"400"}


@pytest.mark.spec("BAD-14")
def test_requests_in_a_pipeline_are_answered_in_order(strict):
    def request(code, *, last=False):
        body = json.dumps({"code": code}).encode()
        more = "close" if last else "keep-alive"
        head = f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {strict.token}\r\nConnection: {more}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    answer = exchange(
        strict, request("'a'") + request("1/0") + b"".join(request(f"{i} + 1000") for i in range(5)) + request("'z'", last=True)
    )
    texts = [json.loads(part.partition(b"\r\n\r\n")[2])["text"] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert texts == ["'a'", None, "1000", "1001", "1002", "1003", "1004", "'z'"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["code", "inputs", "limits", "files", "policy", "metadata", "timeout_s", "stream", "environment", "tools", "threads", "final"]
)


@pytest.mark.spec("BAD-11")
@settings(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
@given(fields=st.dictionaries(NAMES | st.text(max_size=10), JSON, max_size=5), raw=st.binary(max_size=40))
def test_nothing_that_is_sent_makes_the_server_fail(api, fields, raw):
    fields.setdefault("code", "1")
    for content in (json.dumps(fields).encode(errors="surrogatepass"), raw):
        answer = api.post("/v1/runs", content=content)
        assert answer.status_code < 500, answer.text
        assert "Traceback" not in answer.text or answer.status_code == 200  # a program's own


@pytest.mark.spec("BAD-14")
@settings(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["Range", "If-Range", "If-Match", "If-None-Match", "Last-Event-ID", "Idempotency-Key", "Authorization", "Accept",
                          "X-Request-Id", "Content-Type", "traceparent", "Origin", "Expect", "Content-Encoding"]),
    value=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.strip),
)  # fmt: skip
def test_no_header_makes_the_server_fail(api, session_with_file, name, value):
    for path in (session_with_file + "/files/f", "/v1/runs/run_none/events", "/v1/sessions"):
        answer = api.get(path, headers={name: value})
        assert answer.status_code < 500, (path, answer.text)


@pytest.fixture(scope="module")
def session_with_file(server):
    with server.client() as client:
        path = "/v1/sessions/" + client.post("/v1/sessions", json={"checkpoints": 0}).json()["id"]
        client.put(path + "/files/f", content=b"0123456789")
    return path
