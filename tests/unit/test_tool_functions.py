"""Python functions as tools: what their signature and docstring say, and what programs may give and get."""

import dataclasses
import enum
import functools
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

import onetrip
from onetrip.errors import BadRequest
from onetrip.schemas import Validator
from onetrip.tools import Options, ToolFailed, from_function, tool
from onetrip.tools.functions import sanitised

MIB = 1 << 20


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    name: str
    price: float = 1.0


class Place(TypedDict):
    city: str
    zip: NotRequired[int]


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(ge=1)


class Person(pydantic.BaseModel):
    name: str
    address: Address | None = None


def everything(
    text: str,
    kind: Literal["a", "b"],
    colour: Colour,
    item: Item,
    place: Place,
    point: Point,
    person: Person,
    at: datetime,
    many: list[Item],
    maybe: int | None = None,
    *,
    limit: Annotated[int, "how many at most", pydantic.Field(ge=1, le=100)] = 10,
    extra: dict[str, float] = {},  # noqa: B006 -- what a user writes
) -> list[Any]:
    return [text, kind, colour, item, place, point, person, at, many, maybe, limit, extra]


GIVEN = {
    "text": "t",
    "kind": "a",
    "colour": "red",
    "item": {"name": "n"},
    "place": {"city": "Oslo"},
    "point": {"x": 1},
    "person": {"name": "p", "address": {"street": "s", "number": 3}},
    "at": "2026-11-01T10:00:00Z",
    "many": [{"name": "m", "price": 2}],
}


def call(function, arguments, most=MIB):
    return msgspec.json.decode(from_function(function).invoke(msgspec.json.encode(arguments), most))


@pytest.mark.spec("TOL-03")
def test_values_arrive_as_the_types_of_the_signature_and_results_leave_as_json():
    seen = []

    @functools.wraps(everything)
    def look(*args, **kwargs):
        seen.append(everything(*args, **kwargs))
        return seen[0]

    result = call(look, GIVEN)
    assert seen[0] == [
        "t",
        "a",
        Colour.RED,
        Item("n"),
        {"city": "Oslo"},
        Point(1),
        Person(name="p", address=Address(street="s", number=3)),
        datetime(2026, 11, 1, 10, tzinfo=UTC),
        [Item("m", 2.0)],
        None,
        10,
        {},
    ]
    assert result[6] == {"name": "p", "address": {"street": "s", "number": 3}}
    assert result[7] == "2026-11-01T10:00:00Z"


@pytest.mark.spec("TOL-03")
def test_the_schema_is_one_that_says_what_is_accepted():
    schema = from_function(everything).tool.input_schema
    assert list(schema["properties"]) == list(everything.__annotations__)[:-1]
    assert schema["required"] == ["text", "kind", "colour", "item", "place", "point", "person", "at", "many"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["limit"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "description": "how many at most",
        "default": 10,
    }
    assert schema["properties"]["at"] == {"type": "string", "format": "date-time"}
    validator = Validator(schema)
    assert validator.problem(GIVEN) is None
    assert "arguments.person.address" in validator.problem({**GIVEN, "person": {"name": "p", "address": {"street": 1}}})


@pytest.mark.spec("TOL-01", "TOL-03")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"many": [{"name": "m"}, {"name": "m", "price": "much"}]}, "arguments.many[1].price: expected `float`, got `str`"),
        ({"kind": "c"}, "arguments.kind: invalid enum value 'c'"),
        ({"limit": 101}, "arguments.limit: expected `int` <= 100"),
        ({"unknown": 1}, "arguments: object contains unknown field `unknown`"),
        ({"person": {"name": "p", "address": {"street": "s", "number": 0}}}, "arguments.person: address.number: Input should be"),
        ({"text": None}, "arguments.text: expected `str`, got `null`"),
    ],
)
def test_arguments_that_do_not_fit_name_their_path(changed, said):
    with pytest.raises(ToolFailed) as failed:
        call(everything, {**GIVEN, **changed})
    assert failed.value.failure.type == "arguments"
    assert failed.value.failure.message.startswith(said)


def test_a_missing_argument_is_named():
    with pytest.raises(ToolFailed, match="arguments: object missing required field `text`"):
        call(everything, {})
    with pytest.raises(ToolFailed, match="arguments: not JSON"):
        from_function(everything).invoke(b"{", MIB)


GOOGLE = """Find things.

    More about it.

    Args:
        city: The city,
            by its name.
        n (int): How many.

    Returns:
        What was found.
    """
