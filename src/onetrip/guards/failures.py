"""What makes two failures of programs the same, and what to say to whoever writes the next program.

A fingerprint is the exception's type, the tool involved, and the line that failed without what differs between two tries of the same idea:
texts, numbers, digits in names, spaces, comments. Everything here is the program's word, or a tool's: it is cut and made printable.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, cast

import msgspec

from onetrip.guards.circuits import normalised
from onetrip.model import ProgramError, Tool, ToolCall
from onetrip.texts import shown

MAX_LINE: Final = 500  # characters of a line that count
MAX_READ_BYTES: Final = 64 << 10  # of a result whose keys a hint names
_KEYS: Final = 12
_TEXT: Final = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
_DIGITS: Final = re.compile(r"[0-9][0-9_.]*")
_COMMENT: Final = re.compile(r"#.*")
_SPACES: Final = re.compile(r"\s+")
_NAME: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_QUOTED: Final = re.compile(r"""['"]([^'"]{1,200})['"]""")
_ABOUT_RESULTS: Final = {  # of errors that mostly come of something else: the messages that may come of a result
    "TypeError": re.compile(r"indices must be|not subscriptable|NoneType|'(dict|list|str)' object"),
    "AttributeError": re.compile(r"^'\w+' object has no attribute"),
}
_TYPES: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


class Failure(NamedTuple):
    """One failure of a program; `line` as it stands in the source, "" where there is none."""

    type: str
    message: str
    line: str
    tool: str | None

    def fingerprint(self) -> tuple[str, str | None, str]:
        """Without a line (the process died, a limit was hit) the message takes its place."""
        return self.type, self.tool, normalised_line(self.line) or normalised(self.message)

    def __str__(self) -> str:
        of = f" of {self.tool}" if self.tool else ""
        return f"{self.type}{of} in `{shown(self.line.strip(), 120)}`" if self.line.strip() else f"{self.type}{of}"


def failure_of(error: ProgramError, source: str, ledger: Sequence[ToolCall]) -> Failure:
    line = line_of(source, error.line)
    kind = shown(error.type.rsplit(".", 1)[-1], 80)
    return Failure(kind, error.message[:1000], line, _tool_involved(kind, line, ledger))


def line_of(source: str, number: int | None) -> str:
    """A line counted from 1, cut; "" for one that there is not: the number is the program's word."""
    at = 0
    if number is None or not 0 < number <= source.count("\n") + 1:
        return ""
    for _ in range(number - 1):
        at = source.index("\n", at) + 1
    return source[at : at + MAX_LINE].partition("\n")[0].rstrip("\r")


def normalised_line(line: str) -> str:
    without_texts = _COMMENT.sub("", _TEXT.sub("''", line))
    return _SPACES.sub("", _DIGITS.sub("0", without_texts))


def _tool_involved(kind: str, line: str, ledger: Sequence[ToolCall]) -> str | None:
    """The tool that the exception is of, or that the line names."""
    if kind.startswith("Tool"):
        failed = next((call.tool for call in reversed(ledger) if call.status not in ("ok", "pending")), None)
        if failed is not None:
            return failed
    called = {call.tool for call in ledger}
    by_last = {name.rpartition(".")[2]: name for name in sorted(called)}
    for name in _NAME.findall(line):
        plain = name.removeprefix("tools.")
        if plain in called:
            return plain
        if plain in by_last:
            return by_last[plain]
    return None


class Known(NamedTuple):
    """What a hint can draw from: the session's tools, and the last result of each (JSON), the latest last."""

    tools: Mapping[str, Tool]
    results: Mapping[str, bytes]


def hint(failure: Failure, known: Known) -> str | None:
    """One sentence about what to do instead; None where nothing is known."""
    if "'coroutine' object" in failure.message or "was never awaited" in failure.message:
        return "A call of a tool is a coroutine here: write `await` before it."
    make = _HINTS.get(failure.type)
    return make(failure, known) if make is not None else None


def _result(failure: Failure, known: Known) -> str | None:
    """For errors that come of taking a result for something else than it is."""
    about = _ABOUT_RESULTS.get(failure.type)
    if about is not None and not about.search(failure.message):
        return None
    tool = failure.tool if failure.tool in known.results else next(reversed([*known.results]), None)
    if tool is None:
        return None
    shape = shape_of(known.results[tool])
    missing = _QUOTED.findall(failure.message)
    if shape is None or (failure.type == "KeyError" and missing and missing[-1] in shape.keys):
        return None  # it is not about this result
    return f"If this is about a result of {tool}: print it first, the last one was {shape.said}."


