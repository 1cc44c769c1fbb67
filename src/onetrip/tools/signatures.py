"""The parameters and the result of a Python function as JSON Schema, and arguments in JSON as Python values.

msgspec does both from the same types, so that what the schema says is what is accepted. What it does not know (pydantic's models,
descriptions in `Annotated`) is translated here.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

import msgspec

from onetrip.errors import BadRequest
from onetrip.tools.base import ToolFailed

_CONSTRAINTS: Final = (
    "ge",
    "gt",
    "le",
    "lt",
    "multiple_of",
    "min_length",
    "max_length",
    "pattern",
)  # of annotated_types, pydantic
_WHERE: Final = re.compile(r"^(?P<what>.*) - at `\$?(?P<path>.*)`$", re.DOTALL)
_DEFINITIONS: Final = "#/$defs/{name}"


class Parameters:
    """What a function takes. Raises BadRequest, naming the parameter, for what has no JSON form.

    `descriptions` are those of the docstring; `Annotated` ones win.
    """

    def __init__(self, function: Callable[..., Any], name: str, descriptions: dict[str, str]) -> None:
        hints = _hints(function, name)
        fields: list[tuple[str, Any, Any]] = []
        self.properties: dict[str, str] = {}
        self._defaults: list[Any] = []
        self._named: list[str] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                raise _bad(name, str(parameter), "a program cannot be told what to give; name each parameter, or take a dict")
            if parameter.kind is parameter.KEYWORD_ONLY:
                self._named.append(parameter.name)
            elif self._named:  # cannot be: Python has keyword-only parameters last
                raise _bad(name, parameter.name, "it comes after keyword-only ones")
            annotation = _understood(hints.get(parameter.name, Any))
            required = parameter.default is parameter.empty
            self._defaults.append(parameter.default)
            field = msgspec.field(name=parameter.name) if required else msgspec.field(name=parameter.name, default=msgspec.UNSET)
            fields.append((f"p{len(fields)}", annotation if required else Union[annotation, msgspec.UnsetType], field))  # noqa: UP007 -- annotations may be strings' and others' types that have no |
            self._check(name, parameter.name, annotation)
        self._places = tuple(field[0] for field in fields)
        self._positional = len(fields) - len(self._named)
        self._type = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        self._decoder = msgspec.json.Decoder(self._type, dec_hook=_decode_other)
        self.schema = _object_schema(name, self._type)
        self._describe(name, list(inspect.signature(function).parameters.values()), descriptions)

    def decode(self, arguments: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for the function. Raises ToolFailed that names what is wrong by its path."""
        try:
            given = self._decoder.decode(arguments)
        except msgspec.ValidationError as err:
            raise ToolFailed(said_of(err), type="arguments") from None
        except (msgspec.DecodeError, RecursionError) as err:
            raise ToolFailed(f"arguments: not JSON: {err}", type="arguments") from None
        values = [
            default if (value := getattr(given, place)) is msgspec.UNSET else value
            for place, default in zip(self._places, self._defaults, strict=True)
        ]
        if not self._named:
            return values, {}
        return values[: self._positional], dict(zip(self._named, values[self._positional :], strict=True))

    @staticmethod
    def _check(name: str, parameter: str, annotation: Any) -> None:
        try:
            msgspec.json.schema_components([annotation], schema_hook=_schema_of_other)
        except (TypeError, NotImplementedError) as err:
            raise _bad(name, parameter, f"its type has no JSON form: {err}") from err

    def _describe(self, name: str, parameters: list[inspect.Parameter], descriptions: dict[str, str]) -> None:
        for parameter in parameters:
            shown = cast("dict[str, Any]", self.schema["properties"][parameter.name])
            if parameter.name in descriptions:
                shown.setdefault("description", descriptions[parameter.name])
            if parameter.default is not parameter.empty:
                try:
                    shown["default"] = msgspec.json.decode(msgspec.json.encode(parameter.default, enc_hook=encode_other))
                except (TypeError, ValueError):
                    pass  # a default that is no JSON, such as a sentinel, cannot be shown; it is used all the same
        unknown = descriptions.keys() - {parameter.name for parameter in parameters}
        if unknown:
            raise _bad(name, min(unknown), "the docstring describes it, but the function does not have it")


