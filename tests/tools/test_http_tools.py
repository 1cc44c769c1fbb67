"""Operations of an OpenAPI document as tools, against a real server on loopback: what is sent, what comes back, what cannot be done."""

import asyncio
import gzip
import json
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from onetrip.errors import BadRequest, Unavailable
from onetrip.model import ToolRequest
from onetrip.schemas import Validator
from onetrip.tools import Toolbox
from onetrip.tools.http_tools import Service, base_url_of, http_client, read_document, tool_of
from onetrip.tools.openapi import Document

KEY = "sk-very-secret"

DOCUMENT = {
    "openapi": "3.0.3",
    "info": {"title": "shop", "version": "1"},
    "paths": {
        "/items": {
            "get": {
                "operationId": "list-items",
                "summary": "Find items.",
                "parameters": [
                    {"$ref": "#/components/parameters/Limit"},
                    {"name": "tag", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "ids", "in": "query", "explode": False, "schema": {"type": "array", "items": {"type": "integer"}}},
                    {"name": "filter", "in": "query", "style": "deepObject", "schema": {"type": "object"}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                    {"name": "Authorization", "in": "header", "required": True, "schema": {"type": "string"}},
                    {"name": "api_key", "in": "query", "required": True, "schema": {"type": "string"}},
                    {"name": "flag", "in": "query", "schema": {"type": "boolean"}},
                ],
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}}
                        }
                    }
                },
            },
            "post": {
                "operationId": "createItem",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}},
                },
                "responses": {"201": {"description": "made"}},
            },
        },
        "/items/{item-id}": {
            "parameters": [{"name": "item-id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {"operationId": "getItem", "responses": {}},
            "delete": {"responses": {}},
            "put": {
                "operationId": "putItem",
                "requestBody": {"content": {"application/json": {"schema": {"type": "array", "items": {"type": "integer"}}}}},
                "responses": {},
            },
        },
        "/form": {
            "post": {
                "operationId": "form",
                "requestBody": {
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
                        }
                    }
                },
                "responses": {},
            }
        },
        "/upload": {
            "post": {
                "operationId": "upload",
                "requestBody": {"required": True, "content": {"multipart/form-data": {}}},
                "responses": {},
            }
        },
        "/far": {"get": {"operationId": "far", "parameters": [{"$ref": "other.json#/x"}], "responses": {}}},
        "/answer/{kind}": {
            "get": {
                "operationId": "answer",
                "parameters": [{"name": "kind", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {},
            }
        },
    },
    "components": {
        "parameters": {
            "Limit": {
                "name": "limit",
                "in": "query",
                "required": True,
                "schema": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
            }
        },
        "schemas": {
            "Item": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "price": {"type": "number", "nullable": True},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
                },
            }
        },
    },
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length", 0))
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.rfile.read(length).decode(),
        }
        self.server.seen.append(seen)
        kind = self.path.partition("/answer/")[2].partition("?")[0]
        headers, status = {"Content-Type": "application/json"}, 200
        body = json.dumps(seen).encode()
        if kind.startswith("status-"):
            status, body = int(kind[7:]), b'{"why": "because of sk-very-secret"}'
            headers["Retry-After"] = "7"
        elif kind == "text":
            headers["Content-Type"], body = "text/plain", "grüße".encode()
        elif kind == "empty":
            status, body = 200, b""
        elif kind == "binary":
            headers["Content-Type"], body = "image/png", b"\x89PNG"
        elif kind == "liar":
            body = b"<html>"
        elif kind == "bomb":
            headers["Content-Encoding"], body = "gzip", gzip.compress(b'"' + b"x" * (64 << 20) + b'"')
        elif kind == "away":
            status, headers["Location"], body = 302, f"http://localhost:{self.server.other}/stolen", b""
        elif kind == "here":
            status, headers["Location"], body = 302, "/landed", b""
        elif kind == "round":
            status, headers["Location"], body = 302, "/answer/round", b""
        elif kind == "cookie":
            headers["Set-Cookie"] = "session=abc; Path=/"
        elif kind == "hang":
            self.server.hanging.release()
            self.server.end.wait()
        elif kind == "break":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            return
        if self.command == "POST" and self.path == "/moved":
            status, headers["Location"] = 307, "/items"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen, server.hanging, server.end = [], threading.Semaphore(0), threading.Event()
        server.other = server.server_port
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.end.set()
        server.shutdown()
        thread.join()


