"""Validates values against JSON Schemas that others declared: tenants, MCP servers, OpenAPI documents.

The schema is as little trusted as the value. Nothing is fetched, patterns match in linear time, and what a schema can cost is bounded
(`schema_work`). The validator is jsonschema-rs: it knows all drafts, is checked by the official test suite, and takes
microseconds where the one in Python takes hundreds.
"""

from typing import Any, Final, cast

import msgspec

from onetrip.errors import BadRequest
from onetrip.schema_work import Refused, Schema, Work, check_nesting

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_WORK: Final = 3_000_000  # subschemas tried for one value: a fraction of a second
_MAX_EXPLAINED: Final = 3_000  # to say where a value is wrong costs some 75 µs for each
_TRIVIAL: Final = 64  # below so much work for each place, places are not counted: the value's own size bounds it
_MAX_MESSAGE: Final = 300  # characters; messages quote the value
_REGEX_BYTES: Final = 1 << 20  # of a pattern as the validator has it


class Validator:
    """Checks values against one schema. Raises BadRequest, naming the place, for a schema that cannot be used.

    `root` is what the value is called in messages, `field` what the schema is called in errors.
    """

    def __init__(self, schema: Schema, *, root: str = "arguments", field: str = "input_schema") -> None:
        import jsonschema_rs  # noqa: PLC0415 -- most runs have no tools, and start without it

        self.root = root
        try:
            check_nesting(schema)
            size = len(msgspec.json.encode(schema))
            if size > MAX_SCHEMA_BYTES:
                raise Refused("", f"it has {size:,} bytes; the most is {MAX_SCHEMA_BYTES:,}")
            self._work = Work(schema)
        except Refused as err:
            raise _bad(field, err.where, str(err)) from err
        except (TypeError, ValueError) as err:
            raise _bad(field, "", f"it is not JSON: {err}") from err
        if self._work.at(0) > MAX_WORK:
            raise _bad(field, "", "one value would be tried with millions of its parts; write shared parts once")
        self._trivial = self._work.at(1_000_000) <= _TRIVIAL
        try:
            self._compiled = jsonschema_rs.validator_for(
                schema,
                pattern_options=jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES),
                offline=True,
                validate_formats=False,
            )
        except jsonschema_rs.ValidationError as err:
            message = err.message
            if err.kind.name == "pattern" or message.endswith('is not a "regex"'):
                message += " that matches in linear time: no look-around, no back-references, no huge repetitions"
            raise _bad(field, _path("", err.instance_path).removeprefix("."), _short(message)) from err
        except ValueError as err:
            raise _bad(field, "", _short(str(err))) from err
        self._wrong = jsonschema_rs.ValidationError

    def problem(self, value: Any) -> str | None:
        """The first thing that is wrong with a JSON value, such as "arguments.items[2].price: -1 is less than the minimum of 0"."""
        work = 0
        if not self._trivial:
            depth, places = _measure(value)
            work = self._work.at(depth) * places
            if work > MAX_WORK:
                return f"{self.root}: too large, or nested too deep, to be checked against its schema"
        try:
            if self._compiled.is_valid(value):
                return None
            if work > _MAX_EXPLAINED and self._work.alternatives:
                return f"{self.root}: does not match its schema, in which too many alternatives apply to say where"
            self._compiled.validate(value)
        except self._wrong as err:
            return f"{_path(self.root, err.instance_path)}: {_short(err.message)}"
        except ValueError as err:
            return f"{self.root}: {_short(str(err))}"
        return None


def _bad(field: str, where: str, why: str) -> BadRequest:
    place = f"{field}.{where}" if where else field
    return BadRequest(f"{place}: {why}.", field=place, hint="Correct the JSON Schema. Nothing was started.")


def _path(root: str, steps: list[str | int]) -> str:
    path = root
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if step.isidentifier() else f"[{step[:80]!r}]"
    return path


def _short(message: str) -> str:
    """The middle of a long message is the value, which the program has."""
    if len(message) <= _MAX_MESSAGE:
        return message
    return f"{message[: _MAX_MESSAGE // 3]}…{message[-(_MAX_MESSAGE // 3 * 2) :]}"


def _measure(value: Any) -> tuple[int, int]:
    """How deep a value is nested, and how many values are in it."""
    depth, places, level = -1, 0, [value]
    while level:
        places += len(level)
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += cast("dict[str, Any]", one).values()
            elif isinstance(one, list | tuple):
                inner += cast("list[Any]", one)
        depth, level = depth + 1, inner
    return depth, places
