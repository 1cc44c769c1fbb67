"""Tools of real MCP servers, over stdio and HTTP: called, refused, killed in the middle, and there again."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from onetrip.model import ToolRequest
from onetrip.tools import Options, Toolbox
from onetrip.tools.mcp_servers import McpServer, over_http, over_stdio

SHOP = str(Path(__file__).with_name("mcp_shop.py"))
HEADERS = {"Authorization": "Bearer tok-secret-1"}
SMALL = {"shop.large": Options(max_result_bytes=100_000)}
TEST_S = 120
END_S = 10


def request(tool, **arguments):
    return ToolRequest("call_5", f"shop.{tool}", msgspec.json.encode(arguments), "run_1")


@asynccontextmanager
async def shop(connect, **overrides):
    async with asyncio.timeout(TEST_S):
        box = Toolbox(overrides=overrides)
        server = McpServer("shop", connect, box, secrets=("tok-secret-1",))
        server.start()
        try:
            await server.tried.wait()
            yield box
        finally:
            async with asyncio.timeout(END_S):
                await server.aclose()
            box.close()


def stdio(env=None):
    return over_stdio((sys.executable, SHOP), env or {}, None)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(port, *era):
    process = subprocess.Popen([sys.executable, SHOP, str(port), *era])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionError:
                assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def value(answer):
    assert answer.error is None, answer.error
    return msgspec.json.decode(answer.value)


async def check_answers(box):
    tools = {tool.name: tool for tool in box.tools}
    assert (tools["shop.add"].effect, tools["shop.find_item"].effect) == ("read", "write")
    assert tools["shop.add"].description == "Add two numbers."
    assert tools["shop.add"].output_schema["type"] == "integer"
    assert value(await box.ask(request("add", a=40))) == 42
    assert value(await box.ask(request("find_item", name="pear"))) == {"pear": 4}
    assert value(await box.ask(request("as_text", text='{"a": [1]}'))) == {"a": [1]}
    assert value(await box.ask(request("as_text", text="just words"))) == "just words"
    assert value(await box.ask(request("nothing"))) is None
    (picture,) = value(await box.ask(request("picture")))
    assert (picture["type"], picture["mimeType"], picture["data"]) == ("image", "image/png", "iVBORw==")
    failed = (await box.ask(request("fails", why="no such item, tok-secret-1"))).error
    assert (failed.type, failed.message) == ("error", "no such item, ***")
    wrong = (await box.ask(request("add", a="x"))).error
    assert (wrong.type, wrong.message) == ("arguments", 'arguments.a: "x" is not of type "integer"')
    large = (await box.ask(request("large", size=200_000))).error
    assert large.code == "result_too_large"
    answers = await asyncio.gather(*(box.ask(request("add", a=n)) for n in range(20)))
    assert [value(answer) for answer in answers] == [n + 2 for n in range(20)]


@pytest.mark.spec("TOL-11")
def test_tools_of_a_program_on_stdio_answer():
    async def scenario():
        async with shop(stdio(), **SMALL) as box:
            await check_answers(box)

    asyncio.run(scenario())


@pytest.mark.spec("TOL-11")
@pytest.mark.parametrize("era", [(), ("legacy",)], ids=["2026", "older"])
def test_tools_of_a_server_over_http_answer(port, era):
    async def scenario():
        async with shop(over_http(f"http://127.0.0.1:{port}/mcp", HEADERS), **SMALL) as box:
            await check_answers(box)

    with served(port, *era):
        asyncio.run(scenario())


@pytest.mark.spec("TOL-11")
def test_a_program_on_stdio_gets_the_configured_variables_and_no_other(monkeypatch):
    monkeypatch.setenv("OUR_SECRET", "hunter2")

    async def scenario():
        async with shop(stdio({"SHOP_TOKEN": "t", "LC_ALL": "C.UTF-8"})) as box:
            assert set(value(await box.ask(request("variables")))) == {"SHOP_TOKEN", "LC_ALL"}
            assert value(await box.ask(request("variable", name="SHOP_TOKEN"))) == "t"

    asyncio.run(scenario())


async def until_pid(box, old):
    """The server's new process, once it is there: calls until then fail, and may be tried again."""
    while True:
        answer = await box.ask(request("pid"))
        if answer.error is None:
            new = value(answer)
            assert new != old
            return new
        assert (answer.error.retryable, answer.error.code) == (True, "unavailable")


