"""What a model is told of tools: valid Python whatever they say of themselves, the same bytes, and never more than asked for."""

import ast
import json
import subprocess
import sys
import time
import unicodedata

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrip.model import Tool
from onetrip.tools.stubs import describe, render, tokens

GOODS = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "id": {"type": "integer"}, "maker": {"type": "object", "properties": {"city": {"type": "string"}}}},
    "required": ["id", "name"],
}  # fmt: skip
FIND = Tool(
    name="shop.find",
    description="Finds goods by words.",
    input_schema={
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to look for"},
            "limit": {"type": "integer", "default": 10},
            "sort": {"enum": ["price", "name"], "default": "name"},
            "tags": {"type": "array", "items": {"type": ["string", "null"]}},
            "max": {"anyOf": [{"type": "null"}, {"type": "number"}], "default": None},
        },
        "required": ["query"],
    },
    output_schema={"type": "array", "items": GOODS},
)


def many(count=60):
    return [
        msgspec.structs.replace(FIND, name=f"{space}.do_{n}", description=f"Does {n} in {space}. " * 4)
        for space in ("alpha", "beta", "gamma.deep")
        for n in range(count // 3)
    ]


def body(text):
    return text.partition("\n\n")[2]


def test_a_stub_says_types_defaults_choices_and_what_comes_back():
    assert body(render([FIND]).text) == (
        "class shop:\n"
        "    class ShopFindResultMaker(TypedDict):\n"
        "        city: NotRequired[str]\n"
        "    class ShopFindResult(TypedDict):\n"
        "        id: int\n"
        "        maker: NotRequired[ShopFindResultMaker]\n"
        "        name: str\n"
        "    async def find(*, query: str, limit: int = 10, max: float | None = None, sort: Literal['price', 'name'] = 'name', "
        "tags: list[str | None] = ...) -> list[ShopFindResult]:\n"
        '        """Finds goods by words.\n'
        "        query: what to look for\n"
        '        """\n'
    )


def test_blocking_stubs_have_no_async_and_no_await():
    text = render([FIND], style="blocking").text
    assert "    def find(" in text
    assert "async " not in text
    assert "await tools" not in text


@pytest.mark.parametrize(
    ("schema", "hint"),
    [
        ({}, "**arguments: Any"),
        ({"type": "object"}, "**arguments: Any"),
        ({"type": "object", "properties": {}}, ""),
        ({"properties": {"a": True}, "required": ["a"]}, "*, a: Any"),
        ({"properties": {"a": {"type": "object", "additionalProperties": {"type": "integer"}}}, "required": ["a"]}, "*, a: dict[str, int]"),
        ({"properties": {"a": {"type": "string", "nullable": True}}, "required": ["a"]}, "*, a: str | None"),
        ({"properties": {"a": {"const": 3}}, "required": ["a"]}, "*, a: Literal[3]"),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "boolean"}}}, "*, a: bool = ..."),
        ({"properties": {"a": {"$ref": "https://elsewhere.example/x"}}}, "*, a: Any = ..."),
        ({"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"properties": {"b": {}}}]}, "*, a: str, b: Any = ..."),
        ({"properties": {"a": {"enum": [1.5, 2]}}, "required": ["a"]}, "*, a: float | int"),
        ({"properties": {"class": {"type": "string"}, "ok": {}}}, "*, ok: Any = ..., **arguments: Any"),
        ({"properties": {"a": {"default": 10**5000}, "b": {"default": float("inf")}}}, "*, a: Any = ..., b: Any = ..."),
        ({"properties": 3}, "**arguments: Any"),
        ({"properties": {"a": {"type": 3}, "b": {"enum": 5}, "c": None}, "required": 7}, "*, a: Any = ..., b: Any = ..., c: Any = ..."),
    ],
)  # fmt: skip
def test_hints_of_parameters(schema, hint):
    assert f"async def f({hint}) -> Any:" in render([Tool(name="f", input_schema=schema)]).text


