"""JSON Schema → Python type hints, as text for a model to read: bounded whatever the schema is, and the same whatever its order.

What cannot be said, goes too deep or is too much becomes `Any`, or the type without its parts. A schema is never trusted to be one.
"""

from typing import Any, Final, NamedTuple, cast

from onetrip.tools.texts import is_name, literal, quoted

_SIMPLE: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_MAX_DEPTH: Final = 6
_MAX_STEPS: Final = 300  # schemas looked at for one tool
_MAX_CLASSES: Final = 10
_MAX_FIELDS: Final = 30  # of one class
_MAX_MEMBERS: Final = 6  # of a union
_MAX_CHOICES: Final = 12  # of an enum
_MAX_CHOICE_CHARS: Final = 40
_MAX_HINT_CHARS: Final = 300
_MAX_HOPS: Final = 8  # from $ref to $ref

Schema = dict[str, Any]


class Parameter(NamedTuple):
    name: str
    hint: str
    default: str | None  # as Python; "..." where there is one that is not said; None: it must be given
    description: str


class Hints:
    """The hints of one tool. With `classes` objects become TypedDicts, whose text gathers there; without, they are plain dicts."""

    def __init__(self, prefix: str, *, with_classes: bool) -> None:
        self.classes: list[str] = []
        self._prefix = prefix
        self._with_classes = with_classes
        self._names: set[str] = set()
        self._open: dict[int, str] = {}  # classes on their way: a schema that comes back to itself means their name
        self._steps = 0

    def parameters(self, schema: Schema) -> list[Parameter] | None:
        """Of a tool's `input_schema`: those that must be given first, then by name. None: it takes anything."""
        merged = self._merged(schema, schema, 0)
        properties = _properties(merged)
        if properties is None:
            return None
        required = _required(merged)
        found: list[Parameter] = []
        for name in sorted(properties, key=lambda name: (name not in required, name)):
            raw = properties[name]
            default = None if name in required else "..."
            said: Any = ""
            if isinstance(raw, dict):
                details = cast("Schema", raw)
                if name not in required and "default" in details:
                    default = literal(details["default"], 40) or "..."
                said = details.get("description", "")
            found.append(Parameter(name, self.hint(raw, schema, (name,)), default, said if isinstance(said, str) else ""))
        return found

    def hint(self, schema: Any, root: Schema, path: tuple[str, ...], depth: int = 0) -> str:
        """The hint of any schema; `root` is where its references lead, `path` names a class that it may need."""
        self._steps += 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._steps > _MAX_STEPS:
            return "Any"
        open_class = self._open.get(id(self._target(cast("Schema", schema), root)))
        if open_class is not None:
            return open_class
        merged = self._merged(cast("Schema", schema), root, 0)
        found = self._hint(merged, root, path, depth)
        if len(found) > _MAX_HINT_CHARS:
            found = "Any"
        if merged.get("nullable") is True and found != "Any":
            return _union([found, "None"])
        return found

    def _hint(self, schema: Schema, root: Schema, path: tuple[str, ...], depth: int) -> str:
        if "const" in schema:
            return _choices([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _choices(cast("list[Any]", schema["enum"]))
        for word in ("anyOf", "oneOf"):
            members: Any = schema.get(word)
            if isinstance(members, list) and members:
                some = cast("list[Any]", members)
                if len(some) > _MAX_MEMBERS:
                    return "Any"
                return _union([self.hint(each, root, path, depth + 1) for each in some])
        kind: Any = schema.get("type")
        if isinstance(kind, list):
            kinds = cast("list[Any]", kind)[:8]
            return _union([self._typed(schema, each, root, path, depth) for each in kinds]) if kinds else "Any"
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else None
        return self._typed(schema, kind, root, path, depth)

    def _typed(self, schema: Schema, kind: Any, root: Schema, path: tuple[str, ...], depth: int) -> str:
        if not isinstance(kind, str):
            return "Any"
        if kind in _SIMPLE:
            return _SIMPLE[kind]
        if kind == "array":
            return f"list[{self.hint(schema.get('items'), root, path, depth + 1)}]"
        if kind != "object":
            return "Any"
        properties = _properties(schema)
        if not properties:
            inner = self.hint(schema.get("additionalProperties"), root, path, depth + 1)
            return f"dict[str, {inner}]"
        if not self._with_classes or len(self._names) >= _MAX_CLASSES or depth >= _MAX_DEPTH:
            return "dict[str, Any]"
        return self._class(schema, properties, root, path, depth)

    def _class(self, schema: Schema, properties: Schema, root: Schema, path: tuple[str, ...], depth: int) -> str:
        name = self._class_name(path)
        key = id(schema["properties"])
        self._open[key] = name
        required = _required(schema)
        lines: list[str] = [f"class {name}(TypedDict):"]
        left_out: list[str] = []
        for field in sorted(properties)[:_MAX_FIELDS]:
            hint = self.hint(properties[field], root, (*path, field), depth + 1)
            hint = hint if field in required else f"NotRequired[{hint}]"
            if is_name(field):
                lines.append(f"    {field}: {hint}")
            elif len(field) <= _MAX_CHOICE_CHARS:
                left_out.append(f"    # {quoted(field)}: {hint}")
        if len(properties) > _MAX_FIELDS:
            left_out.append(f"    # and {len(properties) - _MAX_FIELDS} more")
        lines += left_out
        if len(lines) == 1 + len(left_out):
            lines.append("    pass")
        del self._open[key]
        self.classes.append("\n".join(lines))
        return name

    def _class_name(self, path: tuple[str, ...]) -> str:
        parts = ("".join(char for char in part if char.isascii() and (char.isalnum() or char == "_"))[:24] for part in path)
        base = name = self._prefix + "".join(part[:1].upper() + part[1:] for part in parts)
        number = 2
        while name in self._names:
            name, number = f"{base}{number}", number + 1
        self._names.add(name)
        return name

    def _target(self, schema: Schema, root: Schema) -> Any:
        """What tells a class again: the dictionary of its properties."""
        return self._merged(schema, root, 0).get("properties")

    def _merged(self, schema: Schema, root: Schema, hops: int) -> Schema:
        """A schema with its reference followed and its `allOf` put together, one level of them."""
        reference: Any = schema.get("$ref")
        if isinstance(reference, str):
            found = _pointed(root, reference)
            if found is None or hops >= _MAX_HOPS:
                return {}
            return self._merged(found, root, hops + 1)
        parts: Any = schema.get("allOf")
        if not isinstance(parts, list) or not parts or hops >= _MAX_HOPS:
            return schema
        some = [cast("Schema", part) for part in cast("list[Any]", parts)[:_MAX_MEMBERS] if isinstance(part, dict)]
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in some:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                break
            other = self._merged(part, root, hops + 1)
            for key, value in other.items():
                if key == "properties" and isinstance(value, dict):
                    merged[key] = (_properties(merged) or {}) | cast("Schema", value) if "properties" in merged else value
                elif key == "required" and isinstance(value, list):
                    merged[key] = [*_required(merged), *cast("list[Any]", value)]
                else:
                    merged.setdefault(key, value)
        return merged


def _pointed(root: Schema, reference: str) -> Schema | None:
    """What a reference within the document points to; those to other documents are not followed."""
    if not reference.startswith("#") or len(reference) > 1000:
        return None
    at: Any = root
    for step in reference[1:].split("/")[1:]:
        if not isinstance(at, dict):
            return None
        at = cast("Schema", at).get(step.replace("~1", "/").replace("~0", "~"))
    return cast("Schema", at) if isinstance(at, dict) else None


def _properties(schema: Schema) -> Schema | None:
    found: Any = schema.get("properties")
    if not isinstance(found, dict):
        return None
    return {name: value for name, value in cast("dict[Any, Any]", found).items() if isinstance(name, str)}


def _required(schema: Schema) -> frozenset[str]:
    found: Any = schema.get("required")
    return (
        frozenset(name for name in cast("list[Any]", found) if isinstance(name, str)) if isinstance(found, list) else frozenset()
    )


def _union(hints: list[str]) -> str:
    found: dict[str, None] = {}
    for hint in sorted(hints):  # the same whatever the order, and None last
        found.update(dict.fromkeys(hint.split(" | ") if "[" not in hint else [hint]))
    if "Any" in found:
        return "Any"
    ordered = [hint for hint in found if hint != "None"] + ["None"] * ("None" in found)
    return " | ".join(ordered)


def _choices(values: list[Any]) -> str:
    """Literal[...] of an enum, or the type that its values have in common."""
    kinds = {_kind(value) for value in values[:1000]}
    if len(values) <= _MAX_CHOICES and values and kinds <= {"str", "int", "bool", "None"}:
        found = [literal(value, _MAX_CHOICE_CHARS) for value in values]
        if None not in found:
            return f"Literal[{', '.join(dict.fromkeys(map(str, found)))}]"
    return "Any" if "Any" in kinds or not kinds else _union(sorted(kinds))


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return name if name in {"str", "int", "bool", "float"} else "Any"
