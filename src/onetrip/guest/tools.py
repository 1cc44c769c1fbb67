"""What a program sees of tools: the module `tools`, the bare names, results with attribute access, and errors of real types.

A tool is called with keyword arguments, in the order of its parameters, or with one dictionary. In a program that awaits, a call gives a
coroutine; in one that does not, it blocks and gives the value. That is decided by the cell whose code calls (`Toolset.awaiting`), so a
function of an earlier cell goes on working in a later one.
"""

import builtins
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from json import JSONDecoder, JSONEncoder, dumps, loads
from threading import current_thread, main_thread
from types import ModuleType
from typing import Any, Final, cast

from . import places, tool_help
from .calling import Calls, NotHere
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .values import json_form

_MODULES: Final = sys.modules  # the program may rebind sys.modules
_frame: Final = sys._getframe  # pyright: ignore[reportPrivateUsage]
_CELL: Final = "<cell "
_MAX_FRAMES: Final = 12  # looked at for the cell that calls
_BUILTINS: Final = frozenset(vars(builtins))
# Names under which models have been seen to import their tools. Whatever can really be imported comes first.
_PHANTOMS: Final = frozenset({"functions", "default_api", "tool_code", "agent_tools", "mcp_tools", "toolbox"})


class ToolError(RuntimeError):
    """A tool failed. `retryable`: the same call may succeed later. `tool` names it; `code` is a stable word where there is one."""

    def __init__(self, message: str = "", *, tool: str | None = None, retryable: bool = False, code: str | None = None) -> None:
        super().__init__(message)
        self.tool, self.retryable, self.code = tool, retryable, code


class ToolTimeout(ToolError, TimeoutError):
    """It took too long, or nobody answered."""


class ToolDenied(ToolError, PermissionError):
    """The call is not allowed, or somebody refused it."""


class ToolArgumentError(ToolError, TypeError):
    """The arguments are not what the tool takes."""


_ERRORS: Final = {"error": ToolError, "timeout": ToolTimeout, "denied": ToolDenied, "arguments": ToolArgumentError}
for _error in _ERRORS.values():
    _error.__module__ = "tools"


class _Both(list[Any]):
    """The list `r.items` of a result that has such a list, and the method `r.items()` of a dictionary: programs mean either."""

    __slots__ = ("_method",)

    def __init__(self, items: list[Any], method: Any) -> None:
        super().__init__(items)
        self._method = method

    def __call__(self) -> Any:
        return self._method()

    def __reduce__(self) -> Any:
        return list, (list(self),)


_SHADOWED: Final = frozenset({"items", "keys", "values"})