NUMPY = """Find things.

    More about it.

    Parameters
    ----------
    city : str
        The city,
        by its name.
    n : int
        How many.

    Returns
    -------
    list
        What was found.
    """
SPHINX = """Find things.

    More about it.

    :param city: The city,
        by its name.
    :param int n: How many.
    :returns: What was found.
    """


@pytest.mark.spec("TOL-03")
@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX])
def test_docstrings_of_each_style_describe_the_tool_and_its_parameters(text):
    def find(city: str, n: int = 3) -> list[str]: ...

    find.__doc__ = text
    made = from_function(find).tool
    assert made.description == "Find things.\n\nMore about it.\n\nReturns: What was found."
    assert made.input_schema["properties"]["city"]["description"] == "The city, by its name."
    assert made.input_schema["properties"]["n"]["description"] == "How many."
    assert made.output_schema == {"type": "array", "items": {"type": "string"}}


@pytest.mark.spec("TOL-04")
def test_the_decorator_leaves_a_function_as_it_is_and_says_its_options():
    @onetrip.tool
    def plain(a: int) -> int:
        return a + 1

    @onetrip.tool(name="shop.find", effect="read", approval="required", timeout_s=2, concurrency=3, rate=5.5, max_result_bytes=9)
    async def find(a: int = 1, /, *, b: int = 2) -> int:
        return a + b

    assert plain(1) == 2
    assert from_function(plain).tool.name == "plain"
    assert from_function(plain).tool.effect == "write"
    made = from_function(find, Options(timeout_s=7))
    assert (made.tool.name, made.tool.effect, made.tool.approval, made.tool.timeout_s) == ("shop.find", "read", "required", 7)
    assert (made.concurrency, made.rate, made.max_result_bytes, made.blocking) == (3, 5.5, 9, False)
    assert made.tool.side == "server"


def star(*a): ...
def stars(**a): ...
def unknown_type(a: complex): ...
def unknown_result() -> complex: ...
def described_only():
    """Do.

    Args:
        b: what is not there
    """


def undefined(a: "Undefined"): ...  # noqa: F821


@pytest.mark.spec("TOL-04")
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (star, r"tool star, \*a: a program cannot be told"),
        (stars, r"tool stars, \*\*a: a program cannot be told"),
        (unknown_type, "tool unknown_type, a: its type has no JSON form: complex"),
        (unknown_result, "tool unknown_result, return: its type has no JSON form"),
        (described_only, "tool described_only, b: the docstring describes it"),
        (undefined, "tool undefined: its annotations cannot be evaluated: name 'Undefined'"),
        (lambda a: a, "'<lambda>' is not a name"),
        (3, "3 is not a function"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_registered(function, named):
    with pytest.raises(BadRequest, match=named):
        from_function(function)


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"rate": -1}, {"concurrency": 0}, {"max_result_bytes": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BadRequest, match=next(iter(options))):
        tool(**options)


def test_objects_methods_and_partials_are_tools():
    class Shop:
        def find(self, name: str) -> str:
            return name.upper()

        async def __call__(self, n: int) -> int:
            return n

    assert call(Shop().find, {"name": "a"}) == "A"
    made = from_function(Shop(), Options(name="shop"))
    assert not made.blocking
    assert made.tool.input_schema["required"] == ["n"]


@pytest.mark.spec("TOL-07")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "not JSON: objects of type object have no JSON form"),
        ({(1, 2): 3}, "not JSON"),
        ("x" * 200, "more as JSON; the most is 100"),
        ([1] * 60, "more as JSON; the most is 100"),
        ([["x" * 120]], "126 bytes as JSON; the most is 100"),
    ],
)
def test_a_result_that_is_no_json_or_too_large_is_said(value, said):
    def give():
        return value

    with pytest.raises(ToolFailed, match=said):
        call(give, {}, most=100)


def test_a_result_in_a_circle_is_said():
    def give():
        circle = []
        circle.append(circle)
        return circle

    with pytest.raises(ToolFailed, match="not JSON"):
        call(give, {})


@pytest.mark.parametrize(
    ("name", "made"),
    [("list-files", "list_files"), ("a.b/c", "a_b_c"), ("2fa", "_2fa"), ("class", "class_"), ("日本", "tool"), ("", "tool")],
)
def test_names_of_others_become_identifiers(name, made):
    assert sanitised(name) == made
