"""`tools.search()` and `tools.describe()`: what a program can ask about tools that its prompt left out.

Pure functions over the catalogue: dictionaries with `name`, `description`, `input_schema`, `output_schema`, `effect`, `approval`.
"""

from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any, Final, cast

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_MAX_QUERY_CHARS: Final = 500
_MAX_WORDS: Final = 20
_MAX_RESULTS: Final = 100
_MAX_SUMMARY_CHARS: Final = 160
_MAX_SCHEMA_CHARS: Final = 6000
_MAX_TEXT_CHARS: Final = 4000
_TYPES: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "array": "list",
    "object": "dict",
}
_IN_NAME, _IN_PARAMETERS, _IN_DESCRIPTION = 8, 3, 2  # how much a word found there is worth; half for a beginning only

Tool = Mapping[str, Any]


def search(catalogue: Sequence[Tool], query: str, limit: int = 10) -> list[dict[str, str]]:
    """The tools that fit the words best, each as `{"name", "signature", "description"}`; with no words the first by name.

    Every word counts where it is found first: in the name, the parameters' names, the description. Ties are in order of names.
    """
    wanted = _words(str(query)[:_MAX_QUERY_CHARS])[:_MAX_WORDS]
    ranked: list[tuple[float, str, Tool]] = []
    for tool in catalogue:
        score = _score(tool, wanted, str(query).strip().lower())
        if score or not wanted:
            ranked.append((-score, str(tool.get("name", "")), tool))
    ranked.sort(key=_rank)
    count = max(0, min(int(limit), _MAX_RESULTS))
    return [
        {"name": name, "signature": signature(tool), "description": _cut(_line(tool.get("description")), _MAX_SUMMARY_CHARS)}
        for _, name, tool in ranked[:count]
    ]


def describe(catalogue: Sequence[Tool], name: object) -> str:
    """Everything about one tool, for printing. `name` as a program calls it, with or without `tools.`.

    Raises LookupError that names the nearest ones.
    """
    asked = str(getattr(name, "__tool_name__", name)).removeprefix("tools.")
    for tool in catalogue:
        if tool.get("name") == asked:
            return _described(tool)
    near = [found["name"] for found in search(catalogue, asked, 3)]
    hint = f"; the nearest are {', '.join(near)}" if near else '; tools.search("") lists what there is'
    raise LookupError(f"there is no tool {asked[:100]!r}{hint}")


def signature(tool: Tool) -> str:
    """One line: `shop.find(query: str, limit: int = 10) -> list`."""
    schema = _mapping(tool.get("input_schema"))
    properties = _mapping(schema.get("properties"))
    required = _list(schema.get("required"))
    parts = [
        f"{parameter}: {_type(_mapping(properties[parameter]))}{'' if parameter in required else _default(properties[parameter])}"
        for parameter in sorted(properties, key=lambda each: each not in required)
    ]
    if "properties" not in schema:
        parts = ["**anything"]
    output = tool.get("output_schema")
    result = _type(_mapping(output)) if output is not None else "unknown: print it first"
    return _cut(_line(f"{tool.get('name', '')}({', '.join(parts)}) -> {result}"), 500)


def _described(tool: Tool) -> str:
    schema = _mapping(tool.get("input_schema"))
    properties = _mapping(schema.get("properties"))
    lines = [signature(tool)]
    text = str(tool.get("description") or "").strip()
    if text:
        lines += ["", _cut(text, _MAX_TEXT_CHARS)]
    said = [
        f"  {name}: {_cut(_line(_mapping(value).get('description')), 300)}"
        for name, value in properties.items()
        if _mapping(value).get("description")
    ]
    if said:
        lines += ["", "Parameters:", *said]
    lines += ["", f"Effect: {tool.get('effect', 'write')}."]
    if tool.get("approval") == "required":
        lines.append("Each call waits until somebody allows it.")
    lines += ["", f"Arguments, as JSON Schema: {_json(schema)}"]
    if tool.get("output_schema") is not None:
        lines.append(f"Result, as JSON Schema: {_json(tool['output_schema'])}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- ranking


def _score(tool: Tool, wanted: Sequence[str], query: str) -> float:
    name = str(tool.get("name", ""))
    if name.lower() == query:
        return 1000.0
    places = (
        (_words(name), _IN_NAME),
        (_words(" ".join(map(str, _mapping(_mapping(tool.get("input_schema")).get("properties"))))), _IN_PARAMETERS),
        (_words(str(tool.get("description") or "")[:_MAX_TEXT_CHARS]), _IN_DESCRIPTION),
    )
    score = 0.0
    found = 0
    for word in wanted:
        best = max((worth * _likeness(word, words) for words, worth in places), default=0.0)
        score += best
        found += best > 0
    return score * found / len(wanted) if wanted else 0.0  # a tool that has all words comes before one that has a word often


def _likeness(word: str, words: Sequence[str]) -> float:
    if word in words:
        return 1.0
    close = any(
        min(len(other), len(word)) >= 3 and (other.startswith(word) or (word.startswith(other) and len(word) - len(other) <= 3))
        for other in words
    )
    return 0.5 if close else 0.0


def _words(text: str) -> list[str]:
    """Lower-case words; `getUserName` and `get_user_name` are three each."""
    found: list[str] = []
    word = ""
    before = ""
    for char in text:
        if not char.isalnum() or (char.isupper() and before.islower()):
            if word:
                found.append(word)
            word = ""
        if char.isalnum():
            word += char.lower()
        before = char
    if word:
        found.append(word)
    return list(dict.fromkeys(found))


def _rank(ranked: tuple[float, str, Tool]) -> tuple[float, str]:
    return ranked[0], ranked[1]


# ---------------------------------------------------------------------------------------------------- texts


def _type(schema: Mapping[str, Any]) -> str:
    choices = schema.get("enum")
    if isinstance(choices, list) and len(cast("list[Any]", choices)) <= 8:
        return " | ".join(repr(choice) for choice in cast("list[Any]", choices))
    kind = schema.get("type")
    kinds = cast("list[Any]", kind) if isinstance(kind, list) else [kind]
    names = [_TYPES.get(str(each), "Any") for each in kinds]
    if names == ["list"]:
        inner = _TYPES.get(str(_mapping(schema.get("items")).get("type")))
        return f"list[{inner}]" if inner else "list"
    return " | ".join(names)


def _default(schema: object) -> str:
    details = _mapping(schema)
    return f" = {_cut(repr(details['default']), 40)}" if "default" in details else " = ..."


def _json(value: object) -> str:
    return _cut(dumps(value, ensure_ascii=False), _MAX_SCHEMA_CHARS)


def _line(text: object) -> str:
    return " ".join(str(text or "").split())


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
