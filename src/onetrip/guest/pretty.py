"""The text of a result as a notebook shows it: IPython's rules for what is printed, and its protocol `_repr_pretty_`.

They differ from `repr` for containers (at most `MAX_ITEMS` items, sets sorted, lines broken at `WIDTH`), for classes, functions and
exceptions, and for objects that have no repr of their own.

Objects describe themselves to a `Printer` by text, places where a line may break, and groups.  A group whose text does not fit
the rest of the line is broken at each of its places, outer groups first.
"""

import re
import sys
from collections import Counter, OrderedDict, UserList, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from types import BuiltinFunctionType, FunctionType, MappingProxyType, SimpleNamespace
from typing import Any, Final, cast

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_type_of: Final = cast("Callable[[object], type[Any]]", type)  # the same call, with a type that says what it gives

WIDTH: Final = 79
MAX_ITEMS: Final = 1000
_ATOMS: Final = frozenset({int, float, bool, str, bytes, complex, type(None), type(...), type(NotImplemented)})
_FLAGS: Final = ("IGNORECASE", "LOCALE", "MULTILINE", "DOTALL", "UNICODE", "VERBOSE", "DEBUG")


def pretty(value: object) -> str:
    """Raises whatever the object's own methods raise, RecursionError included."""
    kind = type(value)
    if kind in _ATOMS:
        return repr(value)
    printer = Printer()
    printer.pretty(value)
    return printer.layout()


class _Break(str):
    """A place where the line may end; as a string, what stands there when it does not."""

    __slots__ = ()


class _Indent(int):
    """From here on, lines are indented by so much more."""

    __slots__ = ()


_LINE_END: Final = object()


class _Group:
    __slots__ = ("items", "width")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.width = 0  # on one line, up to the first end of a line in it


