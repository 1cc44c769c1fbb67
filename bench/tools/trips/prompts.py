"""What the simulated model is told: the instructions and the tools, as JSON for a tool loop and as Python stubs for programs."""

import inspect
import json
import re
import typing
from typing import Any, Final

import msgspec

from trips.sets import ToolSet

_DO: Final = "You are an assistant. Use the tools to find out what is asked, then answer as JSON and with nothing else."

_RUN_PYTHON: Final = {
    "name": "run_python",
    "description": "Run a Python program in a sandbox. The functions below can be called in it, with await; the value of its last "
    "expression is the result. Use asyncio.gather for calls that do not depend on each other.",
    "input_schema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}


def for_calls(tools: ToolSet) -> str:
    """Instructions, and a JSON definition of each tool."""
    definitions = [
        {"name": name, "description": inspect.getdoc(function), "input_schema": _schema(function)}
        for name, function in tools.tools().items()
    ]
    return f"{_DO}\n{_compact(definitions)}"


def for_programs(tools: ToolSet) -> str:
    """Instructions, the one tool that runs programs, and typed stubs of the functions, with the types of their results."""
    types: dict[str, str] = {}
    stubs: list[str] = []
    for name, function in tools.tools().items():
        for hint in typing.get_type_hints(function).values():
            _collect(hint, types)
        signature = _plain(str(inspect.signature(function)).replace("'", '"'))
        stubs.append(f"async def {name}{signature}: ...  # {inspect.getdoc(function)}")
    return "\n".join([_DO, _compact(_RUN_PYTHON), *types.values(), *stubs])


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _schema(function: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {
        "type": "object",
        "properties": {name: msgspec.json.schema(hints[name]) for name in parameters},
        "required": [name for name, parameter in parameters.items() if parameter.default is parameter.empty],
    }


def _collect(hint: Any, types: dict[str, str]) -> None:
    """The source of each TypedDict that a type is made of, those that others need first."""
    for part in typing.get_args(hint):
        _collect(part, types)
    if typing.is_typeddict(hint) and hint.__name__ not in types:
        for part in typing.get_type_hints(hint).values():
            _collect(part, types)
        types[hint.__name__] = inspect.getsource(hint).strip()


def _plain(text: str) -> str:
    """Type names without the modules that they come from."""
    return re.sub(r"\btrips\.sets\.\w+\.", "", text)