@asynccontextmanager
async def tools(url, document=DOCUMENT, **overrides):
    async with asyncio.timeout(20), http_client() as client:
        made = Document(document, reserved_headers=frozenset({"X-Key"}), reserved_query=frozenset({"api_key"}))
        there = Service(client, url, headers={"X-Key": KEY}, query={"api_key": "q-secret"}, secrets=[KEY])
        operations, _ = made.operations()
        box = Toolbox((tool_of(operation, "shop", there) for operation in operations), **overrides)
        try:
            yield box
        finally:
            box.close()


def request(tool, **arguments):
    return ToolRequest("call_77", f"shop.{tool}", msgspec.json.encode(arguments), "run_1")


def ask(url, tool, _overrides=None, **arguments):
    async def scenario():
        async with tools(url, overrides=_overrides or {}) as box:
            return await box.ask(request(tool, **arguments))

    return asyncio.run(scenario())


def value(answer):
    assert answer.error is None, answer.error
    return msgspec.json.decode(answer.value)


@pytest.mark.spec("TOL-09")
def test_operations_become_tools_with_one_schema_of_their_arguments():
    operations, refused = Document(DOCUMENT, reserved_query=frozenset({"api_key"})).operations()
    found = {operation.name: operation for operation in operations}
    assert list(found) == ["list_items", "createItem", "getItem", "putItem", "delete_items_item_id", "form", "answer"]
    assert [line.split(":")[0] for line in refused] == ["POST /upload", "GET /far"]
    listed = found["list_items"]
    assert (listed.effect, found["createItem"].effect, listed.description) == ("read", "write", "Find items.")
    assert list(listed.input_schema["properties"]) == ["limit", "tag", "ids", "filter", "X_Trace", "flag"]
    assert listed.input_schema["properties"]["limit"] == {"type": "integer", "exclusiveMinimum": 0}
    assert listed.output_schema == {
        "type": "array",
        "items": {"$ref": "#/$defs/Item"},
        "$defs": {
            "Item": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "price": {"type": ["number", "null"]},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
                },
            }
        },
    }
    made = found["createItem"].input_schema
    assert made["required"] == ["name"]
    assert Validator(made).problem({"name": "a", "parts": [{"name": "b", "price": None}]}) is None
    assert Validator(made).problem({"name": "a", "parts": [{"name": 1}]}) == 'arguments.parts[0].name: 1 is not of type "string"'


@pytest.mark.spec("TOL-09")
def test_arguments_go_where_the_document_says_with_the_servers_secrets(service):
    answer = ask(
        service.url + "/base",
        "list_items",
        limit=3,
        tag=["a", "b&c"],
        ids=[1, 2],
        filter={"x": 1, "y]": "z"},
        X_Trace="t",
        flag=True,
    )
    seen = service.seen[0]
    assert seen["path"] == (
        "/base/items?limit=3&tag=a&tag=b%26c&ids=1%2C2&filter%5Bx%5D=1&filter%5By%5D%5D=z&flag=true&api_key=q-secret"
    )
    assert (seen["headers"]["x-key"], seen["headers"]["x-trace"]) == (KEY, "t")
    assert "idempotency-key" not in seen["headers"]
    assert value(answer)["headers"]["x-key"] == "***"  # a service that says our secrets back does not give them away
    assert KEY not in answer.value.decode()


