"""The text about tools that goes into a prompt: typed Python stubs under a budget of tokens, the same bytes for the same tools.

The order is by namespace and name and depends on nothing else. What is said of a tool depends on that tool alone, and on how much of
the budget the others leave; the rules come first, so that what changes is as far back as can be. The text is valid Python.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from onetrip.model import Tool
from onetrip.tools import texts
from onetrip.tools.hints import Hints, Parameter

CHARS_PER_TOKEN: Final = (
    3.5  # of code and English; tokenizers in use have 3.6 to 4.4. Any character that is not ASCII counts as a token
)
_MAX_PARAMETERS: Final = 30  # of one tool
_DESCRIPTION_CHARS: Final = 240
_PARAMETER_CHARS: Final = 100
_WHOLE: Final = 4  # how much longer texts may be in `describe`
_INDENT: Final = "    "

Style = Literal["async", "blocking"]

_RULES: Final = """\
# Tools that your Python program can call. A class below is a namespace: nothing has to be imported or instantiated.
{call}
# A result is plain data; of a dict both r["key"] and r.key work. `-> Any`: the shape is not known, so print one result before using it.
{parallel}
# A call that fails raises ToolError, ToolTimeout, ToolDenied or ToolArgumentError; .retryable says whether the same call may work later.
# What the program prints, and the value of its last expression, is what you get to see. Descriptions are those of the tools' owners.
from typing import Any, Literal, NotRequired, TypedDict
"""
_CALL: Final = {
    "async": "# Call them with keyword arguments and `await`: `r = await tools.NAMESPACE.NAME(key=value)`; `tools.` may be left out.",
    "blocking": "# Call them with keyword arguments, without `await`: `r = tools.NAMESPACE.NAME(key=value)`; `tools.` may be left out.",
}
_PARALLEL: Final = {
    "async": "# Run calls that do not need each other at once: `a, b = await asyncio.gather(tools.x(...), tools.y(...))`.",
    "blocking": "# Run calls that do not need each other at once: `with ThreadPoolExecutor() as pool: rs = list(pool.map(call, items))`.",
}


class Stubs(NamedTuple):
    """`text` for a prompt; the names of the tools that have a stub in it, whole or signature, and of those that have none."""

    text: str
    included: tuple[str, ...]
    omitted: tuple[str, ...]


class _Entry(NamedTuple):
    tool: Tool
    namespace: str
    name: str
    whole: str
    signature: str


def tokens(text: str) -> int:
    """An upper estimate of how many tokens a text is."""
    others = sum(not char.isascii() for char in text)
    return math.ceil((len(text) - others) / CHARS_PER_TOKEN) + others


def render(tools: Sequence[Tool], *, style: Style = "async", budget_tokens: int = 2000) -> Stubs:
    """Stubs of these tools, at most `budget_tokens` long by our estimate: whole ones, else signatures, else names.

    The rules and a count for every namespace are always there, and are all that may exceed the budget. Of two tools of one name the
    first is taken. Names that a Python program cannot write are counted as omitted.
    """
    distinct = {tool.name: tool for tool in reversed(tools)}
    entries = [_entry(distinct[name], style) for name in sorted(distinct, key=_order) if texts.is_dotted(name)]
    unsayable = sorted(name for name in distinct if not texts.is_dotted(name))
    rules = _RULES.format(call=_CALL[style], parallel=_PARALLEL[style])
    counts = _counts(entries)
    fixed = tokens(rules + counts + _status(entries, entries, set(), len(unsayable)))
    # From the least that can be said to the most. In each step one tool of each namespace has its turn after the other.
    left = budget_tokens - fixed - 4  # line ends between the parts
    turns = _turns(entries)
    named: set[str] = set()
    seen: set[str] = set()
    for entry in turns:
        price = _name_tokens(entry) + (0 if entry.namespace in seen else tokens(f"# By name only, in {entry.namespace}: \n"))
        if price <= left:
            seen.add(entry.namespace)
            named.add(entry.tool.name)
            left -= price
    turns = [entry for entry in turns if entry.tool.name in named]
    signed: set[str] = set()
    left = _upgrade(turns, signed, left, lambda entry: tokens(entry.signature) + _head_tokens(entry) - _name_tokens(entry) + 1)
    whole: set[str] = set()
    turns = [entry for entry in turns if entry.tool.name in signed]
    _upgrade(turns, whole, left, lambda entry: max(tokens(entry.whole) - tokens(entry.signature) + 2, 0))
    included = [entry for entry in entries if entry.tool.name in signed]
    parts = [
        rules,
        _status(entries, included, whole, len(unsayable)),
        counts,
        _by_name([entry for entry in entries if entry.tool.name in named and entry.tool.name not in signed]),
        _body(included, whole),
    ]
    return Stubs(
        "".join(parts).rstrip("\n") + "\n",
        tuple(entry.tool.name for entry in included),
        (*(entry.tool.name for entry in entries if entry.tool.name not in signed), *unsayable),
    )


def describe(tool: Tool, *, style: Style = "async") -> str:
    """Everything about one tool, as a stub with longer texts; valid Python also if its name is not."""
    name = tool.name if texts.is_dotted(tool.name) else "_"
    return _indented(_whole(tool, name, style, _WHOLE), name.count("."), name)


def _indented(text: str, depth: int, name: str) -> str:
    lines = [f"{_INDENT * at}class {part}:" for at, part in enumerate(name.split(".")[:-1])]
    return "\n".join([*lines, *(_INDENT * depth + each for each in text.split("\n"))]) + "\n"


# ---------------------------------------------------------------------------------------------------- one tool


def _order(name: str) -> tuple[str, str]:
    namespace, _, last = name.rpartition(".")
    return namespace, last


def _entry(tool: Tool, style: Style) -> _Entry:
    namespace, name = _order(tool.name)
    indent = _INDENT * tool.name.count(".")
    whole, signature = (
        "\n".join(indent + line for line in text.split("\n"))
        for text in (_whole(tool, tool.name, style, 1), _signature(tool, style))
    )
    return _Entry(tool, namespace, name, whole, signature)


def _whole(tool: Tool, dotted: str, style: Style, factor: int) -> str:
    name = dotted.rpartition(".")[2]
    prefix = "".join(part[:1].upper() + part[1:] for part in dotted.split(".") if part.isascii())[:48] or "Tool"
    hints = Hints(prefix, with_classes=True)
    parameters = hints.parameters(tool.input_schema)
    head = _head(name, parameters, _result(tool, hints, "Result"), style)
    lines = [texts.line(tool.description, _DESCRIPTION_CHARS * factor)]
    if tool.approval == "required":
        lines.append("Waits until somebody allows the call.")
    for parameter in (parameters or [])[: _MAX_PARAMETERS * factor]:
        said = texts.line(parameter.description, _PARAMETER_CHARS * factor)
        if texts.is_name(parameter.name) and said:
            lines.append(f"{parameter.name}: {said}")
        elif not texts.is_name(parameter.name):
            key = texts.line(texts.quoted(parameter.name[:64]), 80)
            must = "must be given" if parameter.default is None else "may be given"
            hint = texts.line(parameter.hint, _PARAMETER_CHARS)
            lines.append(f"{must} as **{{{key}: ...}}, {hint}{': ' if said else ''}{said}")
    lines = [text for text in lines if text]
    if not lines:
        return "\n".join([*hints.classes, f"{head} ..."])
    quotes = '"""'
    if len(lines) == 1:
        return "\n".join([*hints.classes, head, f"{_INDENT}{quotes}{lines[0]}{quotes}"])
    document = [f"{_INDENT}{quotes}{lines[0]}", *(f"{_INDENT}{text}" for text in lines[1:]), f"{_INDENT}{quotes}"]
    return "\n".join([*hints.classes, head, *document])


