"""Schemas of others: what is wrong is named by its path; hostile ones neither fetch, nor hang, nor cost more than a moment."""

import time
import timeit

import pytest

from onetrip.errors import BadRequest
from onetrip.schemas import Validator

ORDER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "odd name": {"type": "integer"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"price": {"type": "number", "minimum": 0}}}},
}


@pytest.mark.spec("TOL-01")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"city": "Oslo", "items": [{}, {}, {"price": -1}]}, "arguments.items[2].price: -1 is less than the minimum of 0"),
        ({"city": 1}, 'arguments.city: 1 is not of type "string"'),
        ({"city": "a", "odd name": "x"}, 'arguments[\'odd name\']: "x" is not of type "integer"'),
        ({}, 'arguments: "city" is a required property'),
        ({"city": "a", "x": 1}, "arguments: Additional properties are not allowed ('x' was unexpected)"),
    ],
)
def test_a_violation_names_its_path(value, said):
    assert Validator(ORDER).problem(value) == said


def test_what_is_right_has_no_problem():
    assert Validator(ORDER).problem({"city": "Oslo", "items": [{"price": 1.5}]}) is None
    assert Validator({}).problem({"anything": [1, None]}) is None
    assert Validator(True).problem(3) is None


@pytest.mark.spec("TOL-01")
def test_a_long_value_does_not_fill_the_message():
    problem = Validator(ORDER).problem({"city": "y" * 10_000})
    assert len(problem) < 400
    assert problem.endswith("is longer than 20 characters")


def doubled(levels):
    """Each level tries the next twice: 2**levels subschemas on one value."""
    parts = {"d0": {"type": "string"}}
    for level in range(levels):
        parts[f"d{level + 1}"] = {"anyOf": [{"$ref": f"#/$defs/d{level}"}, {"$ref": f"#/$defs/d{level}"}]}
    return {"$defs": parts, "$ref": f"#/$defs/d{levels}"}


def doubled_below(levels):
    """The same, going into the value."""
    parts = {"d0": {"type": "string"}}
    for level in range(levels):
        below = {"properties": {"a": {"$ref": f"#/$defs/d{level}"}}}
        parts[f"d{level + 1}"] = {"allOf": [below, below]}
    return {"$defs": parts, "$ref": f"#/$defs/d{levels}"}


def unevaluated(levels):
    schema = {"properties": {"a": {}}}
    for _ in range(levels):
        schema = {"allOf": [schema], "unevaluatedProperties": False}
    return schema


def nested(levels, key="not"):
    schema = {}
    for _ in range(levels):
        schema = {key: schema}
    return schema


@pytest.mark.spec("TOL-02")
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"a": {"type": "strin"}}}, r"input_schema\.properties\.a\.type: .*strin"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "leads out of the schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "leads out of the schema"),
        ({"$schema": "http://127.0.0.1:1/x.json"}, "Unknown meta-schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "leads back"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "leads back"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, r"input_schema\.properties\.a\.pattern: .*linear time"),
        ({"properties": {"a": {"pattern": "((a{100}){100}){100}"}}}, "linear time"),
        ({"$defs": {"a": {"$id": "http://x.y/z"}}}, "no address of its own"),
        (nested(5000), "nested more than"),
        (doubled(30), "millions"),
        (unevaluated(30), "millions"),
        ({"description": "x" * 300_000}, "300,018 bytes"),
        ({"default": object()}, "not JSON"),
        ({"default": {1: 2}, "x": float}, "not JSON"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_its_place(schema, named):
    began = time.monotonic()
    with pytest.raises(BadRequest, match=named) as refused:
        Validator(schema)
    assert time.monotonic() - began < 1
    assert refused.value.field.startswith("input_schema")


EVIL = [
    ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 1_000_000 + "b"}),
    (doubled(14), 1),
    (doubled_below(25), nested(25, "a") | {"b": 1}),
    (
        {"$defs": {"n": {"anyOf": [{"properties": {"a": {"$ref": "#/$defs/n"}}}, {"properties": {"a": {"$ref": "#/$defs/n"}}}]}}}
        | {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["z"]},
        nested(60, "a"),
    ),
    ({"items": {"allOf": [{"type": "integer"}] * 10_000}}, [1] * 200_000 + ["x"]),
    ({"properties": {"a": {"$ref": "#"}}, "type": "object"}, {"a": nested(500, "a")}),
]


@pytest.mark.spec("TOL-02")
@pytest.mark.parametrize(("schema", "value"), EVIL)
def test_a_schema_and_a_value_made_to_cost_minutes_cost_a_moment(schema, value):
    began = time.monotonic()
    assert Validator(schema).problem(value) is not None
    assert time.monotonic() - began < 2


def test_schemas_that_go_into_themselves_are_used():
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "value": {"type": "integer"}},
        "additionalProperties": False,
    }
    value = {"value": 0}
    for _ in range(50):
        value = {"left": value, "right": {"value": 1}}
    assert Validator(tree).problem(value) is None
    value["right"]["value"] = "x"
    assert "arguments.right.value" in Validator(tree).problem(value)


def test_alternatives_that_go_into_themselves_are_used():
    node = {
        "anyOf": [
            {"type": "integer"},
            {"type": "object", "properties": {"op": {"const": "+"}, "of": {"type": "array", "items": {"$ref": "#/$defs/n"}}}},
            {"type": "object", "properties": {"op": {"const": "-"}, "of": {"type": "array", "items": {"$ref": "#/$defs/n"}}}},
        ]
    }
    value = 1
    for _ in range(4):
        value = {"op": "+", "of": [value, 2]}
    assert Validator({"$defs": {"n": node}, "$ref": "#/$defs/n"}).problem(value) is None


def test_all_drafts_and_anchors_are_understood():
    draft_7 = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"a": {"type": "string"}},
        "properties": {"b": {"$ref": "#/definitions/a"}},
    }
    assert Validator(draft_7).problem({"b": 1}) == 'arguments.b: 1 is not of type "string"'
    anchored = {"$defs": {"a": {"$anchor": "text", "type": "string"}}, "items": {"$ref": "#text"}}
    assert Validator(anchored, root="result").problem([1]) == 'result[0]: 1 is not of type "string"'


@pytest.mark.spec("TOL-02")
def test_small_arguments_are_checked_in_microseconds():
    validator = Validator(ORDER)
    value = {"city": "Oslo", "items": [{"price": 1.0}] * 3}
    assert min(timeit.repeat(lambda: validator.problem(value), number=1000, repeat=5)) < 0.05  # 50 µs each; measured: 3
