"""Puts back the `await`s that a program forgot before calls of tools, where nothing else can have been meant.

A call that is not awaited may be right: it is awaited later, or given to `asyncio.gather`. So only that is mended which cannot work
without an `await`: where something is done to the call's value that nothing awaitable can bear, as in `tools.find(id=1)["name"]`, or
where the value is dropped. What was right stays the same tree.

Where no `await` can stand (a plain `def`, a `lambda`, the body of a class, a generator that is consumed bit by bit), a tool's call
becomes its blocking form: `tools.find(id=1)` → `__tools_blocking__(tools.find, id=1)`.
"""

from _ast import (
    AsyncFor,
    AsyncFunctionDef,
    AsyncWith,
    Attribute,
    Await,
    Call,
    Expr,
    Import,
    ImportFrom,
    ListComp,
    Load,
    Name,
    comprehension,
)
from typing import Any, Final, Literal, cast

from .certain import Uses, index_of
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .scopes import Scope, Survey, kind_of

BLOCKING: Final = "__tools_blocking__"  # the name that the program must find: (function of a tool, its arguments …) → its value
_MAX_NOTES: Final = 12
_MAX_SHOWN_CHARS: Final = 80

# Whoever calls these has an event loop in mind.
_LOOP: Final = frozenset(
    {
        "gather",
        "run",
        "sleep",
        "wait",
        "wait_for",
        "create_task",
        "ensure_future",
        "as_completed",
        "shield",
        "to_thread",
        "timeout",
    }
    | {"TaskGroup", "Runner", "Semaphore", "run_until_complete"}
)
_RUNNERS: Final = frozenset({"asyncio.run", "asyncio.Runner"})
_COROUTINES: Final = frozenset({"asyncio.sleep", "asyncio.wait", "asyncio.wait_for", "asyncio.to_thread"})
_GATHER: Final = "asyncio.gather"  # a future: it goes on also when nobody awaits it
_PLACE: Final = ("lineno", "col_offset", "end_lineno", "end_col_offset")

_Way = Literal["await", "block"]


def is_async(tree: Any) -> bool:
    """Whether a program has to do with an event loop: `await`, `async` of any kind, or a call such as `asyncio.run`."""
    edge: list[Any] = [tree]
    imported = False  # whether names came from asyncio
    called: set[str] = set()
    while edge:
        node = edge.pop()
        kind = kind_of(node)
        if kind is Await or kind is AsyncFunctionDef or kind is AsyncFor or kind is AsyncWith:
            return True
        if kind is comprehension and node.is_async:
            return True
        if kind is Call:
            if type(node.func) is Attribute and node.func.attr in _LOOP:
                root = node.func.value
                if node.func.attr == "run_until_complete" or (type(root) is Name and root.id == "asyncio"):
                    return True
            elif type(node.func) is Name:
                called.add(node.func.id)
        elif kind is ImportFrom and node.module == "asyncio":
            imported = True
        elif kind is Import and any(alias.name == "asyncio" and alias.asname for alias in node.names):
            return True  # under another name it is hard to follow, and nobody imports it for nothing
        for field in node._fields:
            value: Any = getattr(node, field, None)
            if type(value) is list:
                edge += [each for each in cast("list[Any]", value) if hasattr(each, "_fields")]
            elif hasattr(value, "_fields"):
                edge.append(value)
    return imported and bool(called & _LOOP)


def repair(tree: Any, names: frozenset[str], *, modules: frozenset[str] = frozenset({"tools"})) -> list[str]:
    """Put the forgotten `await`s into the tree (a Module) of a program that `is_async`; returns what was done, a line each.

    `names`: every name under which a tool can be called bare or as an attribute of `tools` (`find`, `shop.find`), without those that
    the namespace has bound to something else. `modules`: names by which the module `tools` can be imported. Never raises on the
    program's account; a program that is nested too deeply is left as it is.
    """
    try:
        return _Repair(Survey(tree, names, modules)).make()
    except RecursionError:
        return []


