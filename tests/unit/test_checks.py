"""Requests are refused before anything starts, with the field and the range in the message."""

import math

import pytest

from onetrip import checks, errors
from onetrip.model import Limits


@pytest.mark.spec("BAD-04")
@pytest.mark.parametrize("name", list(checks.LIMIT_RANGES))
def test_each_limit_takes_both_ends_of_its_range_and_nothing_beyond(name):
    low, high, unit, why = checks.LIMIT_RANGES[name]
    kind = type(getattr(Limits(), name))
    assert why
    for value in (kind(low), kind(high)):
        limits = Limits(**{name: value})
        assert checks.check_limits(limits) is limits
    for value in (low - 0.001 if kind is float else int(low) - 1, kind(high) + 1, -1):
        with pytest.raises(errors.BadRequest) as refused:
            checks.check_limits(Limits(**{name: value}))
        assert refused.value.field == f"limits.{name}"
        assert str(refused.value) == f"limits.{name}: {value} is out of range; it must be from {low:g} to {high:,.0f} {unit}."


@pytest.mark.spec("BAD-04")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "60", None, 1.5])
def test_a_limit_that_is_no_number_of_its_kind_is_refused(value):
    with pytest.raises(errors.BadRequest) as refused:
        checks.check_limits(Limits(memory_mb=value))
    assert str(refused.value) == f"limits.memory_mb: {value!r} is not a whole number."


@pytest.mark.spec("BAD-04")
def test_a_timeout_has_the_range_of_the_wall_limit():
    assert [checks.check_timeout(value) for value in (None, 1, 0.5)] == [None, 1, 0.5]
    for value in (0, -1, math.nan, math.inf, True, "1"):
        with pytest.raises(errors.BadRequest, match="^timeout_s: ") as refused:
            checks.check_timeout(value)
        assert refused.value.field == "timeout_s"


def test_every_limit_has_a_range():
    assert set(checks.LIMIT_RANGES) == set(Limits.__struct_fields__)


@pytest.mark.spec("BAD-01")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"1", "code: source must be a str, not bytes."),
        ("a\n\0", "code: the source holds a NUL character in line 2; Python refuses such source."),
        ("'\ud800'", "code: the source holds a lone surrogate (U+D800) in line 1; it cannot be encoded as UTF-8."),
    ],
)
def test_source_that_is_not_text_is_refused(code, message):
    with pytest.raises(errors.BadRequest) as refused:
        checks.check_source(code)
    assert (str(refused.value), refused.value.field) == (message, "code")


@pytest.mark.spec("BAD-02")
@pytest.mark.parametrize("code", ["x" * (checks.MAX_SOURCE_BYTES + 1), "ä" * (checks.MAX_SOURCE_BYTES // 2 + 1)])
def test_source_over_the_cap_is_refused_by_its_size_in_bytes(code):
    with pytest.raises(errors.BadRequest, match=r"bytes; the most is 10,485,760 \(10 MiB\)\.$"):
        checks.check_source(code)
    assert checks.check_source("x" * checks.MAX_SOURCE_BYTES) == b"x" * checks.MAX_SOURCE_BYTES


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.spec("BAD-06")
@pytest.mark.parametrize(
    "inputs", [{"a b": 1}, {"1a": 1}, {"": 1}, {"x": object()}, {"x": "\ud800"}, {"x": nested(100_000)}, {1: 1}]
)
def test_inputs_that_cannot_be_variables_are_refused(inputs):
    with pytest.raises(errors.BadRequest, match="^inputs: "):
        checks.check_inputs(inputs)
    assert checks.check_inputs({"ä": [1, None]}) == '{"ä":[1,null]}'.encode()
