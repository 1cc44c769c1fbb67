"""MCP as clients see it: the official ones, over real sockets and pipes, against a real server and a real `onetrip mcp`."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import MCPError
from mcp_clients import (
    TEST_S,
    alive,
    descendants,
    new_key,
    over_http,
    over_stdio,
    over_stdio_to_server,
    python_with,
    serving,
    within,
)

ERAS = ("auto", "legacy")
WAYS = [(over_http, mode) for mode in ERAS] + [(over_stdio, mode) for mode in ERAS] + [(over_stdio_to_server, "auto")]
everywhere = pytest.mark.parametrize(("connect", "mode"), WAYS, ids=lambda part: getattr(part, "__name__", part))
each_transport = pytest.mark.parametrize(
    ("connect", "mode"), [WAYS[0], WAYS[3], WAYS[4]], ids=lambda part: getattr(part, "__name__", part)
)  # for what neither the era nor the way it came makes any difference to


async def call(client, tool, progress=None, /, **arguments):
    return await client.call_tool(tool, arguments, progress_callback=progress)


async def given(client, tool, /, **arguments):
    result = await call(client, tool, **arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client, tool, /, **arguments):
    result = await call(client, tool, **arguments)
    assert result.is_error
    error = result.structured_content["error"]
    assert error["code"] in result.content[0].text
    assert error["hint"] in result.content[0].text
    return error


@pytest.fixture(scope="module")
def shared_server():
    with serving() as running:
        yield running


@pytest.fixture
def server():
    """A server of this test's own."""
    with serving() as running:
        yield running


# ------------------------------------------------------------------------------------------------ clients of both eras