@pytest.mark.spec("TOL-09")
def test_bodies_are_sent_as_json_or_as_forms_and_writes_carry_the_calls_id(service):
    ask(service.url, "createItem", name="a", parts=[{"name": "b"}])
    ask(service.url, "putItem", item_id="7", body=[1, 2])
    ask(service.url, "form", a="x y", b=3)
    ask(service.url, "delete_items_item_id", item_id="a/b ?c")
    created, put, form, deleted = service.seen
    assert (created["method"], json.loads(created["body"])) == ("POST", {"name": "a", "parts": [{"name": "b"}]})
    assert json.loads(put["body"]) == [1, 2]
    assert (form["body"], form["headers"]["content-type"]) == ("a=x+y&b=3", "application/x-www-form-urlencoded")
    assert (deleted["method"], deleted["path"]) == ("DELETE", "/items/a%2Fb%20%3Fc?api_key=q-secret")
    assert {seen["headers"]["idempotency-key"] for seen in service.seen} == {"call_77"}


@pytest.mark.spec("TOL-10")
@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("getItem", {"item_id": ".."}, "would make another path"),
        ("getItem", {"item_id": "a/../../admin"}, "would make another path"),
        ("getItem", {"item_id": "a\\..\\b"}, "would make another path"),
        ("getItem", {"item_id": ""}, "an empty text cannot stand in a path"),
        ("list_items", {"limit": 1, "X_Trace": "a\r\nX-Key: mine"}, "printable ASCII"),
        ("list_items", {"limit": 1, "X_Key": "mine"}, "'X_Key' was unexpected"),
        ("list_items", {"limit": 1, "api_key": "mine"}, "'api_key' was unexpected"),
        ("list_items", {"limit": 0}, "arguments.limit: 0 is less than or equal to the minimum of 0"),
        ("createItem", {"name": 1}, 'arguments.name: 1 is not of type "string"'),
    ],
)
def test_a_program_chooses_values_and_nothing_else(service, tool, arguments, said):
    failure = ask(service.url, tool, **arguments).error
    assert said in failure.message
    assert failure.type == "arguments"
    assert service.seen == []


@pytest.mark.spec("TOL-10")
def test_redirects_stay_on_the_host_and_end(service):
    assert value(ask(service.url, "answer", kind="here"))["path"] == "/landed"
    service.seen.clear()
    away = ask(service.url, "answer", kind="away").error
    assert (away.code, away.message) == ("redirect", "The service redirects to another host, which is not followed.")
    assert [seen["path"] for seen in service.seen] == ["/answer/away?api_key=q-secret"]
    assert ask(service.url, "answer", kind="round").error.message == "The service redirects without end."


@pytest.mark.spec("TOL-10")
def test_a_cookie_of_one_call_is_not_sent_with_another(service):
    async def scenario():
        async with tools(service.url) as box:
            await box.ask(request("answer", kind="cookie"))
            await box.ask(request("answer", kind="text"))

    asyncio.run(scenario())
    assert "cookie" not in service.seen[1]["headers"]


@pytest.mark.spec("TOL-09")
@pytest.mark.parametrize(
    ("status", "type_", "retryable"),
    [
        (400, "error", False),
        (401, "denied", False),
        (403, "denied", False),
        (404, "error", False),
        (429, "error", True),
        (503, "error", True),
    ],
)
def test_errors_of_the_service_are_failures_that_say_whether_to_try_again(service, status, type_, retryable):
    failure = ask(service.url, "answer", kind=f"status-{status}").error
    assert (failure.type, failure.retryable, failure.code) == (type_, retryable, f"http_{status}")
    assert failure.message.startswith(f"HTTP {status} ")
    assert '{"why": "because of ***"}' in failure.message
    assert ("(retry after 7 s)" in failure.message) == retryable


