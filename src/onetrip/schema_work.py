"""How much work a JSON Schema can make: an upper bound of the subschemas that are tried on one place of a value.

A schema that a stranger wrote may double its work with each level of itself or of the value (`anyOf` of the same `$ref` twice, twenty times in
each other): twenty lines of it keep a CPU busy for minutes, inside one call into a library that nothing interrupts. So work is bounded
before it is done. Nothing here follows a reference that leaves the document; such references are refused.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

Schema = dict[str, Any] | bool

MAX_NESTING: Final = 96  # of lists and objects of a schema; the validator's own limit is 255
ENDLESS: Final = 10**9  # more work than anybody has time for
_LEVELS: Final = 128  # of a value, for which the bound is computed; a deeper one is counted by the last step's growth
_UNEVALUATED: Final = 3  # `unevaluated…` goes through what is beside it again; nested ones were measured at a factor of 2.2 each

# Where schemas are in a schema, by what they are tried on: the same place, the values of an object, the items of a list.
_HERE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_HERE: Final = ("not", "if", "then", "else")
_HERE_MAPS: Final = ("dependentSchemas", "dependencies")
_REFS: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_VALUES: Final = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_ITEMS: Final = ("items", "additionalItems", "unevaluatedItems", "contains")
_STORED: Final = ("$defs", "definitions")


class Refused(Exception):  # not part of the interface: schemas.Validator makes a BadRequest of it
    """A schema that is not even measured: `where` is its place, and str() says why."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(why)
        self.where = where


class _Child(NamedTuple):
    node: int
    name: str | int | None  # the property or the index; None: all but `others`
    others: frozenset[str]


class _Node(NamedTuple):
    here: list[int]
    children: list[_Child]
    factor: int