@pytest.mark.slow
@pytest.mark.spec("MCP-01")
@everywhere
def test_the_current_client_runs_cells_of_a_session_in_both_eras(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {
                "execute_python", "create_session", "list_files", "read_file", "write_file", "undo", "fork", "close_session",
            }  # fmt: skip
            assert tools["read_file"].annotations.read_only_hint
            assert not any(tool.annotations.open_world_hint for tool in tools.values())
            first = await given(client, "execute_python", code="x = 41\nprint('hi')")
            second = await given(client, "execute_python", code="print(x + 1)\nx", session_id=first["session_id"])
            assert (second["stdout"], second["value"], second["text"], second["exit_code"]) == ("42\n", 41, "41", 0)

    within(main())


@pytest.fixture(scope="module")
def python_1x(tmp_path_factory):
    return python_with(tmp_path_factory.mktemp("mcp1"), "mcp<2")


@pytest.mark.slow
@pytest.mark.spec("MCP-01", "MCP-03", "MCP-05", "MCP-07")
@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_the_client_1x_works_too(shared_server, python_1x, transport):
    arguments = [shared_server.url, shared_server.token] if transport == "http" else [sys.executable]
    program = Path(__file__).with_name("mcp_client_1x.py")
    done = subprocess.run([python_1x, program, *arguments], capture_output=True, text=True, timeout=TEST_S, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["client"].startswith("1.")
    assert told["printed"] == ["hi\n"]
    assert told["second"]["stdout"] == "42\n"
    assert told["types"] == ["text", "image"]
    assert told["failed"] == [False, "ZeroDivisionError", 1]
    assert told["refused"][0]
    assert "not_found" in told["refused"][1]
    assert told["templates"] == ["sandbox://{session}/files/{path}"]
    assert told["resource"] == "text"


@pytest.mark.slow
@pytest.mark.spec("MCP-03")
@everywhere
def test_what_a_program_prints_arrives_while_it_runs(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            session = await given(client, "create_session")
            heard, so_far = asyncio.Event(), []

            async def progress(done, total, message):
                so_far.append((done, total, message))
                heard.set()

            code = "import os, time\nprint('one')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('two')"
            running = asyncio.create_task(call(client, "execute_python", progress, code=code, **session))
            await heard.wait()  # the program ends only after this
            await given(client, "write_file", path="go", text="", **session)
            assert (await running).structured_content["stdout"] == "one\ntwo\n"
            assert [message for _, _, message in so_far] == ["one\n", "two\n"]
            assert [done for done, _, _ in so_far] == [4, 8]

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-04")
@everywhere
def test_a_client_that_gives_up_interrupts_its_program_and_the_session_goes_on(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            session = await given(client, "create_session", wall_s=900, cpu_s=900)  # no limit may do it instead
            begun = asyncio.Event()

            async def progress(*_):
                begun.set()

            code = "try:\n    print('begun')\n    while True: pass\nexcept KeyboardInterrupt:\n    heard = 'interrupt'\n    raise"
            running = asyncio.create_task(call(client, "execute_python", progress, code=code, **session))
            await begun.wait()
            running.cancel()
            await asyncio.wait([running])
            after = await given(client, "execute_python", code="heard", **session)
            assert after["value"] == "interrupt", after

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-04")
@pytest.mark.parametrize("mode", ERAS)
def test_a_session_whose_id_nobody_heard_of_is_closed(shared_server, mode):
    async def main():
        headers = {"Authorization": f"Bearer {new_key(shared_server, f'unheard-{mode}')}"}
        async with (
            over_http(shared_server, mode, headers["Authorization"].split()[1]) as client,
            httpx.AsyncClient(base_url=shared_server.url, headers=headers, timeout=TEST_S) as native,
        ):
            begun = asyncio.Event()

            async def progress(*_):
                begun.set()

            running = asyncio.create_task(call(client, "execute_python", progress, code="print(1)\nwhile True: pass"))
            await begun.wait()
            (session,) = (await native.get("/v1/sessions")).json()["sessions"]
            running.cancel()
            await asyncio.wait([running])
            while (answer := await native.get(f"/v1/sessions/{session['id']}")).status_code == 200:
                pass
            assert answer.status_code == 410
            assert (await native.get("/v1/sessions")).json()["sessions"] == []

    within(main())


# ------------------------------------------------------------------------------------------------ who may


@pytest.mark.spec("MCP-02")
def test_without_a_key_or_with_a_wrong_one_there_is_nothing(shared_server):
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {shared_server.token}"}):
        for method in ("POST", "GET", "DELETE"):
            answer = httpx.request(method, f"{shared_server.url}/mcp", headers=headers, json=ask)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["code"] == "unauthorized"

    async def main():
        async with over_http(shared_server, token="wrong"):
            pass

    with pytest.raises(ExceptionGroup) as failure:
        within(main())
    assert failure.group_contains(MCPError)


@pytest.mark.spec("MCP-02")
def test_web_pages_of_others_are_kept_out_and_our_own_names_let_in(shared_server):
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    key = {"Authorization": f"Bearer {shared_server.token}"}
    for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert httpx.post(f"{shared_server.url}/mcp", headers=key | foreign, json=ask).status_code == 403
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip
    port = shared_server.url.rpartition(":")[2]
    for host in (f"localhost:{port}", "LOCALHOST"):
        ours = key | {"Host": host, "Origin": f"http://{host}", "Accept": "application/json, text/event-stream"}
        assert httpx.post(f"{shared_server.url}/mcp", headers=ours, json=hello).status_code == 200


@pytest.mark.slow
@pytest.mark.spec("MCP-02")
@pytest.mark.parametrize("mode", ERAS)
def test_sessions_of_another_tenant_do_not_exist(shared_server, mode):
    async def main():
        token = new_key(shared_server, f"stranger-{mode}")
        async with over_http(shared_server, mode) as client, over_http(shared_server, mode, token) as stranger:
            session = await given(client, "create_session")
            await given(client, "write_file", path="secret", text="mine", **session)
            for tool, more in {
                "execute_python": {"code": "1"}, "list_files": {}, "read_file": {"path": "secret"},
                "write_file": {"path": "secret", "text": "theirs"}, "undo": {}, "fork": {}, "close_session": {},
            }.items():  # fmt: skip
                error = await refused(stranger, tool, **session, **more)
                missing = await refused(stranger, tool, session_id="ses_" + "0" * 24, **more)
                assert error["code"] == missing["code"] == "not_found"
                assert error["message"].replace(session["session_id"], "") == missing["message"].replace("ses_" + "0" * 24, "")
            with pytest.raises(MCPError, match="there is no session"):
                await stranger.read_resource(f"sandbox://{session['session_id']}/files/secret")
            assert (await stranger.list_resources()).resources == []
            assert (await given(client, "read_file", path="secret", **session))["content"] == "mine"

    within(main())


@pytest.mark.spec("MCP-02")
def test_a_handshake_goes_on_only_with_the_key_that_began_it(shared_server):
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip
    accept = {"Accept": "application/json, text/event-stream"}
    mine = accept | {"Authorization": f"Bearer {shared_server.token}"}
    theirs = accept | {"Authorization": f"Bearer {new_key(shared_server, 'thief')}"}
    with httpx.Client(base_url=shared_server.url, timeout=TEST_S) as client:
        number = {"Mcp-Session-Id": client.post("/mcp", headers=mine, json=hello).headers["mcp-session-id"]}
        ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        assert client.post("/mcp", headers=theirs | number, json=ask).status_code == 404
        assert client.delete("/mcp", headers=theirs | number).status_code == 404
        assert client.delete("/mcp", headers=mine | number).status_code == 200


@pytest.mark.slow
@pytest.mark.spec("MCP-02")
def test_a_reader_may_look_and_do_nothing(shared_server):
    async def main():
        async with over_http(shared_server, token=new_key(shared_server, "house")) as client:
            session = await given(client, "create_session")
            await given(client, "write_file", path="a", text="seen", **session)
            async with over_http(shared_server, token=new_key(shared_server, "house", "reader")) as reader:
                assert (await given(reader, "read_file", path="a", **session))["content"] == "seen"
                for tool, more in {
                    "execute_python": {"code": "1"}, "write_file": {"path": "a", "text": ""}, "undo": {}, "fork": {}, "close_session": {},
                }.items():  # fmt: skip
                    assert (await refused(reader, tool, **session, **more))["code"] == "forbidden"
                for tool, more in {"execute_python": {"code": "1"}, "create_session": {}}.items():
                    assert (await refused(reader, tool, **more))["code"] == "forbidden"
            await given(client, "close_session", **session)

    within(main())


# ------------------------------------------------------------------------------------------------ what tools give


@pytest.mark.slow
@pytest.mark.spec("MCP-06")
def test_a_program_that_fails_is_a_result_and_the_session_goes_on(shared_server):
    async def main():
        async with over_http(shared_server) as client:
            session = await given(client, "create_session", memory_mb=256)
            await given(client, "execute_python", code="kept = 7", **session)
            result = await call(client, "execute_python", code="print('before')\n1/0", **session)
            failed = result.structured_content
            assert (result.is_error, failed["exit_code"], failed["status"]) == (False, 1, "failed")
            assert failed["error"]["type"] == "ZeroDivisionError"
            assert "line 2" in failed["error"]["traceback"]
            text = result.content[0].text
            assert text.index("before") < text.index("ZeroDivisionError") < text.index(session["session_id"])
            for code, name in {"while True: pass": "wall", "b'x' * (1 << 30)": "memory"}.items():
                limited = await given(client, "execute_python", code=code, timeout_s=1, **session)
                assert limited["status"] == "limit_exceeded" or limited["error"]["type"] == "MemoryError"
                assert limited["limit"] is None or limited["limit"]["name"] == name
            died = await given(client, "execute_python", code="kept = 8\nimport os; os._exit(1)", **session)
            assert died["session"]["rolled_back"]
            assert died["session_id"] == session["session_id"]
            assert (await given(client, "execute_python", code="kept", **session))["value"] == 7

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-06")
@each_transport
def test_our_errors_have_code_and_hint_and_name_what_was_wrong(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            for arguments, said in (
                ({}, "code"), ({"code": 1}, "code"), ({"code": "1", "sesion": "x"}, "sesion"), ({"code": "1", "timeout_s": -1}, "timeout_s"),
                ({"code": "1", "one_shot": True, "session_id": "ses_1"}, "one_shot"), ({"code": "1", "timeout_s": 1e9}, "timeout"),
            ):  # fmt: skip
                error = await refused(client, "execute_python", **arguments)
                assert error["code"] == "bad_request"
                assert said in error["message"]
            session = await given(client, "create_session")
            for path in ("../x", "/etc/passwd", "a/../../x", "", "a\nb"):
                assert (await refused(client, "write_file", path=path, text="", **session))["code"] == "bad_request"
                assert (await refused(client, "read_file", path=path, **session))["code"] == "bad_request"
            for content in ({}, {"text": "a", "content_base64": "YQ=="}, {"content_base64": "?"}, {"content_base64": "é"}):
                assert (await refused(client, "write_file", path="a", **content, **session))["code"] == "bad_request"
            assert (await refused(client, "read_file", path="none", **session))["code"] == "not_found"
            await given(client, "close_session", **session)
            gone = await refused(client, "execute_python", code="1", **session)
            assert gone["code"] == "session_gone"
            assert "closed by its owner" in gone["message"]
            with pytest.raises(MCPError, match="there is no tool 'rm'"):
                await client.call_tool("rm", {})
            for uri in ("sandbox://x", "file:///etc/passwd", f"sandbox://{session['session_id']}/files/a"):
                with pytest.raises(MCPError):
                    await client.read_resource(uri)

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-06")
def test_what_models_write_carelessly_is_understood(shared_server):
    async def main():
        async with over_http(shared_server) as client:
            arguments = {"code": "1 + 1", "session_id": "", "timeout_s": "5", "one_shot": "true"}
            assert (await given(client, "execute_python", **arguments))["value"] == 2
            assert (await given(client, "execute_python", code="1", session_id=None, timeout_s=None))["session_id"]

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-05")
@each_transport
def test_charts_are_image_content(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            code = "import matplotlib.pyplot as plt\nfor n in (1, 2):\n    plt.plot([0, n])\n    plt.show()"
            result = await call(client, "execute_python", code=code, one_shot=True)
            assert [content.type for content in result.content] == ["text", "image", "image"]
            assert all(base64.b64decode(content.data).startswith(b"\x89PNG") for content in result.content[1:])
            assert result.content[1].mime_type == "image/png"
            assert result.structured_content["images"] == 2

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-05")
def test_what_only_says_it_is_a_picture_is_not_passed_on(shared_server):
    async def main():
        async with over_http(shared_server) as client:
            code = (
                "class Fake:\n    def _repr_png_(self): return b'<script>'\n    def _repr_jpeg_(self): return b'GIF89a'\nFake()"
            )
            result = await call(client, "execute_python", code=code, one_shot=True)
            assert [content.type for content in result.content] == ["text"]
            session = await given(client, "create_session")
            await given(client, "write_file", path="fake.png", content_base64="/w==", **session)
            fake = await call(client, "read_file", path="fake.png", **session)
            assert [content.type for content in fake.content] == ["text"]

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-07")
@each_transport
def test_files_go_in_and_out_as_tools_and_as_resources(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            session = await given(client, "create_session")
            sid = session["session_id"]
            big = bytes(range(256)) * 20_000  # 5 MB: more than the SDK takes by default
            await given(client, "write_file", path="in/big.bin", content_base64=base64.b64encode(big).decode(), **session)
            written = await given(client, "write_file", path="in/ü b.csv", text="a,b\n1,2\n", **session)
            code = "raw = open('in/big.bin', 'rb').read()\nopen('out.bin', 'wb').write(raw[:256])\nlen(raw)"
            ran = await given(client, "execute_python", code=code, **session)
            assert ran["value"] == len(big)
            assert [(file["path"], file["change"]) for file in ran["files"]] == [("out.bin", "created")]
            listed = await given(client, "list_files", **session)
            assert {file["path"]: file["size"] for file in listed["files"]} == {
                "in/big.bin": len(big),
                "in/ü b.csv": 8,
                "out.bin": 256,
            }
            assert (await given(client, "read_file", path="in/ü b.csv", **session))["content"] == "a,b\n1,2\n"
            assert (await given(client, "read_file", path="out.bin", **session))["encoding"] == "base64"
            too_large = await refused(client, "read_file", path="in/big.bin", **session)
            assert "program" in too_large["hint"]

            (template,) = (await client.list_resource_templates()).resource_templates
            assert template.uri_template == "sandbox://{session}/files/{path}"
            assert written["uri"] in {str(resource.uri) for resource in (await client.list_resources()).resources}
            for uri in (written["uri"], f"sandbox://{sid}/files/in%2F%C3%BC%20b.csv"):
                (text,) = (await client.read_resource(uri)).contents
                assert (text.text, text.mime_type) == ("a,b\n1,2\n", "text/csv")
            (blob,) = (await client.read_resource(ran["files"][0]["uri"])).contents
            assert base64.b64decode(blob.blob) == big[:256]
            for attack in ("../../etc/passwd", "%2e%2e%2fx", "/etc/passwd", "a%00b", "%ff", "x" * 2000):
                with pytest.raises(MCPError):
                    await client.read_resource(f"sandbox://{sid}/files/{attack}")

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-08")
@each_transport
def test_runs_are_taken_back_sessions_branch_and_close_and_a_one_shot_leaves_none(shared_server, connect, mode):
    async def main():
        async with connect(shared_server, mode) as client:
            alone = await given(client, "execute_python", code="x = 1\nx", one_shot=True)
            assert (alone["value"], alone["session_id"]) == (1, None)
            session = await given(client, "create_session", on_error="rollback", memory_mb=300)
            for number in (1, 2, 3):
                await given(client, "execute_python", code=f"x = {number}", **session)
            await given(client, "execute_python", code="x = 4\n1/0", **session)  # rolled back by itself
            await given(client, "undo", cells=2, **session)
            branches = (await given(client, "fork", count=2, **session))["session_ids"]
            await given(client, "execute_python", code="x = 10", session_id=branches[0])
            values = [
                (await given(client, "execute_python", code="x", session_id=sid))["value"]
                for sid in (session["session_id"], *branches)
            ]
            assert values == [1, 10, 1]
            for sid in (session["session_id"], *branches):
                await given(client, "close_session", session_id=sid)

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-09")
def test_what_is_too_long_for_a_model_is_cut_and_said_to_be(shared_server):
    async def main():
        async with over_http(shared_server) as client:
            code = "import sys\nprint('<', 'o' * 10**6, '>')\nprint('e' * 10**6, file=sys.stderr)\n['v' * 10**6]"
            result = await call(client, "execute_python", code=code, one_shot=True)
            given = result.structured_content
            assert [given["truncated"][part] for part in ("stdout", "stderr", "value")] == [True] * 3
            assert given["value"] is None
            assert given["stdout"].startswith("< oo")
            assert given["stdout"].endswith("oo >\n")
            assert sum(len(given[part]) for part in ("stdout", "stderr", "text")) < 160_000
            assert len(result.content[0].text) < 160_000
            native = f"{shared_server.url}/v1/runs/{given['run_id']}"
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {shared_server.token}"}) as http:
                whole = await http.get(native)
            assert len(whole.json()["stdout"]) > 10**6

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-12")
@pytest.mark.parametrize("mode", ERAS)
def test_a_server_that_is_told_to_end_answers_the_calls_on_their_way(server, mode):
    async def main():
        async with over_http(server, mode) as client:  # the older one holds a stream open besides, only to listen
            await client.list_tools()
            begun = asyncio.Event()

            async def progress(*_):
                begun.set()

            session = await given(client, "create_session")
            code = "import os\nprint('begun')\nwhile not os.path.exists('go'): pass\n'done'"
            running = asyncio.create_task(call(client, "execute_python", progress, code=code, **session))
            await begun.wait()
            server.process.terminate()
            while (await call(client, "create_session")).structured_content.get("session_id"):
                pass
            assert (await refused(client, "create_session"))["code"] == "unavailable"
            await given(client, "write_file", path="go", text="", **session)
            assert (await running).structured_content["value"] == "done"
            assert await asyncio.to_thread(server.process.wait, TEST_S) == 0

    within(main())


# ------------------------------------------------------------------------------------------------ onetrip mcp


@pytest.mark.slow
@pytest.mark.spec("MCP-10")
@pytest.mark.parametrize("how", ["its input ends", "SIGTERM", "SIGINT"])
def test_onetrip_mcp_ends_with_its_client_and_leaves_nothing(how):
    process = subprocess.Popen(
        [sys.executable, "-m", "onetrip", "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def say(**message):
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        process.stdin.flush()

    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    say(id=1, method="initialize", params=hello)
    assert json.loads(process.stdout.readline())["id"] == 1
    say(method="notifications/initialized")
    code = "print('on its way')\nwhile True: pass"
    say(id=2, method="tools/call", params={"name": "execute_python", "arguments": {"code": code}, "_meta": {"progressToken": 1}})
    assert json.loads(process.stdout.readline())["params"]["message"] == "on its way\n"
    family = descendants(process.pid)
    assert family
    if how == "its input ends":
        process.stdin.close()
    else:
        process.send_signal(getattr(signal, how))
    assert process.wait(TEST_S) == 0
    assert process.stderr.read() == ""
    assert not any(map(alive, family))
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@pytest.mark.slow
@pytest.mark.spec("MCP-10")
def test_onetrip_mcp_on_a_server_closes_its_sessions_and_says_what_is_wrong_with_the_key(shared_server):
    async def main():
        token = new_key(shared_server, "desktop")
        async with httpx.AsyncClient(base_url=shared_server.url, headers={"Authorization": f"Bearer {token}"}) as native:
            async with over_stdio_to_server(shared_server, token=token) as client:
                await given(client, "create_session")
                await given(client, "execute_python", code="1")
                assert len((await native.get("/v1/sessions")).json()["sessions"]) == 2
            assert (await native.get("/v1/sessions")).json()["sessions"] == []
        async with over_stdio_to_server(shared_server, token="wrong") as client:
            assert (await refused(client, "execute_python", code="1"))["code"] == "unauthorized"

    within(main())


@pytest.mark.slow
@pytest.mark.spec("MCP-10")
def test_what_is_no_message_does_not_end_onetrip_mcp():
    lines = [b"garbage", b"\xff\xfe", b"[]", b'{"jsonrpc":"2.0","id":7,"method":"ping"}']
    done = subprocess.run(
        [sys.executable, "-m", "onetrip", "mcp"],
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        timeout=TEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in done.stdout.splitlines())


@pytest.mark.spec("MCP-06")
@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[]", b"[" * 10_000, b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', b"1" * 5000]
)
@pytest.mark.parametrize("version", ["2026-07-28", "2025-06-18", "1999-01-01", "\u00e9"])
def test_bodies_that_are_none_are_refused_without_a_traceback(shared_server, body, version):
    headers = {
        "Authorization": f"Bearer {shared_server.token}", "MCP-Protocol-Version": version.encode("latin-1"),
        "Accept": "application/json, text/event-stream", "Content-Type": "application/json",
    }  # fmt: skip
    answer = httpx2.post(f"{shared_server.url}/mcp", headers=headers, content=body)
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.text
