"""Where the server has tools: what programs find of them that come over MCP and from E2B's clients."""

import asyncio

import pytest
from mcp_clients import over_http, within
from tool_house import SECRET, House, answer, pending

ASK = {"name": "ask", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}


@pytest.fixture(scope="module")
def house(needs_environment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOUSE_SECRET", SECRET)
        here = House("warm = 1")
        try:
            yield here.start()
        finally:
            here.close()


async def executed(client, **arguments):
    result = await client.call_tool("execute_python", arguments)
    assert not result.is_error, result.content
    return result.structured_content, result.content[0].text


@pytest.mark.spec("TOL-72", "MCP-01")
def test_programs_over_mcp_call_the_servers_tools_but_those_that_somebody_must_allow(house):
    async def main():
        async with over_http(house) as client:
            found, _ = await executed(client, code="x = add(1, 2) + len(signed('a'))\nx")
            assert found["value"] == 3 + len(f"a/{len(SECRET)}")
            found, text = await executed(client, code="shop.pay(70)", session_id=found["session_id"])
            assert (found["status"], found["error"]["type"]) == ("failed", "AttributeError")
            assert "no tool tools.shop.pay" in text
            found, text = await executed(client, code="import asyncio\nr = add(1, 2)\nprint(r + 1)\nawait asyncio.sleep(0)")
            assert found["stdout"] == "4\n"
            assert any("await" in note for note in found["notes"])
            assert "[note]" in text

    within(main())
    assert not house.times("pay:70")


@pytest.mark.spec("TOL-72", "MCP-01")
def test_over_mcp_the_tools_are_those_of_the_key(house):
    token = house.cli_key("acme", "--tools", "shop.p*")

    async def main():
        async with over_http(house, token=token) as client:
            found, _ = await executed(client, code="[name for name in dir(tools.shop) if name[0] != '_'], 'add' in globals()")
            assert found["value"] == [["price"], False]

    within(main())


@pytest.mark.spec("TOL-72", "MCP-01")
def test_a_run_over_mcp_that_waits_for_somebody_else_is_interrupted_and_says_for_what(house):
    token = house.cli_key("acme")
    with house.client(token) as api:
        session = api.post("/v1/sessions", json={"tools": [ASK]}).json()["id"]

        async def main():
            async with over_http(house, token=token) as client:
                found, text = await executed(client, code="x = 5\nask('a')", session_id=session)
                assert found["status"] == "interrupted"
                assert "it called ask" in text
                found, _ = await executed(client, code="x", session_id=session)
                assert found["value"] == 5

        within(main())
        waiting = api.post(f"/v1/sessions/{session}/runs", json={"code": "ask('b')"}).json()
        assert answer(api, waiting, [{"id": pending(waiting)["b"], "value": 1}]).json()["value"] == 1


@pytest.mark.spec("TOL-72")
def test_programs_in_e2b_sandboxes_find_a_plain_interpreter(house):
    interpreter = pytest.importorskip("e2b_code_interpreter")
    token = house.cli_key("acme")
    options = {"api_url": f"{house.url}/e2b", "sandbox_url": f"{house.url}/e2b", "api_key": token}
    with interpreter.Sandbox.create(timeout=600, **options) as sandbox:
        code = "import sys\n[name for name in ('tools', 'add', 'shop', 'ToolError') if name in globals() or name in sys.modules]"
        for context in (None, sandbox.create_code_context()):
            done = sandbox.run_code(code, context=context)
            assert done.error is None, done.error
            assert done.text == "[]"
        assert sandbox.run_code("add(1, 2)").error.name == "NameError"
        assert sandbox.run_code("tools = 'mine'\ntools").text == "mine"
    assert asyncio.run(_still_serves(house, token))


async def _still_serves(house, token):
    async with house.aclient(token) as api:
        return (await api.post("/v1/runs", json={"code": "add(1, 1)"})).json()["value"] == 2
