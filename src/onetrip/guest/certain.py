"""Whether what a program does with the value of a call is certain to fail while the value is an awaitable. Changes nothing.

"Used" means: something is done to the value that no coroutine, task or future can bear, or that makes no sense with one, such as
taking an element or printing it. Whatever may hand the value on to an `await` is not a use.
"""

from _ast import (
    AnnAssign,
    Assert,
    Assign,
    Attribute,
    AugAssign,
    BinOp,
    BoolOp,
    Call,
    Compare,
    Constant,
    Dict,
    DictComp,
    Expr,
    For,
    FormattedValue,
    GeneratorExp,
    If,
    IfExp,
    List,
    ListComp,
    Load,
    Match,
    Mod,
    Name,
    NamedExpr,
    Set,
    SetComp,
    Slice,
    Starred,
    Subscript,
    Tuple,
    UnaryOp,
    While,
    comprehension,
    keyword,
)
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .scopes import Scope, Survey, kind_of

# What functions do with their positional arguments. Those that show look at everything inside as well.
_SHOW: Final = frozenset(
    {"print", "str", "repr", "format", "display", "json.dumps", "pprint.pprint", "pprint.pformat", "pprint.pp"}
    | {"rich.print", "IPython.display.display"}
)
_REDUCE: Final = frozenset({"sum", "min", "max", "any", "all"})  # look at each element
_CONSUME: Final = frozenset(
    {
        "len",
        "range",
        "sorted",
        "list",
        "dict",
        "set",
        "tuple",
        "frozenset",
        "enumerate",
        "zip",
        "reversed",
        "iter",
        "int",
        "float",
        "bool",
    }
    | {"abs", "round", "json.loads", "pandas.DataFrame", "pd.DataFrame", "pandas.json_normalize", "pd.json_normalize"}
    | {"collections.Counter", "statistics.mean", "statistics.median", "itertools.chain", "math.floor", "math.ceil", "math.sqrt"}
)
_CONSUME_LATER: Final = frozenset({"map", "filter"})  # all arguments but the first
_AT_ONCE: Final = frozenset(
    {"sum", "min", "max", "sorted", "list", "set", "tuple", "dict", "frozenset"}
)  # of a generator take all
_TYPES: Final = frozenset({"dict", "list", "str", "int", "float", "bool", "tuple", "set", "Exception", "BaseException"})
# Of coroutines and tasks; data may have attributes of these names, but nobody calls those.
_AWAITABLE: Final = frozenset(
    {"send", "throw", "close", "cancel", "cancelled", "done", "result", "exception", "add_done_callback", "get_name", "set_name"}
)


