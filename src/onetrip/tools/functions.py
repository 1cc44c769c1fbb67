"""A Python function as a tool: `@onetrip.tool`, and what its signature and docstring say."""

import functools
import inspect
import keyword
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, cast, overload

import msgspec

from onetrip.errors import BadRequest
from onetrip.model import Effect, Tool
from onetrip.tools.base import DEFAULT_RESULT_BYTES, Awaiting, Blocking, Options, ServerTool, ToolFailed, too_large
from onetrip.tools.signatures import Parameters, encode_other, result_schema

Function = TypeVar("Function", bound=Callable[..., Any])

MARK: Final = "__onetrip_tool__"  # the attribute of a function that `tool` marked
MAX_NAME: Final = 128
_encoder = msgspec.json.Encoder(enc_hook=encode_other)


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect | None = None,
    approval: Literal["never", "required"] | None = None,
    timeout_s: float | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
    max_result_bytes: int | None = None,
) -> Callable[[Function], Function]: ...
def tool(function: Function | None = None, /, **options: Any) -> Function | Callable[[Function], Function]:
    """Marks a function as a tool, and returns it as it is. Bare, or with options (the fields of `Options`).

    Its name, description, parameters and result are those of the function unless the options say otherwise.
    Raises BadRequest for options out of range.
    """
    said = check_options(Options(**options))

    def mark(marked: Function) -> Function:
        setattr(marked, MARK, said)
        return marked

    return mark if function is None else mark(function)


def marked(function: object) -> Options | None:
    """What `tool` was told of a function; None for one that is not marked."""
    found = getattr(function, MARK, None)
    return found if isinstance(found, Options) else None


def from_function(function: Callable[..., Any], options: Options | None = None) -> ServerTool:
    """The tool that a function is. `options` win over those of the decorator. Raises BadRequest that names what cannot be."""
    if not callable(function):
        raise BadRequest(f"tools: {function!r:.100} is not a function.", field="tools")
    said = merged(marked(function), options)
    name = check_name(said.name or getattr(function, "__name__", type(function).__name__))
    description, parameters_said = _docstring(function)
    parameters = Parameters(function, name, parameters_said)
    most = said.max_result_bytes or DEFAULT_RESULT_BYTES
    waits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 -- an object may have an async one
    return ServerTool(
        tool=Tool(
            name=name,
            description=said.description if said.description is not None else description,
            input_schema=parameters.schema,
            output_schema=result_schema(function, name),
            effect=said.effect or "write",
            approval=said.approval or "never",
            timeout_s=said.timeout_s,
            side="server",
        ),
        invoke=_awaiting(function, parameters) if waits else _blocking(function, parameters),
        blocking=not waits,
        concurrency=said.concurrency,
        rate=said.rate,
        max_result_bytes=most,
    )


def merged(*options: Options | None) -> Options:
    """Later ones win, where they say something."""
    said: dict[str, Any] = {}
    for one in options:
        if one is not None:
            said |= {name: value for name, value in msgspec.structs.asdict(one).items() if value is not None}
    return check_options(Options(**said))


def check_options(options: Options) -> Options:
    """The options, or BadRequest that names the one that is out of range."""
    for name, low in (("timeout_s", 0), ("rate", 0), ("concurrency", 1), ("max_result_bytes", 1)):
        value = getattr(options, name)
        if value is not None and not (value > 0 if low == 0 else value >= low):
            raise BadRequest(f"tools: {name}: {value!r} is out of range; it must be more than 0.", field=f"tools.{name}")
    return options


def check_name(name: str) -> str:
    """Identifiers joined by dots, at most MAX_NAME characters; or BadRequest."""
    if len(name) > MAX_NAME or not all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
        raise BadRequest(
            f"tools: {name[:MAX_NAME]!r} is not a name that a tool can have.",
            field="tools.name",
            hint=f"Use identifiers of Python, joined by dots, of at most {MAX_NAME} characters: get_weather, shop.find.",
        )
    return name


def sanitised(name: str) -> str:
    """A name of others as an identifier: what cannot be in one becomes `_`. It may be one that another name gives, too."""
    made = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "tool"
    return f"_{made}" if made[0].isdigit() else f"{made}_" if keyword.iskeyword(made) else made


def encode(value: object, most: int) -> bytes:
    """A value as JSON, once. Raises ToolFailed where it is not JSON, or would have more than `most` bytes."""
    # a character is a byte or more, an item with its comma two: what is surely too large is not copied first
    if (isinstance(value, str | bytes | bytearray) and len(value) > most) or (
        isinstance(value, list | tuple | dict) and 2 * len(cast("list[Any]", value)) > most
    ):
        raise too_large(None, most)
    try:
        encoded = _encoder.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as err:
        raise ToolFailed(f"The tool's result is not JSON: {str(err)[:300]}", code="result_not_json") from err
    if len(encoded) > most:
        raise too_large(len(encoded), most)
    return encoded


def _awaiting(function: Callable[..., Awaitable[Any]], parameters: Parameters) -> Awaiting:
    decode = parameters.decode

    async def invoke(arguments: bytes, most: int) -> bytes:
        positional, named = decode(arguments)
        return encode(await function(*positional, **named), most)

    return invoke


def _blocking(function: Callable[..., Any], parameters: Parameters) -> Blocking:
    decode = parameters.decode

    def invoke(arguments: bytes, most: int) -> bytes:
        positional, named = decode(arguments)
        return encode(function(*positional, **named), most)

    return invoke


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description, and those of the parameters, from a docstring in Google's, numpy's or Sphinx' style."""
    inner = function.func if isinstance(function, functools.partial) else function
    text = inspect.getdoc(inner if inspect.isroutine(inner) else type(inner).__call__) or ""
    if not text:
        return "", {}
    import docstring_parser  # noqa: PLC0415 -- only who registers functions pays for it

    try:
        found = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text, {}
    parts = [found.short_description, found.long_description]
    if found.returns is not None and found.returns.description:
        parts.append(f"Returns: {found.returns.description}")
    description = "\n\n".join(part.strip() for part in parts if part)
    said = {part.arg_name: " ".join(part.description.split()) for part in found.params if part.description}
    return description or text, said
