"""Cell source → code objects: what to run, and the last expression whose value is the cell's result.

Ordinary Python is tried first.  Only a line at which the parser stumbled is looked at as notebook syntax, so a `%` or `!` in
an ordinary program is never touched.
"""

import __future__

import linecache
from _ast import Expr, Expression, PyCF_ALLOW_TOP_LEVEL_AWAIT, PyCF_ONLY_AST
from gc import disable, enable, isenabled  # the functions themselves: the program may replace them in their module
from types import CodeType
from typing import Any, Final, NamedTuple

from .awaits import is_async as find_awaits
from .awaits import repair
from .own import OWN as __builtins__  # noqa: F401  # see own.py

_MODULES: Final = frozenset(
    {"tools", "functions", "default_api", "tool_code", "agent_tools", "mcp_tools", "toolbox"}
)  # see tools.py
_FUTURES: Final[int] = __future__.annotations.compiler_flag  # the only one that is not mandatory by now
_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE
# They change how a notebook shows things, which is fixed here.
_IGNORED_MAGICS: Final = frozenset({"matplotlib", "config", "load_ext", "autoreload"})
_NO_PIP: Final = (
    "pip does not work in a session: packages come from its environment "
    "(`onetrip env build NAME --package PACKAGE` makes one). Remove this line and import what is there."
)


class Program(NamedTuple):
    body: CodeType | None
    last: CodeType | None  # the last expression, when its value is to be shown
    is_async: bool  # one of the two is a coroutine
    futures: int  # compiler flags that later cells inherit
    awaits: bool = False  # with tools: whether calls of them give coroutines
    notes: tuple[str, ...] = ()  # what was mended


def register(source: str, name: str) -> None:
    """Make the source of a cell known for good: tracebacks, `inspect.getsource`, warnings."""
    # An entry without a time of change is never dropped by linecache.checkcache.
    linecache.cache[name] = (len(source), None, [line + "\n" for line in source.split("\n")], name)


def compile_cell(source: str, name: str, futures: int, tools: frozenset[str] | None = None) -> Program:
    """Raises what `compile` raises: SyntaxError, ValueError (NUL), RecursionError, MemoryError, OverflowError.

    `tools`: names of what the program can call; forgotten awaits of such calls are mended.
    """
    tree: Any = _parse(source, name, futures)
    awaits, notes = False, ()
    if tools is not None:
        awaits = find_awaits(tree)
        notes = tuple(repair(tree, tools, modules=_MODULES)) if awaits else ()
    flags = futures | PyCF_ALLOW_TOP_LEVEL_AWAIT
    body = last = None
    statements = tree.body
    if statements and type(statements[-1]) is Expr and not _is_silenced(source, statements[-1]):
        last = compile(Expression(statements.pop().value), name, "eval", flags, True)
    if statements or last is None:
        body = compile(tree, name, "exec", flags, True)
        futures |= body.co_flags & _FUTURES
    both = (body.co_flags if body else 0) | (last.co_flags if last else 0)
    return Program(body, last, bool(both & _COROUTINE), futures, awaits, notes)


def _is_silenced(source: str, node: Any) -> bool:
    """Whether a `;` follows the last expression: after its end there can only be brackets, semicolons and comments."""
    lines = source.split("\n")[node.end_lineno - 1 :] if ";" in source else []
    if lines:
        lines[0] = lines[0].encode()[node.end_col_offset :].decode()
    return any(";" in line.partition("#")[0] for line in lines)


def _parse(source: str, name: str, futures: int) -> Any:
    try:
        return _parse_once(source, name, futures)
    except SystemError:  # a finalizer that the collector ran meanwhile used `ast`, too (python/cpython#106905)
        pass
    collects = isenabled()
    disable()
    try:
        return _parse_once(source, name, futures)
    finally:
        if collects:
            enable()


def _parse_once(source: str, name: str, futures: int) -> Any:
    flags = futures | PyCF_ONLY_AST | PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compile(source, name, "exec", flags, True)
    except SyntaxError as error:
        lines = source.split("\n")
        stumbled = _stumbled_at(error, lines)
        if stumbled is None:
            raise
    # Outside of the handler, so that the errors below do not drag the first one along as their context.
    while True:
        lines[stumbled] = _translate(lines[stumbled], name, stumbled + 1)
        try:
            return compile("\n".join(lines), name, "exec", flags, True)
        except SyntaxError as error:
            again = _stumbled_at(error, lines)
            if again is None:
                raise
            stumbled = again  # a line further down: this one does not begin with % or ! any more


def _stumbled_at(error: SyntaxError, lines: list[str]) -> int | None:
    number = error.lineno
    if type(number) is not int or not 1 <= number <= len(lines):
        return None
    return number - 1 if lines[number - 1].lstrip()[:1] in ("%", "!") else None


def _translate(line: str, name: str, number: int) -> str:
    """One line of notebook syntax → one line of Python with the same indentation."""
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    command = text.lstrip("%!").strip()
    word = command.partition(" ")[0]
    if word in ("pip", "pip3", "conda"):
        return f"{indent}raise RuntimeError({_NO_PIP!r})"
    if text[0] == "!":
        return f"{indent}(__import__('subprocess').call({command!r}, shell=True), None)[1]"
    if word in _IGNORED_MAGICS and not text.startswith("%%"):
        return f"{indent}pass"
    shown = text[: len(text) - len(text.lstrip("%"))] + word
    raise SyntaxError(
        f"the magic {shown} is not supported; a cell is plain Python (only %matplotlib, %config, %load_ext and !command are understood)",
        (name, number, len(indent) + 1, line + "\n"),
    )
