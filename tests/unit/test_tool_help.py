"""`tools.search` and `tools.describe`: the tool that is meant comes first, and nothing that a tool says makes them fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip.guest.tool_help import describe, search, signature


def tool(name, description="", parameters=(), **more):
    schema = {"type": "object", "properties": {each: {"type": "string", "description": f"the {each}"} for each in parameters}}
    return {
        "name": name,
        "description": description,
        "input_schema": schema,
        "output_schema": None,
        "effect": "read",
        "approval": "never",
    } | more


CATALOGUE = [
    tool("calendar.add_event", "Puts a meeting into the calendar.", ["title", "start"], effect="write", approval="required"),
    tool("calendar.listEvents", "Lists meetings of a day.", ["day"], output_schema={"type": "array", "items": {"type": "object"}}),
    tool("shop.find", "Finds goods by words.", ["query"]),
    tool("shop.order", "Buys goods. Sends an invoice by mail.", ["goods_id"]),
    tool("mail.send", "Sends a mail.", ["to", "text"]),
    tool("get_weather", "Weather of a city.", ["city"]),
]  # fmt: skip


@pytest.mark.spec("TOL-23")
@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("mail.send", "mail.send"), ("send a mail", "mail.send"), ("weather", "get_weather"), ("events of a day", "calendar.listEvents"),
        ("list event", "calendar.listEvents"), ("city", "get_weather"), ("buy goods", "shop.order"), ("finding goods", "shop.find"), ("MEETING add", "calendar.add_event"),
    ],
)  # fmt: skip
def test_the_tool_that_is_meant_comes_first(query, first):
    assert search(CATALOGUE, query)[0]["name"] == first
    assert search(CATALOGUE[::-1], query) == search(CATALOGUE, query)


@pytest.mark.spec("TOL-23")
def test_a_search_without_words_lists_and_one_that_fits_nothing_is_empty():
    assert [found["name"] for found in search(CATALOGUE, "", limit=2)] == ["calendar.add_event", "calendar.listEvents"]
    assert search(CATALOGUE, "quantum") == []
    assert search(CATALOGUE, "mail", limit=0) == search(CATALOGUE, "mail", limit=-3) == search([], "x") == []


@pytest.mark.spec("TOL-23")
def test_a_description_has_what_a_call_needs():
    text = describe(CATALOGUE, "tools.calendar.add_event")
    assert text.startswith("calendar.add_event(title: str = ..., start: str = ...) -> unknown: print it first\n")
    for part in (
        "Puts a meeting",
        "  title: the title",
        "Effect: write",
        "waits until somebody allows it",
        '"properties": {"title"',
    ):
        assert part in text
    assert signature(CATALOGUE[1]) == "calendar.listEvents(day: str = ...) -> list[dict]"


@pytest.mark.spec("TOL-23")
def test_an_unknown_name_is_an_error_that_names_the_nearest():
    with pytest.raises(LookupError, match="no tool 'calendar.add'; the nearest are calendar.add_event"):
        describe(CATALOGUE, "calendar.add")


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "properties", "enum", "items", "required", "default"]), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(
    st.lists(
        st.fixed_dictionaries({"name": st.text(max_size=8), "description": odd, "input_schema": odd, "output_schema": odd}),
        max_size=5,
    ),
    st.text(max_size=20),
)
def test_nothing_that_a_tool_says_of_itself_makes_them_fail(catalogue, query):
    for found in search(catalogue, query):
        assert describe(catalogue, found["name"])
        assert "\n" not in found["signature"]
    for each in catalogue:
        assert len(signature(each)) <= 500
