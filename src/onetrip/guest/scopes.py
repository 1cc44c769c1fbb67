"""What the names of a program mean: its scopes, what binds a name in them, and where each expression stands. Changes nothing.

Of Python's rules those are followed that can decide what a name means before the program runs. A name that is bound twice to
different things, or by anything but an import or an `async def`, means something unknown.
"""

from _ast import (
    AnnAssign,
    AsyncFor,
    AsyncFunctionDef,
    AsyncWith,
    Attribute,
    Await,
    Call,
    ClassDef,
    DictComp,
    ExceptHandler,
    FunctionDef,
    GeneratorExp,
    Global,
    Import,
    ImportFrom,
    Lambda,
    ListComp,
    Load,
    MatchAs,
    MatchMapping,
    MatchStar,
    Name,
    NamedExpr,
    Nonlocal,
    SetComp,
    Yield,
    YieldFrom,
)
from typing import Any, Final, Literal, cast

from .own import OWN as __builtins__  # noqa: F401  # see own.py

Kind = Literal["module", "async", "plain", "class", "comprehension", "generator"]

TOOLS: Final = "tools"
_COMPREHENSIONS: Final = frozenset({ListComp, SetComp, DictComp, GeneratorExp})
_FUNCTIONS: Final = frozenset({FunctionDef, AsyncFunctionDef})
_INSIDE: Final = frozenset({"comprehension", "generator"})
_UNKNOWN: Final = None


def kind_of(node: Any) -> Any:
    """The class of a node, without what a type checker would make of it."""
    return node.__class__


class Scope:
    """One scope. `awaits`: it holds an `await` of its own; `yields`: a `yield`."""

    __slots__ = ("awaits", "bound", "elsewhere", "kind", "node", "parent", "yields")

    def __init__(self, kind: Kind, node: Any, parent: "Scope | None") -> None:
        self.kind: Kind = kind
        self.node = node
        self.parent = parent
        self.bound: dict[str, list[Any]] = {}  # name → what each binding of it gives: a dotted origin, an `async def`, or unknown
        self.elsewhere: dict[str, bool] = {}  # names declared global (True) or nonlocal (False)
        self.awaits = False
        self.yields = False


