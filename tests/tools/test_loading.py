"""The toolbox of a configuration: functions, entry points, documents and MCP servers, and what is said of mistakes in it."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest

from onetrip import settings
from onetrip.errors import BadRequest, Unavailable
from onetrip.model import ToolRequest
from onetrip.tools.loading import load_toolbox

SHOP = str(Path(__file__).with_name("mcp_shop.py"))

MODULE = """
import onetrip

@onetrip.tool(effect="read")
def look(a: int) -> int:
    return a + 1

@onetrip.tool(name="store.buy", timeout_s=5)
async def buy(a: int) -> int:
    return a + 2

def unmarked(a: int) -> int:
    return a + 3

class Holder:
    @staticmethod
    def inside() -> int:
        return 4

number = 3
"""


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Loads a configuration, written as TOML, whose modules are in tmp_path; and runs a scenario with its toolbox."""
    name = f"house_tools_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("raise RuntimeError('not today')")
    (tmp_path / f"{name}_empty.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(toml, scenario=None):
        path = tmp_path / "onetrip.toml"
        path.write_text(toml.replace("HOUSE", name).replace("FOLDER", str(tmp_path)))

        async def main():
            async with asyncio.timeout(100), load_toolbox(settings.load(path)) as box:
                return await scenario(box) if scenario else [tool.name for tool in box.tools]

        return asyncio.run(main())

    return run


async def ask(box, tool, **arguments):
    answer = await box.ask(ToolRequest("call_1", tool, msgspec.json.encode(arguments), "run_1"))
    assert answer.error is None, answer.error
    return msgspec.json.decode(answer.value)


@pytest.mark.spec("TOL-13")
def test_functions_are_those_named_and_those_marked_in_a_module(configured):
    async def scenario(box):
        assert [(tool.name, tool.effect, tool.timeout_s) for tool in box.tools] == [
            ("inside", "write", None),
            ("look", "read", 9.0),
            ("store.buy", "write", 5.0),
            ("unmarked", "write", None),
        ]
        return [
            await ask(box, "look", a=1),
            await ask(box, "store.buy", a=1),
            await ask(box, "unmarked", a=1),
            await ask(box, "inside"),
        ]

    toml = """
    [tools]
    functions = ["HOUSE", "HOUSE:unmarked", "HOUSE:Holder.inside"]
    python_path = ["FOLDER"]
    [tools.options.look]
    timeout_s = 9.0
    """
    assert configured(toml, scenario) == [2, 3, 4, 4]


@pytest.mark.spec("TOL-08", "TOL-13")
def test_options_take_tools_away_and_change_them(configured):
    async def scenario(box):
        return [(tool.name, tool.effect, tool.approval) for tool in box.tools]

    toml = """
    [tools]
    functions = ["HOUSE"]
    python_path = ["FOLDER"]
    options = { "store.*" = { approval = "required", effect = "read" }, "look" = { enabled = false } }
    """
    assert configured(toml, scenario) == [("store.buy", "read", "required")]


@pytest.mark.spec("TOL-13")
def test_packages_register_tools_by_entry_points(configured, tmp_path):
    name = f"house_tools_{tmp_path.name}"
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onetrip.tools]\nall = {name}\none = {name}:unmarked\n")
    base = '[tools]\npython_path = ["FOLDER"]\n'
    assert configured(base) == []
    assert configured(base + "entry_points = true\n") == ["look", "store.buy", "unmarked"]


@pytest.mark.spec("TOL-13")
@pytest.mark.parametrize(
    ("toml", "error", "named"),
    [
        ('functions = ["HOUSE:none"]', BadRequest, "there is no 'none'"),
        ('functions = ["HOUSE:number"]', BadRequest, "it is no function"),
        ('functions = ["HOUSE_broken"]', BadRequest, "cannot be imported: RuntimeError: not today"),
        ('functions = ["HOUSE_empty"]', BadRequest, "no function of it is marked"),
        ('functions = ["no_such_module_there"]', BadRequest, "cannot be imported: ModuleNotFoundError"),
        ('functions = ["HOUSE:look", "HOUSE:look"]', BadRequest, "two with the name 'look'"),
        ('openapi = [{name = "a-b", document = "x"}]', BadRequest, "'a-b' is not a name"),
        ('openapi = [{name = "a", document = "FOLDER/none.json"}]', Unavailable, "none.json' cannot be read"),
        (
            'openapi = [{name = "a", document = "x", headers = {K = "${ONETRIP_TEST_UNSET}"}}]',
            Unavailable,
            "ONETRIP_TEST_UNSET, which is not set",
        ),
        ('mcp = [{name = "a"}]', BadRequest, "either `command` or `url`"),
        ('mcp = [{name = "a", command = ["x"], url = "http://x"}]', BadRequest, "either `command` or `url`"),
        ("[tools.options.look]\ntimeout_s = -1", BadRequest, "timeout_s"),
        ("[tools.options.look]\ntimeout = 1", BadRequest, "timeout"),
        ('openapi = [{document = "x"}]', BadRequest, "name"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(configured, toml, error, named):
    with pytest.raises(error, match=named):
        configured(f'[tools]\npython_path = ["FOLDER"]\n{toml}\n')


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(
            {"path": self.path, "key": self.headers.get("X-Key"), "version": self.headers.get("X-Version")}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service():
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.spec("TOL-13")
def test_documents_and_mcp_servers_get_their_secrets_from_variables(tmp_path):
    """In a process of its own: the variables are read from it, and a test changes nobody's."""
    document = {
        "openapi": "3.1.0",
        "paths": {
            "/a": {"get": {"operationId": "a", "responses": {}}},
            "/b": {"get": {"operationId": "b", "responses": {}}},
            "/c": {"get": {"operationId": "c", "parameters": [{"name": "p", "in": "query", "schema": {"type": "no"}}]}},
        },
    }
    (tmp_path / "doc.json").write_text(json.dumps(document))
    with service() as port:
        (tmp_path / "onetrip.toml").write_text(f"""
        [[tools.openapi]]
        name = "house"
        document = "{tmp_path}/doc.json"
        base_url = "http://127.0.0.1:{port}/v1"
        headers = {{ X-Key = "Bearer ${{HOUSE_KEY}}", X-Version = "2026-11-01" }}
        only = ["a", "c"]
        [[tools.mcp]]
        name = "shop"
        command = ["{sys.executable}", "{SHOP}"]
        env = {{ SHOP_TOKEN = "${{HOUSE_KEY}}" }}
        only = ["variable", "find-*"]
        """)
        program = f"""
import asyncio, json
from pathlib import Path
from onetrip import settings
from onetrip.model import ToolRequest
from onetrip.tools.loading import load_toolbox

async def main():
    async with load_toolbox(settings.load(Path({str(tmp_path / "onetrip.toml")!r}))) as box:
        a = await box.ask(ToolRequest("c", "house.a", b"{{}}", "r"))
        v = await box.ask(ToolRequest("c", "shop.variable", b'{{"name": "SHOP_TOKEN"}}', "r"))
        print(json.dumps([[tool.name for tool in box.tools], json.loads(a.value), len(json.loads(v.value))]))

asyncio.run(main())
"""
        environ = {**os.environ, "HOUSE_KEY": "k-123456"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False, env=environ
        )
    assert done.returncode == 0, done.stderr
    names, answer, length = json.loads(done.stdout)
    assert names == ["house.a", "shop.find_item", "shop.variable"]
    assert answer == {"path": "/v1/a", "key": "***", "version": "2026-11-01"}
    assert length == len("k-123456")
    assert "house: left out: GET /c: " in done.stderr
    assert "k-123456" not in done.stderr