def _name(failure: Failure, known: Known) -> str | None:
    found = _QUOTED.search(failure.message)
    if found is None:
        return None
    by_last = {name.rpartition(".")[2]: name for name in sorted(known.tools)}
    near = get_close_matches(found[1][:64], [*by_last, *known.tools], n=1)
    if near:
        name = by_last.get(near[0], near[0])
        return f"Did you mean the tool {name}? `tools.search({shown(found[1])!r})` finds others."
    return f"There is no such name; `tools.search({shown(found[1])!r})` finds tools." if known.tools else None


def _arguments(failure: Failure, known: Known) -> str | None:
    tool = known.tools.get(failure.tool or "")
    return f"Call it as {signature(tool)}." if tool is not None else None


def _module(failure: Failure, known: Known) -> str:
    found = _QUOTED.search(failure.message)
    top = found[1].partition(".")[0] if found is not None else ""
    if any(top in {name, name.partition(".")[0], name.rpartition(".")[2]} for name in known.tools):
        return "Tools need no import: call them by name, or as `tools.name`."
    return "This environment does not have that module, and cannot install it: do not import it again, use what is there."


_HINTS: Final[Mapping[str, Callable[[Failure, Known], str | None]]] = {
    "KeyError": _result,
    "IndexError": _result,
    "AttributeError": _result,
    "TypeError": _result,
    "NameError": _name,
    "ToolArgumentError": _arguments,
    "ModuleNotFoundError": _module,
    "ImportError": _module,
    "ToolDenied": lambda failure, _: f"{failure.tool or 'This tool'} may not be called here: go on without it.",
    "ToolTimeout": lambda failure, _: (
        f"{failure.tool or 'The tool'} did not answer in time: ask it for less, or make sure what it did."
    ),
    "LimitExceeded": lambda _, __: "Do less in one program: fewer rows, fewer rounds, several cells.",
}


class Shape(NamedTuple):
    said: str
    keys: frozenset[str]


def shape_of(value: bytes) -> Shape | None:
    """What a result looks like, in a few words; None for one that is too large to look at, or no JSON."""
    if len(value) > MAX_READ_BYTES:
        return None
    try:
        found: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, dict):
        keys = [*cast("dict[str, Any]", found)]
        return Shape(f"an object with the keys {_listed(keys)}" if keys else "an object without keys", frozenset(keys))
    if isinstance(found, list):
        items = cast("list[Any]", found)
        if items and isinstance(items[0], dict):
            keys = [*cast("dict[str, Any]", items[0])]
            return Shape(
                f"a list of length {len(items)}, its first item an object with the keys {_listed(keys)}", frozenset(keys)
            )
        return Shape(f"a list of length {len(items)}", frozenset())
    kind = "None" if found is None else f"a {type(found).__name__}"
    return Shape(f"{kind}: {shown(value.decode(), 40)}" if found is not None else kind, frozenset())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _KEYS} more" if len(names) > _KEYS else ""
    return ", ".join(shown(name, 40) for name in names[:_KEYS]) + more


def signature(tool: Tool) -> str:
    """`shop.order(item: str, count: int = …)`, from a schema that may be anything."""
    properties: Any = tool.input_schema.get("properties")
    required: Any = tool.input_schema.get("required")
    needed = {name for name in cast("list[Any]", required) if isinstance(name, str)} if isinstance(required, list) else set[str]()
    parts: list[str] = []
    for name, schema in cast("dict[str, Any]", properties).items() if isinstance(properties, dict) else ():
        kind: Any = cast("dict[str, Any]", schema).get("type") if isinstance(schema, dict) else None
        annotated = f"{shown(name, 40)}: {_TYPES.get(kind, 'Any') if isinstance(kind, str) else 'Any'}"
        parts.append(annotated if name in needed else f"{annotated} = …")
    if len(parts) > _KEYS:
        parts = [*parts[:_KEYS], "…"]
    return f"{shown(tool.name, 100)}({', '.join(parts) or ''})"