@pytest.mark.spec("TOL-20")
@pytest.mark.parametrize(
    "text",
    [
        '"""\nimport os\n"""', "'''\nx", "\\", '\\"""', 'ends with "', "line\nbreak\r\u2028\u2029\x0b\x0c\x85end", "nul \x00 \x1b[31m", "\ud800",
        "\u202eright to left\u2066", "# \nclass x:", '"' * 7, "\N{ZERO WIDTH SPACE}" * 9, "x" * 100_000, "{call}{0}%s", "",
    ],
)  # fmt: skip
def test_no_text_of_a_tool_breaks_out_of_its_stub(text):
    schema = {
        "type": "object",
        "properties": {
            text or "p": {"type": "string", "description": text, "default": text},
            "plain": {"enum": [text, "b"], "description": text, "default": {text: [text]}},
        },
        "required": [text],
    }
    tool = Tool(name="t", description=text, input_schema=schema, output_schema=schema)
    other = Tool(name=text or "-", description=text)
    plain = render([Tool(name="t"), FIND]).text
    for made in (render([tool, other, FIND], budget_tokens=5000).text, describe(tool), describe(other)):
        tree = ast.parse(made)
        compile(made, "<stubs>", "exec", dont_inherit=True, flags=ast.PyCF_ONLY_AST)
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert len(imports) == made.count("from typing import")
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert {unicodedata.category(char) for char in made.replace("\n", "")} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
        assert len(made) < 10_000
    assert ast.dump(ast.parse(plain).body[-1]) == ast.dump(
        ast.parse(render([tool, other, FIND], budget_tokens=5000).text).body[-1]
    )


@pytest.mark.spec("TOL-20")
def test_names_that_python_cannot_say_are_counted_and_not_written():
    names = ["a b", "a-b", "class", "a.None", "", ".", "a..b", "x\ny", "__debug__", "ﬁnd", "ש", "a" * 129, "1a", "a;b"]
    stubs = render([Tool(name=name) for name in [*names, "größe"]])
    assert stubs.included == ("größe",)
    assert sorted(stubs.omitted) == sorted(names)
    assert f"{len(names)} more cannot be called" in stubs.text


@pytest.mark.spec("TOL-20")
def test_schemas_that_turn_back_on_themselves_or_never_end_stay_small():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "all": {"type": "array", "items": {"$ref": "#"}}}}
    assert "all: NotRequired[list[TResult]]" in describe(Tool(name="t", output_schema=node))
    loop = {"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}
    deep: dict = {}
    for _ in range(300):
        deep = {"type": "object", "properties": {"x": deep, "y": deep}, "anyOf": [deep, deep]}
    bomb = {"allOf": [{"$ref": "#"}] * 6}
    wide = {"type": "object", "properties": {f"p{n}": {"enum": [f"{m}" for m in range(5000)]} for n in range(2000)}}
    for schema in (loop, deep, bomb, wide, {"enum": list(range(10**5))}, {"anyOf": [{"const": n} for n in range(10**4)]}):
        tool = Tool(name="t", input_schema=schema, output_schema=schema)
        text = render([tool], budget_tokens=10**6).text + describe(tool)
        assert len(text) < 30_000
        ast.parse(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
_WORDS = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", "odd"])
schemas = st.recursive(
    json_values,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": _WORDS | st.lists(_WORDS, max_size=4), "properties": st.dictionaries(st.text(max_size=10) | st.sampled_from(["a", "from", "b-c"]), inner, max_size=4),
            "required": st.lists(st.sampled_from(["a", "from", "b-c"])), "items": inner, "anyOf": st.lists(inner, max_size=4), "allOf": st.lists(inner, max_size=3),
            "enum": st.lists(json_values, max_size=4), "const": json_values, "default": json_values, "description": st.text(max_size=40),
            "$ref": st.sampled_from(["#", "#/properties/a", "#/x", "x"]), "nullable": st.booleans(), "additionalProperties": inner,
        },
    ),
    max_leaves=6,
)  # fmt: skip
objects = schemas.filter(lambda schema: isinstance(schema, dict))
names = st.lists(st.sampled_from(["a", "b", "shop", "find", "class"]) | st.text(max_size=5), min_size=1, max_size=3).map(".".join)
any_tools = st.lists(
    st.builds(
        Tool,
        name=names, description=st.text(max_size=60), input_schema=objects, output_schema=st.none() | objects,
        approval=st.sampled_from(["never", "required"]),
    ),
    max_size=5, unique_by=lambda tool: tool.name,
)  # fmt: skip


