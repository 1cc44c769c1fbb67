"""The server's own tools over HTTP: listed, told to models, called from sandboxes, kept from who may not, and unharmed by what they do."""

import pytest
from tool_house import NAMES, SECRET, answer, pending


def run(api, code, session=None, **body):
    response = api.post(f"{session}/runs" if session else "/v1/runs", json={"code": code, **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def buyer(house, key):
    """A key for the shop only."""
    with house.client(house.cli_key("acme", "--tools", "shop.*")) as api:
        yield api


# ---------------------------------------------------------------------------------------------------- what is told


@pytest.mark.spec("TOL-70")
def test_the_list_has_every_tool_with_schema_effect_and_approval(user):
    told = {tool["name"]: tool for tool in user.get("/v1/tools").json()["tools"]}
    assert list(told) == NAMES
    assert [told[name]["effect"] for name in ("add", "find", "send")] == ["pure", "read", "write"]
    assert [told[name]["approval"] for name in ("shop.order", "shop.pay")] == ["never", "required"]
    assert told["find"]["description"].startswith("Find things")
    assert told["find"]["input_schema"]["required"] == ["name"]
    assert told["hang"]["timeout_s"] == 0.2
    assert user.get("/v1/capabilities").json()["tools"] is True


@pytest.mark.spec("TOL-70")
def test_stubs_are_the_same_bytes_within_a_budget_and_in_the_style_that_was_asked_for(user):
    whole = user.get("/v1/tools/stubs")
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.content == user.get("/v1/tools/stubs").content
    assert "async def find(" in whole.text
    blocking = user.get("/v1/tools/stubs", params={"style": "blocking"}).text
    assert "def find(" in blocking
    assert "async def" not in blocking
    small = user.get("/v1/tools/stubs", params={"budget": 150}).text
    assert len(small) < len(whole.text)
    assert "tools.search" in small  # how to find what is left out
    shop = user.get("/v1/tools/stubs", params={"tools": ["shop.p*", "ad?"]}).text
    assert ("price" in shop, "pay" in shop, "add" in shop, "order" in shop, "find(" in shop) == (True, True, True, False, False)


@pytest.mark.spec("TOL-70")
@pytest.mark.parametrize(
    ("field", "value"),
    [("budget", "0"), ("budget", "99"), ("budget", "many"), ("budget", "1e9"), ("style", "both"), ("style", "")],
)
def test_stubs_that_cannot_be_are_400_with_the_field(user, field, value):
    refused = user.get("/v1/tools/stubs", params={field: value})
    assert (refused.status_code, refused.json()["field"]) == (400, field)


# ---------------------------------------------------------------------------------------------------- calls


@pytest.mark.spec("TOL-71")
def test_one_shots_and_sessions_call_tools_that_block_and_tools_that_are_awaited(user, place):
    code = "import asyncio\nr = await asyncio.gather(find('pen', limit=2), signed('a'), shop.price('four'), tools.add(1, 2))\n[r[0].items[1].name, *r[1:]]"
    for session in (None, place):
        result = run(user, code, session)
        assert result["value"] == ["pen 1", f"a/{len(SECRET)}", 1.0, 3], result["error"]
        assert [(call["tool"], call["status"]) for call in result["tool_calls"]] == [
            ("find", "ok"), ("signed", "ok"), ("shop.price", "ok"), ("add", "ok"),
        ]  # fmt: skip
    events = user.post(f"{place}/runs", json={"code": "add(1, 2)", "stream": True}).text
    names = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
    assert names == ["started", "tool_call", "tool_result", "done"]


@pytest.mark.spec("TOL-71")
def test_the_secrets_of_a_tool_stay_in_the_server(user, place):
    assert run(user, "signed('x')", place)["value"] == f"x/{len(SECRET)}"
    code = (
        "import glob, os\nfound = dict(os.environ)\ntexts = [repr(found), repr(globals()), repr(tools.describe('signed'))]\n"
        "for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try:\n        texts.append(open(path, errors='replace').read())\n    except OSError:\n        pass\n'\\n'.join(texts)"
    )
    told = run(user, code, place)["value"]
    assert "signed" in told
    assert SECRET not in told
    assert "HOUSE_SECRET" not in told


@pytest.mark.spec("TOL-71")
@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("hang()", "ToolTimeout", "within 0.2 s"),
        ("hang_in_a_thread()", "ToolTimeout", "within 0.2 s"),
        ("huge()", "ToolError", "the most is"),
        ("nothing_that_is_json()", "ToolError", "JSON"),
        ("leaves('exit')", "ToolError", "SystemExit"),
        ("leaves('memory')", "ToolError", "MemoryError"),
        ("leaves('denied')", "ToolDenied", "not you"),
        ("leaves('later')", "ToolError", "busy"),
        ("find(nam='x')", "ToolArgumentError", "did you mean 'name'"),
        ("find(name='x', limit='many')", "ToolArgumentError", "limit"),
        ("find(name=['x'])", "ToolArgumentError", "name"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_an_error_of_the_program_and_the_session_lives(house, user, place, code, error, words):
    result = run(user, f"kept = 5\n{code}", place)
    assert (result["status"], result["error"]["type"]) == ("failed", error), result
    assert words in result["error"]["message"]
    assert "house_tools" not in result["error"]["traceback"]
    assert run(user, "kept", place)["value"] == 5
    assert user.get("/readyz").status_code == 200


@pytest.mark.spec("TOL-71")
def test_calls_of_tools_are_counted_by_tool_and_outcome(house, user):
    def counts():
        return [
            house.counted(user, "onetrip_tool_calls_total", tool="add", outcome="ok"),
            house.counted(user, "onetrip_tool_calls_total", tool="leaves", outcome="denied"),
        ]

    before = counts()
    run(user, "add(1, 1), add(2, 2)\nleaves('denied')")
    assert [now - was for now, was in zip(counts(), before, strict=True)] == [2, 1]


# ---------------------------------------------------------------------------------------------------- who may


@pytest.mark.spec("TOL-72")
def test_a_key_reaches_the_tools_of_its_patterns_and_no_others(house, user, buyer):
    assert [tool["name"] for tool in buyer.get("/v1/tools").json()["tools"]] == ["shop.order", "shop.pay", "shop.price"]
    stubs = buyer.get("/v1/tools/stubs").text
    assert ("price" in stubs, "find" in stubs) == (True, False)
    session = "/v1/sessions/" + buyer.post("/v1/sessions", json={}).json()["id"]
    for path in (None, session):
        assert run(buyer, "shop.price('four')", path)["value"] == 1.0
        assert run(buyer, "find('x')", path)["error"]["type"] == "NameError"
        assert run(buyer, "tools.find('x')", path)["error"]["type"] == "AttributeError"
    wider = {"server_tools": ["*", "find"]}  # what a session asks for widens nothing
    assert run(buyer, "'find' in dir(tools)", **wider)["value"] is False
    none = house.cli_key("acme", "--no-tools")
    with house.client(none) as api:
        assert api.get("/v1/tools").json()["tools"] == []
        assert run(api, "1 + 1")["value"] == 2
        assert run(api, "add(1, 1)")["error"]["type"] == "NameError"
    with house.client(house.cli_key("acme", "--role", "reader")) as reader:
        assert len(reader.get("/v1/tools").json()["tools"]) == len(NAMES)
        assert reader.post("/v1/batch", json={"items": [{"id": "a", "tool": "add", "arguments": {}}]}).status_code == 403
    assert user.get("/v1/tools", headers={"Authorization": "Bearer nobody"}).status_code == 401


@pytest.mark.spec("TOL-72")
def test_a_session_has_the_server_tools_that_it_asked_for_and_keeps_them_in_its_branches(user):
    session = "/v1/sessions/" + user.post("/v1/sessions", json={"server_tools": ["shop.p*"]}).json()["id"]
    branch = "/v1/sessions/" + user.post(session + "/fork").json()["sessions"][0]["id"]
    for path in (session, branch):
        assert run(user, "[name for name in dir(tools.shop) if not name.startswith('_')]", path)["value"] == ["pay", "price"]
        assert run(user, "add(1, 1)", path)["error"]["type"] == "NameError"
    assert run(user, "'tools' in globals()", server_tools=[])["value"] in {True, False}
    assert run(user, "add(1, 1)", server_tools=[])["error"]["type"] == "NameError"
    long = user.post("/v1/sessions", json={"server_tools": ["x" * 201]})
    assert (long.status_code, long.json()["field"]) == (400, "server_tools[0]")


@pytest.mark.spec("TOL-72")
def test_a_program_cannot_reach_by_its_channel_a_tool_that_it_was_not_given(user):
    """The stub for `add` with another name in it: the host knows what the session has."""
    code = "stub = add\nstub._name = 'send'\ntry:\n    r = stub(1, 2)\nexcept PermissionError as e:\n    r = str(e)\nr"
    assert "no tool 'send'" in run(user, code, server_tools=["add"])["value"]


@pytest.mark.spec("TOL-72")
def test_the_runs_of_another_tenant_do_not_exist(house, user, place):
    result = run(user, "shop.pay(1)", place)
    with house.client(house.cli_key("other")) as stranger:
        before = house.counted(user, "onetrip_tool_answers_refused_total", code="not_found")
        refused = answer(stranger, result, [{"id": result["pending"][0]["id"], "approved": True}])
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert stranger.get(f"/v1/runs/{result['id']}").status_code == 404
        assert stranger.post(f"/v1/runs/{result['id']}/interrupt").status_code == 404
        assert house.counted(user, "onetrip_tool_answers_refused_total", code="not_found") == before + 1
    assert not house.times("pay:1")
    assert answer(user, result, [{"id": result["pending"][0]["id"], "approved": True}]).json()["value"] == "paid 1"


# ---------------------------------------------------------------------------------------------------- approval


@pytest.mark.spec("TOL-73")
def test_a_tool_that_needs_approval_is_called_after_a_yes_and_only_then(house, user, place):
    result = run(user, "shop.pay(20)", place)
    assert [(call["tool"], call["arguments"], call["kind"]) for call in result["pending"]] == [
        ("shop.pay", {"amount": 20}, "approval")
    ]
    call = result["pending"][0]["id"]
    for wrong in ({}, {"value": "yes"}, {"value": 1}, {"value": None}, {"value": {"approved": True}}):
        refused = answer(user, result, [{"id": call, **wrong}])
        assert (refused.status_code, refused.json()["field"]) == (400, "results"), refused.text
    assert not house.times("pay:20")
    assert user.get(f"/v1/runs/{result['id']}").json()["pending"][0]["id"] == call  # it waits as before
    assert answer(user, result, [{"id": call, "approved": True}]).json()["value"] == "paid 20"
    assert [told[1] for told in house.told() if told[0] == "pay:20"] == [call]


@pytest.mark.spec("TOL-73")
@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"approved": False}, "ToolDenied", "nobody allowed"),
        ({"value": False}, "ToolDenied", "nobody allowed"),
        ({"error": {"message": "too much", "type": "denied"}}, "ToolDenied", "too much"),
        ({"error": {"message": "asleep", "type": "timeout", "retryable": True}}, "ToolTimeout", "asleep"),
        ({"approved": True, "error": {"message": "no!", "type": "denied"}}, "ToolDenied", "no!"),
    ],
)
def test_a_no_in_any_form_denies_it(house, user, said, error, words):
    result = run(user, "shop.pay(30)")
    ended = answer(user, result, [{"id": result["pending"][0]["id"], **said}]).json()
    assert (ended["status"], ended["error"]["type"]) == ("failed", error)
    assert words in ended["error"]["message"]
    assert not house.times("pay:30")


@pytest.mark.spec("TOL-73")
def test_some_are_allowed_and_others_not_in_one_answer(house, user):
    code = "import asyncio\nr = await asyncio.gather(*(shop.pay(n) for n in (41, 42, 43)), return_exceptions=True)\n[str(x) for x in r]"
    result = run(user, code)
    calls = pending(result)
    answers = [{"id": calls[41], "approved": True}, {"id": calls[42], "approved": False}, {"id": calls[43], "approved": True}]
    ended = answer(user, result, answers).json()
    assert ended["value"] == ["paid 41", "shop.pay: nobody allowed this call", "paid 43"]
    assert [house.times(f"pay:{n}") for n in (41, 42, 43)] == [1, 0, 1]