def _signature(tool: Tool, style: Style) -> str:
    hints = Hints("", with_classes=False)
    return f"{_head(_order(tool.name)[1], hints.parameters(tool.input_schema), _result(tool, hints, ''), style)} ..."


def _result(tool: Tool, hints: Hints, name: str) -> str:
    return "Any" if tool.output_schema is None else hints.hint(tool.output_schema, tool.output_schema, (name,))


def _head(name: str, parameters: list[Parameter] | None, result: str, style: Style) -> str:
    word = "async def" if style == "async" else "def"
    sayable = [parameter for parameter in parameters or () if texts.is_name(parameter.name)]
    shown = [
        f"{parameter.name}: {parameter.hint}" + ("" if parameter.default is None else f" = {parameter.default}")
        for parameter in sayable[:_MAX_PARAMETERS]
    ]
    inside = ", ".join(["*", *shown]) if shown else ""
    if parameters is None or len(shown) < len(parameters):
        others = "others" if any(parameter.name == "arguments" for parameter in sayable) else "arguments"
        inside = f"{inside}, **{others}: Any" if inside else f"**{others}: Any"
    return f"{word} {name}({inside}) -> {result}:"


# ---------------------------------------------------------------------------------------------------- all of them


def _turns(entries: list[_Entry]) -> list[_Entry]:
    """The first of each namespace, then the second of each, and so on."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, _Entry]] = []
    for index, entry in enumerate(entries):
        rank = seen[entry.namespace] = seen.get(entry.namespace, -1) + 1
        ranked.append((rank, index, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])]


def _upgrade(turns: list[_Entry], chosen: set[str], left: int, cost: Callable[[_Entry], int]) -> int:
    for entry in turns:
        price = cost(entry)
        if price <= left:
            chosen.add(entry.tool.name)
            left -= price
    return left


def _name_tokens(entry: _Entry) -> int:
    """An upper bound of what a name adds to the list of names of its namespace."""
    return tokens(f"{entry.name}, ")


def _head_tokens(entry: _Entry) -> int:
    """An upper bound of what the headings of its namespaces add to a stub."""
    parts = entry.namespace.split(".") if entry.namespace else []
    return 2 + sum(tokens(f"{_INDENT * depth}class {part}:\n") for depth, part in enumerate(parts))


def _counts(entries: list[_Entry]) -> str:
    counted: dict[str, int] = {}
    for entry in entries:
        counted[entry.namespace] = counted.get(entry.namespace, 0) + 1
    if not counted:
        return "# There are no tools.\n"
    listed = ", ".join(f"{namespace or '(without)'} {count}" for namespace, count in counted.items())
    return f"# Namespaces and how many tools each has: {listed}.\n"


def _status(entries: list[_Entry], included: list[_Entry], whole: set[str], unsayable: int) -> str:
    odd = f" {unsayable} more cannot be called: their names are not Python's.\n" if unsayable else "\n"
    if len(whole) == len(entries):
        return f"# COMPLETE: all {len(entries)} tools are below.{odd}"
    hidden = len(entries) - len(included)
    return (
        f"# PARTIAL: of {len(entries)} tools {len(whole)} are whole, {len(included) - len(whole)} without descriptions, "
        f"{hidden} left out.{odd}"
        '# Find the rest in your program: print(tools.search("words")), then print(tools.describe("namespace.name")).\n'
    )


def _by_name(entries: list[_Entry]) -> str:
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.namespace, []).append(entry.name)
    return "".join(
        f"# By name only{f', in {namespace}' if namespace else ''}: {', '.join(names)}\n" for namespace, names in groups.items()
    )


def _body(included: list[_Entry], whole: set[str]) -> str:
    lines: list[str] = []
    inside: list[str] = []  # the namespace that the lines before are in
    for entry in included:
        parts = entry.namespace.split(".") if entry.namespace else []
        common = 0
        while common < min(len(parts), len(inside)) and parts[common] == inside[common]:
            common += 1
        lines += [f"{_INDENT * depth}class {parts[depth]}:" for depth in range(common, len(parts))]
        inside = parts
        lines.append(entry.whole if entry.tool.name in whole else entry.signature)
    return "\n" + "\n".join(lines) if lines else ""