class Work:
    """Bounds for one schema. `at(depth)` is the most subschemas that are tried on one place of a value nested `depth` deep."""

    def __init__(self, schema: Schema) -> None:
        self._document = schema
        self._numbers: dict[int, int] = {}  # id() of a part of the document, which lives as long as we do → number
        self._anchors: dict[str, list[Any]] = {}
        self._nodes: list[_Node | None] = []
        self._gather(schema)
        self._levels: list[int] = []
        self.alternatives = False  # whether some part says that one of several must match: explaining a failure is then dear
        self._measure(self._number(schema))

    def at(self, depth: int) -> int:
        """At most `ENDLESS`."""
        if depth < len(self._levels):
            return self._levels[depth]
        last = self._levels[-1]
        before = self._levels[-2] if len(self._levels) > 1 else last
        return last if last == before else ENDLESS

    # -------------------------------------------------------------------------------------------- the document as a graph

    def _number(self, schema: object) -> int:
        """The number of a part of the document; what hangs on it is looked at once."""
        known = self._numbers.get(id(schema))
        if known is None:
            known = self._numbers[id(schema)] = len(self._nodes)
            self._nodes.append(None)
            self._nodes[known] = self._look(cast("dict[str, Any]", schema)) if isinstance(schema, dict) else _Node([], [], 1)
        return known

    def _look(self, schema: dict[str, Any]) -> _Node:
        self.alternatives |= "anyOf" in schema or "oneOf" in schema
        here = [self._number(part) for part in _in_place(schema)]
        for key in _REFS:
            here += [self._number(target) for target in self._targets(key, schema.get(key))]
        named = _schemas(schema.get("properties"))
        others = frozenset(named)
        children = [_Child(self._number(part), name, frozenset()) for name, part in named.items()]
        children += [_Child(self._number(part), None, frozenset()) for part in _schemas(schema.get("patternProperties")).values()]
        children += [_Child(self._number(schema[key]), None, others) for key in _VALUES if key in schema]
        for key in ("prefixItems", "items"):
            if isinstance(schema.get(key), list):
                children += [_Child(self._number(part), index, frozenset()) for index, part in enumerate(schema[key])]
        children += [
            _Child(self._number(schema[key]), None, frozenset()) for key in _ITEMS if isinstance(schema.get(key), dict | bool)
        ]
        again = "unevaluatedProperties" in schema or "unevaluatedItems" in schema
        return _Node(here, children, _UNEVALUATED if again else 1)

    def _targets(self, key: str, reference: object) -> list[Any]:
        if reference is None:
            return []
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Refused(
                key, f"{str(reference)[:100]!r} leads out of the schema; only references that begin with # are followed"
            )
        if reference != "#" and not reference.startswith("#/"):
            return self._anchors.get(reference[1:], [])
        part: Any = self._document
        for step in reference[2:].split("/") if len(reference) > 1 else ():
            name = _unescaped(step)
            if isinstance(part, dict) and name in part:
                part = cast("dict[str, Any]", part)[name]
            elif isinstance(part, list) and name.isdecimal() and int(name) < len(cast("list[Any]", part)):
                part = cast("list[Any]", part)[int(name)]
            else:
                raise Refused(key, f"{reference[:100]!r} leads nowhere")
        return [part]

    def _gather(self, schema: Schema) -> None:
        """Anchors, and identifiers of schemas inside, which would change what references mean."""
        rest: list[Any] = [schema]
        while rest:
            part = rest.pop()
            if not isinstance(part, dict):
                continue
            found = cast("dict[str, Any]", part)
            identity = found.get("$id")
            if part is not schema and isinstance(identity, str) and not identity.startswith("#"):
                raise Refused("$id", f"{identity[:100]!r}: a schema inside a schema can have no address of its own")
            for key in ("$anchor", "$dynamicAnchor", "$id"):
                if isinstance(name := found.get(key), str):
                    self._anchors.setdefault(name.removeprefix("#"), []).append(found)
            rest += _in_place(found)
            for key in ("properties", "patternProperties", *_STORED):
                rest += _schemas(found.get(key)).values()
            for key in (*_VALUES, *_ITEMS, "prefixItems"):
                inner = found.get(key)
                rest += cast("list[Any]", inner) if isinstance(inner, list) else [inner]

    # -------------------------------------------------------------------------------------------- the bound

    def _measure(self, root: int) -> None:
        """Level by level of a value: what a node costs where the value goes on so many levels below."""
        nodes = [node for node in self._nodes if node is not None]
        below = [0] * len(nodes)
        for _ in range(_LEVELS):
            costs: list[int | None] = [None] * len(nodes)
            for number in range(len(nodes)):
                self._cost(nodes, number, costs, below)
            level = [cost or 1 for cost in costs]
            self._levels.append(level[root])
            if level == below or level[root] >= ENDLESS:
                return
            below = level

    def _cost(self, nodes: list[_Node], root: int, costs: list[int | None], below: list[int]) -> int:
        """The cost of a node and of all that it tries on the same place. Without recursion: documents are strangers'."""
        stack, above = [root], set[int]()
        while stack:
            number = stack[-1]
            if costs[number] is None:
                node = nodes[number]
                missing = [inner for inner in node.here if costs[inner] is None]
                if not above.isdisjoint(missing) or number in missing:
                    raise Refused("", "a reference leads back to where it stands, without going into the value")
                if missing:
                    above.add(number)
                    stack += missing
                    continue
                inside = sum(costs[inner] or 1 for inner in node.here)
                costs[number] = min(ENDLESS, node.factor * (1 + inside + _most(node.children, below)))
            above.discard(number)
            stack.pop()
        return costs[root] or 1


def _most(children: list[_Child], below: list[int]) -> int:
    """The most that one value below is tried with: what is for its name, and what is for all."""
    named: dict[str | int, int] = {}
    for child in children:
        if child.name is not None:
            named[child.name] = named.get(child.name, 0) + below[child.node]
    general = [(below[child.node], child.others) for child in children if child.name is None]
    most = sum(cost for cost, _ in general)
    if not general:
        return max(named.values(), default=0)
    for name, own in named.items():
        most = max(most, own + sum(cost for cost, others in general if name not in others))
    return most


def _in_place(schema: dict[str, Any]) -> Iterator[Any]:
    for key in _HERE_LISTS:
        if isinstance(schema.get(key), list):
            yield from schema[key]
    for key in _HERE:
        if key in schema:
            yield schema[key]
    for key in _HERE_MAPS:
        yield from (part for part in _schemas(schema.get(key)).values() if isinstance(part, dict))


def _schemas(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _unescaped(step: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415 -- few schemas have references, and this module is imported by every start

    return unquote(step).replace("~1", "/").replace("~0", "~")


def check_nesting(schema: Schema) -> None:
    """Raises Refused. To be called before anything else goes into a document."""
    level: list[Any] = [schema]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner += cast("dict[str, Any]", part).values()
            elif isinstance(part, list | tuple):
                inner += cast("list[Any]", part)
        if not inner:
            return
        level = inner
    raise Refused("", f"it is nested more than {MAX_NESTING} deep")