class Printer:
    """What `_repr_pretty_(printer, cycle)` gets. The methods are those of IPython's `RepresentationPrinter`."""

    verbose = False
    max_width = WIDTH
    max_seq_length = MAX_ITEMS

    def __init__(self) -> None:
        self._groups = [_Group()]
        self.stack: list[int] = []  # ids of the objects being printed
        self.indentation = 0  # of the next line, for objects that ask

    # ------------------------------------------------------------------ how an object describes itself

    def text(self, obj: str) -> None:
        self._groups[-1].items.append(str(obj))

    def breakable(self, sep: str = " ") -> None:
        self._groups[-1].items.append(_Break(sep))

    def break_(self) -> None:
        self._groups[-1].items.append(_LINE_END)

    def begin_group(self, indent: int = 0, open: str = "") -> None:  # noqa: A002  # IPython's name
        if open:
            self.text(open)
        group = _Group()
        self._groups[-1].items.append(group)
        self._groups.append(group)
        if indent:
            self._shift(indent)

    def end_group(self, dedent: int = 0, close: str = "") -> None:
        if dedent:
            self._shift(-dedent)
        group = self._groups.pop()
        for item in group.items:
            if item is _LINE_END:
                break
            if isinstance(item, str):
                group.width += len(item)
            elif isinstance(item, _Group):
                group.width += item.width
        if close:
            self.text(close)

    @contextmanager
    def group(self, indent: int = 0, open: str = "", close: str = "") -> Generator[None, None, None]:  # noqa: A002
        self.begin_group(indent, open)
        try:
            yield
        finally:
            self.end_group(indent, close)

    @contextmanager
    def indent(self, indent: int) -> Generator[None, None, None]:
        self._shift(indent)
        try:
            yield
        finally:
            self._shift(-indent)

    def _shift(self, indent: int) -> None:
        self.indentation += indent
        self._groups[-1].items.append(_Indent(indent))

    def flush(self) -> None:
        """Nothing is written before the end."""

    def pretty(self, obj: Any) -> None:
        kind = _type_of(obj)
        if kind in _ATOMS:
            self.text(repr(obj))
            return
        cycle = id(obj) in self.stack
        self.stack.append(id(obj))
        self.begin_group()
        try:
            self._print(obj, kind, cycle)
        finally:
            self.end_group()
            self.stack.pop()

    def _print(self, obj: Any, kind: type[Any], cycle: bool) -> None:
        # The first class in the order of inheritance that says how it is printed decides.
        for cls in _mro(kind):
            if (printer := _PRINTERS.get(cls)) is not None:
                printer(obj, self, cycle)
                return
            members = cast("dict[str, Any]", vars(cls))
            if callable(members.get("_repr_pretty_")):
                cls._repr_pretty_(obj, self, cycle)  # the protocol's name
                return
            if cls is not object and callable(members.get("__repr__")):
                self.lines(repr(obj))
                return
        with self.group(1, "<", ">"):
            self.pretty(kind)
            self.text(f" at 0x{id(obj):x}" + (" ..." if cycle else ""))

    def lines(self, text: str) -> None:
        """Text of several lines, each indented as the place where it stands."""
        for i, line in enumerate(text.splitlines()):
            if i:
                self.break_()
            self.text(line)

    def items(self, start: str, end: str, items: Iterable[Any], show: Callable[[Any], None] | None = None) -> None:
        """Items between brackets, not more than `max_seq_length`."""
        with self.group(len(start), start, end):
            for i, item in enumerate(items):
                if i:
                    self.text(",")
                    self.breakable()
                if i == self.max_seq_length:
                    self.text("...")
                    break
                (show or self.pretty)(item)

    def call(self, name: str, *args: Any, **named: Any) -> None:
        """`name(arg, …, key=value)`. A callable argument prints itself."""

        def show(part: tuple[str | None, Any]) -> None:
            key, value = part
            if key is not None:
                self.text(f"{key}=")
            if isinstance(value, _Raw):
                self.text(value)
            else:
                self.pretty(value)

        self.items(f"{name}(", ")", [*((None, arg) for arg in args), *named.items()], show)

    # ------------------------------------------------------------------ layout

    def layout(self) -> str:
        out: list[str] = []
        column = indent = 0

        # (items of a group, whether it is broken); a stack of our own, so that depth costs no recursion
        todo: list[tuple[Iterator[Any], bool]] = [(iter(self._groups[0].items), False)]
        while todo:
            items, broken = todo[-1]
            for item in items:
                if item is _LINE_END or (broken and type(item) is _Break):
                    out.append("\n" + " " * indent)
                    column = indent
                elif isinstance(item, str):
                    out.append(item)
                    column += len(item)
                elif isinstance(item, _Group):
                    # one more column: a comma or bracket follows
                    todo.append((iter(item.items), column + item.width + 1 > self.max_width))
                    break
                else:
                    indent += item
            else:
                todo.pop()
        return "".join(out)


def _mro(kind: type[Any]) -> tuple[type[Any], ...]:
    """The order of inheritance, whatever the metaclass says about it."""
    order: tuple[type[Any], ...] = type.__dict__["__mro__"].__get__(kind)
    return order


class _Raw(str):
    """Text that stands for itself in a call."""

    __slots__ = ()


def _list(obj: Any, p: Printer, cycle: bool) -> None:
    if cycle:
        p.text("[...]")
    else:
        p.items("[", "]", obj)


def _tuple(obj: Any, p: Printer, cycle: bool) -> None:
    if cycle:
        p.text("(...)")
    else:
        p.items("(", ",)" if len(obj) == 1 else ")", obj)


def _dict(obj: Any, p: Printer, cycle: bool, start: str = "{", end: str = "}") -> None:
    def show(key: Any) -> None:
        p.pretty(key)
        p.text(": ")
        p.pretty(obj[key])

    if cycle:
        p.text("{...}")
    else:
        p.items(start, end, obj, show)


def _set(obj: Any, p: Printer, cycle: bool) -> None:
    frozen = issubclass(type(obj), frozenset)
    start, end = ("frozenset({", "})") if frozen else ("{", "}")
    if cycle:
        p.text(start + "..." + end)
    elif not obj:
        p.text(type(obj).__name__ + "()")
    else:
        p.items(start, end, obj if len(obj) >= p.max_seq_length else _sorted(obj))