class Survey:
    """Everything that is known of a program before it runs. Raises RecursionError if it is nested too deeply.

    `names`: those under which tools can be called, bare and beneath `tools`, dotted where they have a namespace.
    `modules`: names by which the module `tools` can be imported.
    """

    def __init__(self, tree: Any, names: frozenset[str], modules: frozenset[str]) -> None:
        self._names = names
        self._roots = frozenset(name.partition(".")[0] for name in names)
        self._modules = modules
        self._starred = False  # some `from x import *` may have bound any name
        self.where: dict[Any, tuple[Any, str]] = {}  # node → its parent, and the field in which it stands there
        self.scope: dict[Any, Scope] = {}  # of names and calls
        self.body: dict[Any, Scope] = {}  # of functions and generator expressions
        self.calls: list[Any] = []
        self.loads: dict[str, list[Any]] = {}
        self.module = Scope("module", tree, None)
        self._bindings: list[tuple[Scope, str, Any]] = []
        self._fields(tree, self.module)
        self._written = {(scope, name) for scope, name, _ in self._bindings}
        for scope, name, origin in self._bindings:
            self._home(scope, name).bound.setdefault(name, []).append(origin)

    # ---------------------------------------------------------------------------------------------- what a name means

    def resolve(self, name: str, scope: Scope) -> Scope | None:
        """The scope whose binding a name means; None: no binding of this program's."""
        at: Scope | None = scope
        while at is not None:
            if at.elsewhere.get(name):
                return self.module
            if name in at.bound and (at.kind != "class" or at is scope):
                return at
            at = at.parent
        return None

    def _meaning(self, name: str, scope: Scope) -> Any:
        home = self.resolve(name, scope)
        found = home.bound.get(name) if home is not None else None
        if found is not None:
            return found[0] if all(other == found[0] for other in found) else _UNKNOWN
        if name in self._modules:
            return TOOLS
        if self._starred:
            return _UNKNOWN
        return f"{TOOLS}.{name}" if name in self._roots else name

    def origin(self, node: Any) -> Any:
        """What an expression means: a dotted origin (`tools.shop.find`, `asyncio.gather`, `len`), an `async def`, or None."""
        attributes: list[str] = []
        while type(node) is Attribute:
            attributes.append(node.attr)
            node = node.value
        if type(node) is not Name:
            return _UNKNOWN
        root = self._meaning(node.id, self.scope[node])
        if not attributes:
            return root
        return ".".join((root, *reversed(attributes))) if type(root) is str else _UNKNOWN

    def is_tool(self, call: Any) -> bool:
        origin = self.origin(call.func)
        return type(origin) is str and origin.startswith(f"{TOOLS}.") and origin[len(TOOLS) + 1 :] in self._names

    # ---------------------------------------------------------------------------------------------- the walk

    def _fields(self, node: Any, scope: Scope, only: tuple[str, ...] | None = None) -> None:
        for field in node._fields if only is None else only:
            value: Any = getattr(node, field, None)
            if type(value) is list:
                for each in cast("list[Any]", value):
                    if hasattr(each, "_fields"):
                        self.where[each] = (node, field)
                        self._visit(each, scope)
            elif hasattr(value, "lineno"):
                self.where[value] = (node, field)
                self._visit(value, scope)

    def _visit(self, node: Any, scope: Scope) -> None:
        kind = kind_of(node)
        if kind is Name:
            self.scope[node] = scope
            if type(node.ctx) is Load:
                self.loads.setdefault(node.id, []).append(node)
            else:
                self._bind(scope, node.id, _UNKNOWN)
        elif kind is Call:
            self.scope[node] = scope
            self.calls.append(node)
            self._fields(node, scope)
        elif kind in _FUNCTIONS:
            self._fields(node, scope, ("decorator_list",))
            self._bind(scope, node.name, node)
            self._function(node, scope, "async" if kind is AsyncFunctionDef else "plain")
        elif kind is Lambda:
            self._function(node, scope, "plain")
        elif kind is ClassDef:
            self._fields(node, scope, ("decorator_list", "bases", "keywords"))
            self._bind(scope, node.name, _UNKNOWN)
            self._fields(node, Scope("class", node, scope), ("body",))
        elif kind in _COMPREHENSIONS:
            self._comprehension(node, scope)
        elif kind is Import or kind is ImportFrom:
            self._import(node, scope)
        elif kind is AnnAssign:
            self._fields(node, scope, ("target", "value"))
        elif kind.__name__ == "TypeAlias":  # from Python 3.12 on
            self._fields(node, scope, ("name",))
        else:
            self._other(node, kind, scope)

    def _other(self, node: Any, kind: Any, scope: Scope) -> None:
        if kind is Global or kind is Nonlocal:
            scope.elsewhere.update(dict.fromkeys(node.names, kind is Global))
        elif kind is Await or kind is AsyncFor or kind is AsyncWith:
            _note_await(scope)
        elif kind is Yield or kind is YieldFrom:
            scope.yields = True
        elif kind is ExceptHandler or kind is MatchAs or kind is MatchStar:
            if node.name is not None:
                self._bind(scope, node.name, _UNKNOWN)
        elif kind is MatchMapping and node.rest is not None:
            self._bind(scope, node.rest, _UNKNOWN)
        self._fields(node, scope)

    def _function(self, node: Any, scope: Scope, kind: Kind) -> None:
        inner = self.body[node] = Scope(kind, node, scope)
        self._fields(node.args, scope, ("defaults", "kw_defaults"))
        self._parameters(node.args, inner)
        self._fields(node, inner, ("body",))

    def _parameters(self, node: Any, scope: Scope) -> None:
        for each in (*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg, node.kwarg):
            if each is not None:
                self._bind(scope, each.arg, _UNKNOWN)

    def _comprehension(self, node: Any, scope: Scope) -> None:
        kind: Kind = "generator" if type(node) is GeneratorExp else "comprehension"
        inner = self.body[node] = Scope(kind, node, scope)
        for index, part in enumerate(node.generators):
            self.where[part] = (node, "generators")
            self._fields(part, inner, ("target",))
            self._fields(part, inner if index else scope, ("iter",))  # the first is evaluated outside
            self._fields(part, inner, ("ifs",))
            if part.is_async:
                _note_await(inner)
        self._fields(node, inner, ("key", "value") if type(node) is DictComp else ("elt",))

    def _import(self, node: Any, scope: Scope) -> None:
        plain = type(node) is Import
        source: str = "" if plain else node.module or ""
        for alias in node.names:
            if alias.name == "*":
                self._starred = self._starred or source not in self._modules
            elif plain:
                bound = alias.asname or alias.name.partition(".")[0]
                self._bind(scope, bound, self._imported(alias.name if alias.asname else bound))
            else:
                origin = None if node.level else self._imported(f"{source}.{alias.name}")
                self._bind(scope, alias.asname or alias.name, origin)

    def _imported(self, dotted: str) -> str:
        root, dot, rest = dotted.partition(".")
        return f"{TOOLS}{dot}{rest}" if root in self._modules else dotted

    def _bind(self, scope: Scope, name: str, origin: Any) -> None:
        self._bindings.append((scope, name, origin))

    def _home(self, scope: Scope, name: str) -> Scope:
        """Where a binding that is written in this scope takes effect."""
        at = scope
        if at.kind in _INSIDE and not self._is_target(at, name):  # a `:=`, which binds in the function around
            while at.kind in _INSIDE and at.parent is not None:
                at = at.parent
        if name in at.elsewhere:
            if at.elsewhere[name]:
                return self.module
            outer = at.parent
            while outer is not None and outer.parent is not None:
                if outer.kind in ("async", "plain") and name not in outer.elsewhere and (outer, name) in self._written:
                    return outer
                outer = outer.parent
        return at

    def _is_target(self, scope: Scope, name: str) -> bool:
        return any(_names(part.target, name) for part in scope.node.generators)


def _names(target: Any, name: str) -> bool:
    """Whether the target of a comprehension binds this name."""
    edge = [target]
    while edge:
        node = edge.pop()
        if type(node) is Name and node.id == name:
            return True
        edge += getattr(node, "elts", ())
        value = getattr(node, "value", None)
        if value is not None and type(node) is not NamedExpr:
            edge.append(value)
    return False


def _note_await(scope: Scope) -> None:
    """An `await` here makes a generator expression an asynchronous one, and every other comprehension waits along with what is around it."""
    at: Scope | None = scope
    while at is not None:
        at.awaits = True
        if at.kind != "comprehension":
            return
        at = at.parent