@pytest.mark.spec("TOL-12")
def test_a_program_that_dies_in_a_call_is_started_again():
    async def scenario():
        async with shop(stdio()) as box:
            old = value(await box.ask(request("pid")))
            others = [asyncio.ensure_future(box.ask(request("die"))) for _ in range(3)]
            failures = {(await task).error for task in others}
            assert {(failure.retryable, failure.code) for failure in failures} == {(True, "unavailable")}
            assert all("it is being connected again" in failure.message for failure in failures)
            await until_pid(box, old)

    asyncio.run(scenario())


@pytest.mark.spec("TOL-12")
def test_a_program_that_is_killed_while_it_is_idle_is_started_again_before_anybody_calls():
    async def scenario():
        async with shop(stdio()) as box:
            old = value(await box.ask(request("pid")))
            os.kill(old, signal.SIGKILL)
            new = await until_pid(box, old)
            os.kill(new, signal.SIGKILL)
            await until_pid(box, new)

    asyncio.run(scenario())


@pytest.mark.spec("TOL-12")
@pytest.mark.parametrize("era", [(), ("legacy",)], ids=["2026", "older"])
def test_a_server_over_http_that_is_killed_in_the_middle_of_a_call_is_found_again(port, era, tmp_path):
    entered = tmp_path / "entered"

    os.mkfifo(entered)

    async def scenario():
        with served(port, *era) as first:
            async with shop(over_http(f"http://127.0.0.1:{port}/mcp", HEADERS)) as box:
                old = value(await box.ask(request("pid")))
                hanging = asyncio.ensure_future(box.ask(request("hang", entered=str(entered))))
                await asyncio.to_thread(entered.read_text)
                first.kill()
                failure = (await hanging).error
                assert (failure.retryable, failure.code) == (True, "unavailable")
                gone = (await box.ask(request("add", a=1))).error
                assert (gone.retryable, gone.code) == (True, "unavailable")
                with served(port, *era):
                    await until_pid(box, old)

    asyncio.run(scenario())


@pytest.mark.spec("TOL-11", "TOL-05")
def test_a_call_that_hangs_costs_its_deadline_and_the_server_is_used_on(tmp_path):
    os.mkfifo(tmp_path / "entered")

    async def scenario():
        async with shop(stdio(), **{"shop.hang": Options(timeout_s=1)}) as box:
            old = value(await box.ask(request("pid")))
            asked = asyncio.ensure_future(box.ask(request("hang", entered=str(tmp_path / "entered"))))
            await asyncio.to_thread((tmp_path / "entered").read_text)
            failure = (await asked).error
            assert (failure.type, failure.code) == ("timeout", "deadline")
            assert value(await box.ask(request("pid"))) == old

    asyncio.run(scenario())


@pytest.mark.spec("TOL-12")
@pytest.mark.parametrize(
    "connect",
    [
        over_stdio(("no-such-program-anywhere",), {}, None),
        over_stdio((sys.executable, "-c", "print('this is not MCP', flush=True)"), {}, None),
        over_http("http://127.0.0.1:1/mcp", {}),
    ],
    ids=["no program", "no MCP", "no server"],
)
def test_a_server_that_is_not_there_costs_its_tools_and_nothing_else(connect, caplog):
    async def scenario():
        async with shop(connect) as box:
            assert box.tools == ()

    asyncio.run(scenario())
    assert "MCP server shop" in caplog.text


async def check_grows(box):
    assert value(await box.ask(request("grow"))) == 1
    while "shop.grown" not in [tool.name for tool in box.tools]:
        value(await box.ask(request("add", a=1)))
    assert value(await box.ask(request("grown"))) == 7


@pytest.mark.spec("TOL-12")
def test_a_list_that_changes_is_read_again_from_a_program():
    async def scenario():
        async with shop(stdio()) as box:
            await check_grows(box)

    asyncio.run(scenario())


@pytest.mark.spec("TOL-12")
@pytest.mark.parametrize("era", [(), ("legacy",)], ids=["2026", "older"])
def test_a_list_that_changes_is_read_again_from_a_server(port, era):
    async def scenario():
        async with shop(over_http(f"http://127.0.0.1:{port}/mcp", HEADERS)) as box:
            await check_grows(box)

    with served(port, *era):
        asyncio.run(scenario())


@pytest.mark.spec("TOL-12")
def test_nothing_of_a_program_is_left():
    async def scenario():
        async with shop(stdio()) as box:
            return value(await box.ask(request("pid")))

    pid = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