class _Repair:
    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._where = survey.where
        origins = [survey.origin(call.func) for call in survey.calls]
        runs = any(
            (type(origin) is str and origin in _RUNNERS)
            or (type(call.func) is Attribute and call.func.attr == "run_until_complete")
            for call, origin in zip(survey.calls, origins, strict=True)
        )
        # With an `await` at its top level a program runs inside an event loop, in which it can start no other.
        self._top_level = survey.module.awaits or not runs
        self._origins = dict(zip(survey.calls, origins, strict=True))
        self._uses = Uses(survey, self._origins)

    def make(self) -> list[str]:
        edits: list[tuple[Any, _Way]] = []
        lists: dict[Any, None] = {}  # generator expressions that become lists, in order
        for call in self._survey.calls:
            tool = self._survey.is_tool(call)
            if (tool or self._is_coroutine(call)) and self._uses.is_forgotten(call):
                way, changed = self._way(self._survey.scope[call])
                if way == "await" or tool:
                    edits.append((call, way))
                    lists.update(dict.fromkeys(changed))
        notes: list[tuple[int, str]] = []
        for call, way in edits:
            line, shown = call.lineno, _shown(call.func)
            if way == "await":
                self._replace(call, Await(call))
                notes.append((line, f"line {line}: added the missing `await` before {shown}(...)"))
            else:
                call.args.insert(0, call.func)
                call.func = _placed(Name(BLOCKING, Load()), call.args[0])
                notes.append((line, f"line {line}: {shown}(...) waits for its result here, where no `await` can stand"))
        for node, scope in self._survey.body.items():
            if scope.kind == "generator" and scope.parent is not None:
                wrong = scope.awaits and self._uses.is_wrong_generator(node) and self._way(scope.parent)[0] == "await"
                if wrong and node not in lists:
                    notes.append(
                        (node.lineno, f"line {node.lineno}: made a list of a generator with `await`, which cannot be iterated")
                    )
                if wrong or node in lists:
                    self._replace(node, ListComp(node.elt, node.generators))
        told = [text for _, text in sorted(dict.fromkeys(notes), key=_line)]
        return told if len(told) <= _MAX_NOTES else [*told[:_MAX_NOTES], f"and {len(told) - _MAX_NOTES} more of this kind"]

    def _replace(self, node: Any, new: Any) -> None:
        parent, field = self._where[node]
        value: Any = getattr(parent, field)
        _placed(new, node)
        if type(value) is list:
            siblings = cast("list[Any]", value)
            siblings[index_of(siblings, node)] = new
        else:
            setattr(parent, field, new)

    def _is_coroutine(self, call: Any) -> bool:
        """A call of what else must be awaited: an `async def` of this program, or asyncio's own."""
        origin = self._origins[call]
        if type(origin) is str:
            return origin in _COROUTINES or (origin == _GATHER and type(self._where[call][0]) is not Expr)
        return type(origin) is AsyncFunctionDef and not origin.decorator_list and not self._survey.body[origin].yields

    def _way(self, scope: Scope) -> tuple[_Way, list[Any]]:
        """How a call in this scope can wait, and the generator expressions that have to be lists for it."""
        changed: list[Any] = []
        at = scope
        while at.kind in ("comprehension", "generator") and at.parent is not None:
            if at.kind == "generator" and at.awaits and at is scope:
                return "await", changed
            if at.kind == "generator" and not at.awaits:
                if not self._uses.is_taken_at_once(at.node):
                    return "block", []
                changed.append(at.node)
            at = at.parent
        if at.kind == "async" or (at.kind == "module" and self._top_level):
            return "await", changed
        return "block", []


def _placed(new: Any, old: Any) -> Any:
    for field in _PLACE:
        setattr(new, field, getattr(old, field))
    return new


def _shown(func: Any) -> str:
    parts: list[str] = []
    while type(func) is Attribute:
        parts.append(func.attr)
        func = func.value
    parts.append(func.id)
    return ".".join(reversed(parts))[:_MAX_SHOWN_CHARS]


def _line(note: tuple[int, str]) -> int:
    return note[0]