class Record(dict[str, Any]):
    """An object in a result: a dictionary whose items are attributes, too, where the name is not one of a dictionary's own."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _SHADOWED and name in self and isinstance(self[name], list):
            return _Both(self[name], object.__getattribute__(self, name))
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} in it; its keys are {list(self)[:30]}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


Record.__module__ = "tools"
Record.__qualname__ = Record.__name__ = "dict"  # what a program is told of its type is what it may rely on


# made once: to make them costs more than to use them
_encode: Final = JSONEncoder(allow_nan=False).encode
_decode: Final = JSONDecoder(object_hook=Record).decode


class Stub:
    """One tool, to be called."""

    def __init__(self, tools: "Toolset", told: Mapping[str, Any]) -> None:
        self._tools = tools
        self._name: str = told["name"]
        self.__name__ = self._name.rpartition(".")[2]
        self.__qualname__ = self._name
        self.__module__ = "tools"
        self.__doc__ = told.get("description") or None
        schema: Mapping[str, Any] = told.get("input_schema") or {}
        properties: Mapping[str, Any] = schema.get("properties") or {}
        self._parameters = tuple(properties)
        self._required = tuple(name for name in schema.get("required") or () if isinstance(name, str))
        # A schema that names its parameters takes no others unless it says so: Python's way, and the one that finds mistakes.
        self._is_open = not properties or bool(schema.get("additionalProperties"))
        self._is_slow = told.get("side", "client") == "client" or told.get("approval") == "required"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.arguments(args, kwargs)
        if self._tools.awaiting():
            awaited = self._later(arguments)
            awaited.__name__, awaited.__qualname__ = self.__name__, self.__qualname__  # as a warning about it says
            return awaited
        return self.blocking(arguments)

    def __repr__(self) -> str:
        return f"<tool {self._name}({', '.join(self._parameters)})>"

    def blocking(self, arguments: Mapping[str, Any]) -> Any:
        """Call and wait, whatever the program does elsewhere."""
        body = self._encoded(arguments)
        try:
            outcome = self._tools.calls.wait(self._name, places.next_place(), body, is_slow=self._is_slow)
        except (NotHere, ValueError) as err:
            raise self._not_sent(err) from None
        return self._value(outcome)

    async def _later(self, arguments: Mapping[str, Any]) -> Any:
        body = self._encoded(arguments)
        try:
            outcome = await self._tools.calls.await_(self._name, places.next_place(), body, is_slow=self._is_slow)
        except (NotHere, ValueError) as err:
            raise self._not_sent(err) from None
        return self._value(outcome)

    def _not_sent(self, err: Exception) -> ToolError:
        if isinstance(err, NotHere):
            return ToolError(
                f"{self._name}: tools can be called while a cell runs, in the session's own process", tool=self._name
            )
        return ToolArgumentError(f"{self._name}: the arguments are too large", tool=self._name, code="too_large")

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = self._parameters
        if len(args) == 1 and not kwargs and isinstance(args[0], dict):
            only = cast("dict[Any, Any]", args[0])
            if self._are_arguments(only):
                return dict(only)
        if len(args) > len(names):
            raise self._wrong(f"takes {len(names)} arguments, but {len(args)} were given")
        arguments = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in arguments:
                raise self._wrong(f"got {name!r} twice")
            if name not in names and not self._is_open:
                close = difflib.get_close_matches(name, names, 1)
                raise self._wrong(f"has no parameter {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
            arguments[name] = value
        if missing := [name for name in self._required if name not in arguments]:
            raise self._wrong(f"needs {', '.join(map(repr, missing))}")
        return arguments

    def _are_arguments(self, given: dict[Any, Any]) -> bool:
        """Whether one dictionary is all arguments, and not the value of the first parameter."""
        if not self._parameters:
            return all(isinstance(name, str) for name in given)
        return bool(given) and all(name in self._parameters for name in given) and all(name in given for name in self._required)

    def _wrong(self, words: str) -> ToolArgumentError:
        optional = {name for name in self._parameters if name not in self._required}
        shown = ", ".join(f"{name}=…" if name in optional else name for name in self._parameters)
        return ToolArgumentError(f"{self._name}() {words}. It is called as {self._name}({shown})", tool=self._name)

    def _encoded(self, arguments: Mapping[str, Any]) -> bytes:
        try:
            return _encode(arguments).encode("ascii")
        except (TypeError, ValueError, RecursionError):
            pass  # numpy's numbers, frames, dates: as in a result
        texts: list[str] = []
        for name, value in arguments.items():
            form = json_form(value)
            if form is None and value is not None:
                raise ToolArgumentError(f"{self._name}(): {name!r} has no JSON form: {type(value).__name__}", tool=self._name)
            texts.append(f"{dumps(name)}: {form or 'null'}")
        return f"{{{', '.join(texts)}}}".encode("ascii")

    def _value(self, outcome: tuple[bool, bytes]) -> Any:
        failed, body = outcome
        if not failed:
            return _decode(body.decode())
        told = loads(body)
        kind = _ERRORS.get(told.get("type", "error"), ToolError)
        message = f"{self._name}: {told.get('message', 'it failed')}"
        raise kind(message, tool=self._name, retryable=bool(told.get("retryable")), code=told.get("code"))


class _Space(ModuleType):
    """The module `tools`, or one namespace in it."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            close = difflib.get_close_matches(name, [known for known in vars(self) if not known.startswith("_")], 3)
            meant = f"; did you mean {', '.join(close)}?" if close else "; tools.search('…') finds tools by words"
            raise AttributeError(f"there is no tool {self.__name__}.{name}{meant}", name=name, obj=self)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)