class Uses:
    """`origins`: what the function of each call is, as `Survey.origin` says."""

    def __init__(self, survey: Survey, origins: dict[Any, Any]) -> None:
        self._survey = survey
        self._origins = origins
        self._where = survey.where
        self._only_used: dict[tuple[Scope, str], bool] = {}

    def is_forgotten(self, call: Any) -> bool:
        node = call
        parent, field = self._where[node]
        while (kind := kind_of(parent)) in (NamedExpr, IfExp, BoolOp):
            if kind is NamedExpr and not self._is_only_used(parent.target):
                return False
            if (kind is IfExp and field == "test") or (kind is BoolOp and node is not parent.values[-1]):
                return True
            node = parent
            parent, field = self._where[node]
        target = self._target(node, parent, field)
        return self._is_only_used(target) if target is not None else self._is_used(node)

    def _target(self, node: Any, parent: Any, field: str) -> Any:
        """The variable that this value is assigned to, if it is one: `x = …`, or `x, y = …, …`."""
        target: Any = None
        index, size = None, 0
        if type(parent) is Tuple:
            index, size = index_of(parent.elts, node), len(parent.elts)
            parent, field = self._where[parent]
        if field == "value" and type(parent) is AnnAssign:
            target = parent.target
        elif field == "value" and type(parent) is Assign and len(parent.targets) == 1:
            target = parent.targets[0]
        if index is not None:
            elements: list[Any] = target.elts if type(target) in (Tuple, List) else []
            target = elements[index] if len(elements) == size and not any(type(each) is Starred for each in elements) else None
        return target if type(target) is Name else None

    def _is_only_used(self, target: Any) -> bool:
        """Whether the program does nothing to this variable but what no awaitable can bear, and does at least that."""
        survey = self._survey
        home = survey.resolve(target.id, survey.scope[target])
        if home is None or home.kind == "class":
            return False
        key = home, target.id
        if key not in self._only_used:
            uses = [node for node in survey.loads.get(target.id, ()) if survey.resolve(target.id, survey.scope[node]) is home]
            self._only_used[key] = bool(uses) and all(self._is_used(node) for node in uses)
        return self._only_used[key]

    def _is_used(self, node: Any) -> bool:
        """Whether something is done to the value of this expression, where it stands, that cannot be done to an awaitable."""
        parent, field = self._where[node]
        kind = kind_of(parent)
        while kind is IfExp or kind is BoolOp or kind is NamedExpr:  # which may pass the value on
            if (kind is IfExp and field == "test") or (kind is BoolOp and node is not parent.values[-1]):
                return True
            node = parent
            parent, field = self._where[node]
            kind = kind_of(parent)
        if kind in (Expr, FormattedValue, BinOp, UnaryOp, Compare, Slice, Starred):
            return True
        if kind in (List, Tuple, Set, Dict, ListComp, SetComp, DictComp, GeneratorExp):
            return (kind is Dict and field == "values" and parent.keys[index_of(parent.values, node)] is None) or self._is_shown(
                node
            )
        if kind is Subscript:
            return field == "value" or type(parent.ctx) is Load
        if kind is Attribute:
            return self._is_data(parent)
        if kind is Call or kind is keyword:
            return self._is_taken(parent, node, inside=False)
        if kind is comprehension:
            return field == "ifs" or (field == "iter" and not parent.is_async)
        if kind is Assign:
            return field == "value" and any(type(target) in (Tuple, List) for target in parent.targets)
        return (kind in (If, While, Assert) and field == "test") or (kind, field) in (
            (For, "iter"),
            (AugAssign, "value"),
            (Match, "subject"),
        )

    def _is_data(self, attribute: Any) -> bool:
        """Whether this is an attribute of a value, rather than of a coroutine or a task."""
        name, (parent, field) = attribute.attr, self._where[attribute]
        called = type(parent) is Call and field == "func"
        return type(attribute.ctx) is Load and not name.startswith(("__", "cr_")) and not (called and name in _AWAITABLE)

    def _is_taken(self, parent: Any, node: Any, *, inside: bool) -> bool:
        """Whether the function whose argument this is uses its value; `inside`: it is an element of the argument."""
        named = type(parent) is keyword
        if named and parent.arg is None and not inside:
            return True
        call = self._where[parent][0] if named else parent
        if type(call) is not Call or node is call.func:
            return False
        if self._survey.is_tool(call):
            return type(node) is not GeneratorExp  # whatever a tool takes is JSON
        if type(call.func) is Attribute and type(call.func.value) is Constant and type(call.func.value.value) is str:
            return call.func.attr == "format" or (call.func.attr == "join" and not named)
        origin = self._origins[call]
        if named or type(origin) is not str:
            return False
        if origin in _SHOW:
            return type(node) is not GeneratorExp
        if origin in _REDUCE:
            return not (inside and any(option.arg == "key" for option in call.keywords))
        if inside:
            return False
        if origin == "isinstance":
            return node is call.args[0] and len(call.args) == 2 and self._are_types(call.args[1])
        return origin in _CONSUME or (origin in _CONSUME_LATER and node is not call.args[0])

    def _are_types(self, node: Any) -> bool:
        return all(self._survey.origin(each) in _TYPES for each in (node.elts if type(node) is Tuple else [node]))

    def _is_shown(self, node: Any) -> bool:
        """Whether the container that this is an element of is looked at whole, such as by `print`, and dropped."""
        parent, field = self._where[node]
        while True:
            kind = kind_of(parent)
            if kind in (List, Tuple, Set) or (kind, field) == (Dict, "values"):
                if kind is not Dict and type(parent.ctx if kind is not Set else Load()) is not Load:
                    return False
            elif (kind, field) not in (
                (ListComp, "elt"),
                (SetComp, "elt"),
                (GeneratorExp, "elt"),
                (DictComp, "value"),
                (Starred, "value"),
            ):
                break
            if type(node) is GeneratorExp and kind is not Starred:
                return False
            node = parent
            parent, field = self._where[node]
        if type(node) is GeneratorExp and not self.is_taken_at_once(node) and not self._is_reduced(node):
            return False
        if kind is Expr or kind is FormattedValue:
            return True
        if kind is BinOp:
            return type(parent.op) is Mod and field == "right" and type(node) is Tuple
        return (kind is Call or kind is keyword) and self._is_taken(parent, node, inside=True)

    def _is_reduced(self, node: Any) -> bool:
        parent, _ = self._where[node]
        return type(parent) is Call and self._origins[parent] in _REDUCE

    def is_wrong_generator(self, node: Any) -> bool:
        """Whether this generator expression, which has an `await`, is given to what cannot iterate it."""
        return type(self._where[node][0]) is Call and self.is_taken_at_once(node)

    def is_taken_at_once(self, node: Any) -> bool:
        """Whether all of a generator expression is taken where it stands, so that a list does the same."""
        parent, field = self._where[node]
        if type(parent) is Starred:
            return True
        if type(parent) is not Call or field != "args" or node is not parent.args[0]:
            return False
        func = parent.func
        if type(func) is Attribute and type(func.value) is Constant and type(func.value.value) is str and func.attr == "join":
            return True
        origin = self._origins[parent]
        return type(origin) is str and origin in _AT_ONCE


def index_of(values: list[Any], node: Any) -> int:
    return next(index for index, value in enumerate(values) if value is node)