@pytest.mark.spec("TOL-09")
def test_answers_that_are_no_json_are_texts_or_say_what_they_are(service):
    assert value(ask(service.url, "answer", kind="text")) == "grüße"
    assert value(ask(service.url, "answer", kind="empty")) is None
    assert value(ask(service.url, "answer", kind="binary")) == {"media_type": "image/png", "base64": "iVBORw=="}
    assert ask(service.url, "answer", kind="liar").error.code == "result_not_json"


@pytest.mark.spec("TOL-07", "TOL-10")
def test_an_answer_that_unpacks_to_gigabytes_is_cut_off(service):
    assert ask(service.url, "answer", kind="bomb").error.code == "result_too_large"


@pytest.mark.spec("TOL-09")
def test_a_service_that_is_away_breaks_off_or_hangs_is_said(service):
    gone = ask("http://127.0.0.1:1", "getItem", item_id="1").error
    assert (gone.code, gone.retryable) == ("unreachable", True)
    broken = ask(service.url, "answer", kind="break").error
    assert (broken.code, broken.retryable) == ("unreachable", True)

    async def scenario():
        from onetrip.tools import Options

        async with tools(service.url, overrides={"shop.answer": Options(timeout_s=0.3)}) as box:
            return await box.ask(request("answer", kind="hang"))

    hung = asyncio.run(scenario()).error
    assert (hung.type, hung.code) == ("timeout", "deadline")


def read(where):
    async def scenario():
        async with asyncio.timeout(20), http_client() as client:
            return await read_document(where, client)

    return asyncio.run(scenario())


@pytest.mark.spec("TOL-09")
def test_documents_are_json_or_yaml_files_or_addresses(service, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENT))
    assert read(str(tmp_path / "a.json")) == DOCUMENT
    (tmp_path / "a.yaml").write_text("openapi: 3.1.0\npaths:\n  /a:\n    get:\n      responses:\n        200: {description: d}\n")
    operations, refused = Document(read(str(tmp_path / "a.yaml"))).operations()
    assert ([operation.name for operation in operations], refused) == (["get_a"], [])
    assert read(f"{service.url}/x")["path"] == "/x"


@pytest.mark.spec("TOL-10")
def test_documents_that_cannot_be_used_are_named(service, tmp_path):
    with pytest.raises(Unavailable, match=r"none.json' cannot be read: No such file"):
        read(str(tmp_path / "none.json"))
    with pytest.raises(Unavailable, match=r"HTTP 302"):
        read(f"{service.url}/answer/away")
    with pytest.raises(Unavailable, match="cannot be fetched: ConnectError"):
        read("http://127.0.0.1:1/x")
    (tmp_path / "bomb.yaml").write_text("a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n")
    with pytest.raises(BadRequest, match="aliases"):
        read(str(tmp_path / "bomb.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(BadRequest, match="not YAML"):
        read(str(tmp_path / "bad.yaml"))
    with pytest.raises(BadRequest, match="Swagger 2"):
        Document({"swagger": "2.0"})
    with pytest.raises(BadRequest, match="not OpenAPI 3"):
        Document([])


@pytest.mark.spec("TOL-10")
def test_a_document_that_was_fetched_cannot_send_secrets_elsewhere():
    there = Document({"openapi": "3.1.0", "servers": [{"url": "https://evil.test/{v}", "variables": {"v": {"default": "v1"}}}]})
    with pytest.raises(BadRequest, match=r"its server is another host, 'evil.test'"):
        base_url_of(there, "https://shop.test/openapi.json", None)
    assert base_url_of(there, "https://shop.test/openapi.json", "https://api.test") == "https://api.test"
    assert base_url_of(there, "openapi.json", None) == "https://evil.test/v1"
    relative = Document({"openapi": "3.1.0", "servers": [{"url": "/v2"}]})
    assert base_url_of(relative, "https://shop.test/docs/openapi.json", None) == "https://shop.test/v2"
    with pytest.raises(BadRequest, match="does not say where its server is"):
        base_url_of(relative, "openapi.json", None)