def shuffled(value, chance):
    if isinstance(value, dict):
        items = [(key, shuffled(each, chance)) for key, each in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(each, chance) for each in value] if isinstance(value, list) else value


@pytest.mark.spec("TOL-20", "TOL-21", "TOL-22")
@given(any_tools, st.integers(0, 1500), st.sampled_from(["async", "blocking"]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_random_tools_give_valid_python_within_the_budget_whatever_their_order(tools, budget, style, chance):
    stubs = render(tools, style=style, budget_tokens=budget)
    compile(stubs.text, "<stubs>", "exec", flags=ast.PyCF_ONLY_AST)
    functions = [
        node.name for node in ast.walk(ast.parse(stubs.text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert sorted(functions) == sorted(name.rpartition(".")[2] for name in stubs.included)
    assert sorted(stubs.included + stubs.omitted) == sorted(tool.name for tool in tools)
    least = render(tools, style=style, budget_tokens=0).text
    assert tokens(stubs.text) <= max(budget, tokens(least))
    other = [
        msgspec.structs.replace(
            tool, input_schema=shuffled(tool.input_schema, chance), output_schema=shuffled(tool.output_schema, chance)
        )
        for tool in tools
    ]
    chance.shuffle(other)
    assert render(other, style=style, budget_tokens=budget) == stubs
    for tool in tools:
        ast.parse(describe(tool, style=style))


@pytest.mark.spec("TOL-21")
def test_the_text_is_the_same_in_every_process(tmp_path):
    program = (
        "import sys, random, msgspec; from onetrip.model import Tool; from onetrip.tools.stubs import render\n"
        "tools = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Tool]); random.shuffle(tools)\n"
        "sys.stdout.write(render(tools, budget_tokens=1500).text)"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", program], input=msgspec.json.encode(many()), capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(made) == 1


@pytest.mark.spec("TOL-21")
def test_a_changed_tool_changes_its_own_lines_only():
    tools = many(30)
    before = render(tools, budget_tokens=50_000).text.splitlines()
    tools[7] = msgspec.structs.replace(tools[7], description="Something else.")
    after = render(tools, budget_tokens=50_000).text.splitlines()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.spec("TOL-22")
@pytest.mark.parametrize("budget", [0, 400, 800, 1600, 3000, 6000, 100_000])
def test_every_namespace_is_counted_and_the_text_says_what_is_left_out(budget):
    tools = many()
    stubs = render(tools, budget_tokens=budget)
    assert "alpha 20, beta 20, gamma.deep 20" in stubs.text
    assert tokens(stubs.text) <= max(budget, 500)
    if budget == 100_000:
        assert "# COMPLETE: all 60 tools" in stubs.text
        assert stubs.omitted == ()
    else:
        assert "# PARTIAL: of 60 tools" in stubs.text
        assert 'tools.search("' in stubs.text
        assert "tools.describe(" in stubs.text
        assert f"{len(stubs.omitted)} left out" in stubs.text
    if 1600 <= budget < 10_000:  # no namespace takes everything
        assert {name.rpartition(".")[0] for name in stubs.included} == {"alpha", "beta", "gamma.deep"}


@pytest.mark.spec("TOL-22")
def test_a_budget_is_used_to_the_better_part():
    full = tokens(render(many(), budget_tokens=10**6).text)
    for budget in range(800, full, 500):
        assert tokens(render(many(), budget_tokens=budget).text) > budget * 0.7


def test_a_thousand_tools_are_rendered_in_a_moment():
    began = time.process_time()
    render(many(999))
    assert time.process_time() - began < 5


def test_no_tools_is_said():
    assert "There are no tools" in render([]).text
    assert json.loads(msgspec.json.encode(render([]))) == [render([]).text, [], []]


def test_of_two_tools_of_one_name_the_first_is_taken():
    text = render([Tool(name="a", description="first"), Tool(name="a", description="second")]).text
    assert "first" in text
    assert "second" not in text