def _sorted(items: Iterable[Any]) -> list[Any]:
    found = list(items)
    for key in (None, str):
        try:
            return sorted(found, key=key)
        except Exception:  # noqa: BLE001, S112  # the program's own comparison; then the order is what it is
            continue
    return found


def _type(obj: Any, p: Printer, _cycle: bool) -> None:
    if next(cls for cls in _mro(_type_of(obj)) if "__repr__" in vars(cls)) is not type:
        p.lines(repr(obj))  # a metaclass with a repr of its own
        return
    module = getattr(obj, "__module__", None)
    p.text(obj.__qualname__ if module in (None, "builtins") else f"{module}.{obj.__qualname__}")


def _function(obj: Any, p: Printer, _cycle: bool) -> None:
    name = getattr(obj, "__qualname__", obj.__name__)
    if obj.__module__ not in (None, "", "builtins"):
        name = f"{obj.__module__}.{name}"
    try:
        name += str(signature(obj))
    except ValueError:
        pass  # C functions often have none
    p.text(f"<function {name}>")


def _exception(obj: Any, p: Printer, cycle: bool) -> None:
    kind = _type_of(obj)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    p.call(name, *((_Raw("..."),) if cycle else getattr(obj, "args", ())))


def _pattern(obj: Any, p: Printer, _cycle: bool) -> None:
    flags = "|".join(f"re.{name}" for name in _FLAGS if obj.flags & getattr(re, name))
    text = repr(obj.pattern)
    raw = _Raw("r" + text.replace("\\\\", "\\"))
    p.call("re.compile", raw, *((_Raw(flags),) if flags else ()))


def _super(obj: Any, p: Printer, _cycle: bool) -> None:
    with p.group(8, "<super: ", ">"):
        p.pretty(obj.__thisclass__)
        p.text(",")
        p.breakable()
        p.pretty(obj.__self__)


def _constructed(arguments: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, Printer, bool], None]:
    """Printed as the call that would make it."""

    def show(obj: Any, p: Printer, cycle: bool) -> None:
        p.call(type(obj).__name__, *((_Raw("..."),) if cycle else arguments(obj)))

    return show


def _deque(obj: Any, p: Printer, cycle: bool) -> None:
    if cycle:
        p.call("deque", _Raw("..."))
    elif obj.maxlen is None:
        p.call(type(obj).__name__, list(obj))
    else:
        p.call(type(obj).__name__, list(obj), maxlen=obj.maxlen)


def _namespace(obj: Any, p: Printer, cycle: bool) -> None:
    name = "namespace" if type(obj) is SimpleNamespace else type(obj).__name__
    if cycle:
        p.call(name, _Raw("..."))
    else:
        p.call(name, **vars(obj))


def _environ(obj: Any, p: Printer, cycle: bool) -> None:
    _dict(obj, p, cycle, "environ{", "}")


def _repr(obj: Any, p: Printer, _cycle: bool) -> None:
    p.lines(repr(obj))


_PRINTERS: Final[Mapping[type, Callable[[Any, Printer, bool], None]]] = {
    int: _repr,
    float: _repr,
    str: _repr,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _set,
    super: _super,
    type: _type,
    FunctionType: _function,
    BuiltinFunctionType: _function,
    BaseException: _exception,
    re.Pattern: _pattern,
    MappingProxyType: _constructed(lambda obj: (dict(obj),)),
    defaultdict: _constructed(lambda obj: (obj.default_factory, dict(obj))),
    OrderedDict: _constructed(lambda obj: (list(obj.items()),)),
    Counter: _constructed(lambda obj: (dict(obj.most_common()),) if obj else ()),
    UserList: _constructed(lambda obj: (obj.data,)),
    deque: _deque,
    SimpleNamespace: _namespace,
    type(sys.modules["os"].environ): _environ,
}