def result_schema(function: Callable[..., Any], name: str) -> dict[str, Any] | None:
    """JSON Schema of what a function returns; None where its signature does not say. Raises BadRequest for what has no JSON form."""
    annotation = _hints(function, name).get("return", Any)
    if annotation is Any or annotation is object:
        return None
    try:
        (schema,), components = msgspec.json.schema_components(
            [_understood(annotation)], schema_hook=_schema_of_other, ref_template=_DEFINITIONS
        )
    except (TypeError, NotImplementedError) as err:
        raise _bad(name, "return", f"its type has no JSON form: {err}") from err
    return _with_definitions(name, schema, components)


def encode_other(value: object) -> Any:
    """What msgspec cannot encode: pydantic's models, and whatever has their method."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"objects of type {type(value).__name__} have no JSON form")


def said_of(error: msgspec.ValidationError) -> str:
    """msgspec's words with our path: "arguments.items[2].price: expected `float`, got `str`"."""
    found = _WHERE.match(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), "")
    return f"arguments{path}: {what[:1].lower()}{what[1:400]}"


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    wrapped = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(inspect.unwrap(wrapped), include_extras=True)
    except (NameError, TypeError, AttributeError) as err:
        raise _bad(name, "", f"its annotations cannot be evaluated: {err}") from err


def _understood(annotation: Any) -> Any:
    """The annotation with descriptions and constraints as msgspec has them."""
    if annotation is None:
        return type(None)
    if annotation is datetime:
        return Annotated[datetime, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    if get_origin(annotation) in {Union, types.UnionType}:
        return Union[tuple(_understood(part) for part in get_args(annotation))]  # noqa: UP007 -- made of a tuple
    if get_origin(annotation) is not Annotated:
        return annotation
    inner, *marks = get_args(annotation)
    said: dict[str, Any] = {}
    kept: list[msgspec.Meta] = []
    for mark in marks:
        if isinstance(mark, msgspec.Meta):
            kept.append(mark)
            continue
        description = (
            mark if isinstance(mark, str) else getattr(mark, "description", None) or getattr(mark, "documentation", None)
        )
        if isinstance(description, str):
            said["description"] = description
        for part in (mark, *(getattr(mark, "metadata", None) or ())):
            for constraint in _CONSTRAINTS:
                if not isinstance(part, str) and getattr(part, constraint, None) is not None:
                    said[constraint] = getattr(part, constraint)
    if said:
        kept.append(msgspec.Meta(**said))
    inner = _understood(inner)
    for meta in kept:
        inner = Annotated[inner, meta]
    return inner


def _decode_other(wanted: type, value: object) -> object:
    validate = getattr(wanted, "model_validate", None)
    if not callable(validate):
        raise NotImplementedError(f"{wanted} has no JSON form")
    try:
        return validate(value)
    except ValueError as err:
        errors = getattr(err, "errors", None)
        if not callable(errors):
            raise
        first = cast("list[dict[str, Any]]", errors())[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _schema_of_other(wanted: type) -> dict[str, Any]:
    schema = getattr(wanted, "model_json_schema", None)
    if not callable(schema):
        raise TypeError(f"{getattr(wanted, '__qualname__', wanted)}")
    return cast("dict[str, Any]", schema(ref_template="#/$defs/{model}"))


def _object_schema(name: str, wanted: type[msgspec.Struct]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([wanted], schema_hook=_schema_of_other, ref_template=_DEFINITIONS)
    schema = components.pop(wanted.__name__)
    schema.pop("title", None)
    return _with_definitions(name, schema, components)


def _with_definitions(name: str, schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """One document: what was shared by msgspec, and by pydantic inside its own schemas, stands in its `$defs`."""
    found: dict[str, Any] = dict(components)
    rest: list[Any] = [schema, *components.values()]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            holder = cast("dict[str, Any]", part)
            inner = holder.get("$defs")
            if isinstance(inner, dict) and "properties" in holder:
                for key, definition in cast("dict[str, Any]", holder.pop("$defs")).items():
                    if found.setdefault(key, definition) != definition:
                        raise _bad(name, key, "two types have this name; rename one")
            rest += holder.values()
        elif isinstance(part, list):
            rest += cast("list[Any]", part)
    return {**schema, "$defs": found} if found else schema


def _bad(name: str, parameter: str, why: str) -> BadRequest:
    place = f"tool {name}, {parameter}" if parameter else f"tool {name}"
    return BadRequest(f"{place}: {why}.", field="tools", hint="Change the function's signature or docstring.")