class Toolset:
    """The tools of a session. `tell` replaces them all; `modes` says of each cell whether it awaits."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.modes: dict[str, bool] = {}
        self.names: frozenset[str] = frozenset()  # bound in the namespace of the cells, and none of the program's
        self.catalogue: Sequence[Mapping[str, Any]] = ()
        self._bound: dict[str, Any] = {}

    def tell(self, catalogue: bytes, space: dict[str, Any]) -> None:
        """The tools are these from now on. Names that the program has given to something else stay its own."""
        self.catalogue = loads(catalogue) if catalogue else []
        root = _Space("tools", "The tools that this program can call.")
        root.__path__ = []  # type: ignore[attr-defined]  # so that `import tools.shop` works
        root.__spec__ = ModuleSpec("tools", None, is_package=True)
        spaces: dict[str, Any] = {"tools": root}
        bound: dict[str, Any] = {"tools": root}
        for told in self.catalogue:
            above, at = root, "tools"
            *path, name = told["name"].split(".")
            for part in path:
                at = f"{at}.{part}"
                if at not in spaces:
                    spaces[at] = _Space(at)
                    spaces[at].__path__ = []
                    spaces[at].__spec__ = ModuleSpec(at, None, is_package=True)
                    setattr(above, part, spaces[at])
                above = spaces[at]
            stub = Stub(self, told)
            setattr(above, name, stub)
            bound[path[0] if path else name] = getattr(root, path[0]) if path else stub
        for error in _ERRORS.values():
            setattr(root, error.__name__, error)
            bound[error.__name__] = error
        self._add_help(root)
        for name in [name for name in _MODULES if name.partition(".")[0] == "tools"]:
            del _MODULES[name]
        _MODULES.update(spaces)
        for name, value in self._bound.items():
            if space.get(name) is value:
                del space[name]
        self._bound = {name: value for name, value in bound.items() if name not in _BUILTINS and name not in space}
        space.update(self._bound)
        space["__tools_blocking__"] = _blocking  # what `awaits` puts in where nothing can be awaited
        self.names = frozenset({*self._bound, "__tools_blocking__"})
        if not any(isinstance(finder, _Phantoms) for finder in sys.meta_path):
            sys.meta_path.append(_Phantoms())  # type: ignore[arg-type]
        places.follow_executors()

    def begin(self) -> None:
        """A cell begins."""
        places.begin()
        self.calls.begin()

    def follow(self, loop: Any) -> None:
        """This event loop runs the program's code."""
        places.follow(loop)
        self.calls.watch(loop)

    def follow_loops(self) -> None:
        """A program that awaits may make event loops of its own."""
        importlib.import_module("asyncio")
        places.follow_loops(self.follow)

    async def settled(self) -> None:
        """At the end of a cell: until the calls that tasks of it have begun are answered. Nothing is left half done."""
        asyncio: Any = _MODULES["asyncio"]
        await asyncio.sleep(0)  # tasks that were made in the last line begin
        while futures := self.calls.futures():
            await asyncio.wait(futures)
            await asyncio.sleep(0)

    def callable(self, space: Mapping[str, Any]) -> frozenset[str]:
        """Names of tools as programs write them, without those that the program has given to something else."""
        bound = self._bound
        return frozenset(
            told["name"] for told in self.catalogue if space.get(top := told["name"].partition(".")[0]) is bound.get(top)
        )

    def _add_help(self, root: Any) -> None:
        def search(query: str = "", limit: int = 10) -> Any:
            """The tools that these words fit best, each as {"name", "signature", "description"}."""
            return _Found(tool_help.search(self.catalogue, query, limit))

        def describe(tool: Any) -> Any:
            """Everything about one tool, by its name."""
            try:
                return _Text(tool_help.describe(self.catalogue, tool.__qualname__ if isinstance(tool, Stub) else tool))
            except LookupError as err:
                raise ToolArgumentError(str(err)) from None

        for function in (search, describe):
            function.__module__ = "tools"
            function.__qualname__ = function.__name__
            setattr(root, function.__name__, function)

    def awaiting(self) -> bool:
        """Whether the code that calls wants a coroutine: its cell awaits, and it is not in a thread that cannot."""
        asyncio = _MODULES.get("asyncio")
        has_loop = asyncio is not None and asyncio._get_running_loop() is not None
        frame = _frame(2)
        for _ in range(_MAX_FRAMES):
            name = frame.f_code.co_filename
            if name.startswith(_CELL):
                return self.modes.get(name, has_loop) and (has_loop or current_thread() is main_thread())
            if frame.f_back is None:
                break
            frame = frame.f_back
        return has_loop


def _blocking(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
    return tool.blocking(tool.arguments(args, kwargs)) if isinstance(tool, Stub) else tool(*args, **kwargs)


class _Found(list[Any]):
    """What `tools.search` found; awaiting it gives the same, as programs that await everything do."""

    def __await__(self) -> Any:
        yield from ()
        return list(self)


class _Text(str):
    """The same for what `tools.describe` says."""

    __slots__ = ()

    def __await__(self) -> Any:
        yield from ()
        return str(self)


class _Phantoms:
    """Finds `tools` under other names, where nothing has them; asked last."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name.partition(".")[0] not in _PHANTOMS or name.replace(name.partition(".")[0], "tools", 1) not in _MODULES:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        return _MODULES[spec.name.replace(spec.name.partition(".")[0], "tools", 1)]

    def exec_module(self, module: Any) -> None:
        pass
