"""Where programs run: the one seam between the benchmark and whatever executes them."""

import ast
import asyncio
import builtins
import dataclasses
import inspect
import selectors
import time
import types
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from onetrip.blocking import Local
from trips.recorder import Call, Recorder
from trips.sets import Function, ToolSet

RUN_S = 60.0  # for one program; the longest takes five seconds with the default times


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: where there would be a wait, the clock jumps. `now`: seconds."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the program waits for something that never comes")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while somebody has something to do, and else jumps to the next timer."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run under a virtual clock, which begins at 0."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()


async def run_plainly(code: str, tools: Mapping[str, Function]) -> Any:
    """Run a program in this process, as a sandbox would: top-level await, `tools` and bare names; returns its last expression.

    Only for programs of ours: there is no isolation. A program without `await` gets tools that block.
    """
    tree = ast.parse(code)
    asynchronous = awaits(code)
    last = tree.body[-1]
    assert isinstance(last, ast.Expr), "a program ends with the answer"
    tree.body[-1] = ast.fix_missing_locations(ast.copy_location(ast.Assign([ast.Name("_answer", ast.Store())], last.value), last))
    spaces = _namespaces({name: function if asynchronous else _blocking(function) for name, function in tools.items()})

    def import_(name: str, *rest: Any) -> Any:
        return types.SimpleNamespace(**spaces) if name == "tools" else builtins.__import__(name, *rest)

    namespace: dict[str, Any] = {**spaces, "__builtins__": {**vars(builtins), "__import__": import_}}
    done = eval(compile(tree, "<program>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
    if inspect.iscoroutine(done):
        await done
    return namespace["_answer"]


def _namespaces(tools: Mapping[str, Function]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, function in tools.items():
        space, _, bare = name.rpartition(".")
        setattr(found.setdefault(space, types.SimpleNamespace()), bare, function)
    return found


def _blocking(function: Function) -> Function:
    """The same as a call that blocks; only for tools that take no time, as there is nobody who would wake it up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            function(*args, **kwargs).send(None)
        except StopIteration as end:
            return end.value
        raise RuntimeError("a tool that takes time cannot be called without await here")

    return call


def awaits(code: str) -> bool:
    """Whether a program awaits anything; if not, its tools block."""
    return any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in ast.walk(ast.parse(code)))


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """What a program gave, how long it took in seconds from its source to its result, and the calls that it made."""

    answer: Any
    took_s: float
    calls: list[Call]


class Runner(Protocol):
    """Runs programs. `where`: in what, to be told with every figure."""

    where: str

    def run(self, code: str, kind: type[ToolSet], tool_s: float) -> Ran:
        """Run a program with the tools of a fresh set, each call of which takes so long. Raises ProgramFailedError."""
        ...


async def _nothing() -> None:
    """The tool of a program that warms up."""


class Sandbox:
    """Onetrip: each program in a sandbox of its own, its tools functions of this process."""

    where = "a Onetrip sandbox"

    def __init__(self, ot: Local) -> None:
        self._ot = ot
        ot.run("await _nothing()", tools=[_nothing])  # what is only imported at the first use belongs to no task

    def run(self, code: str, kind: type[ToolSet], tool_s: float) -> Ran:
        recorder = Recorder(kind, lambda: asyncio.sleep(tool_s), time.perf_counter)
        began = time.perf_counter()
        result = self._ot.run(code, tools=list(recorder.tools().values()), timeout_s=RUN_S)
        took_s = time.perf_counter() - began
        if result.status != "completed":
            raise ProgramFailedError(f"{result.status}: {result.error or result.limit}")
        if [call.tool for call in result.tool_calls] != [call.tool for call in recorder.calls]:
            raise ProgramFailedError("the calls in the result are not those that were made")
        return Ran(result.value, took_s, recorder.calls)


class ProgramFailedError(Exception):
    """A program ended otherwise than with an answer; the message says how."""


class Plain:
    """This process, without a sandbox: for tests, and to see what a sandbox costs. Never for programs of a model."""

    where = "plain asyncio in this process, WITHOUT a sandbox"

    def run(self, code: str, kind: type[ToolSet], tool_s: float) -> Ran:
        async def wait() -> None:
            if awaits(code):
                await asyncio.sleep(tool_s)
            else:
                time.sleep(tool_s)  # noqa: ASYNC251 -- its tools block, and nobody else is there

        recorder = Recorder(kind, wait, time.perf_counter)
        began = time.perf_counter()
        try:
            answer = asyncio.run(run_plainly(code, recorder.tools()))
        except Exception as err:
            raise ProgramFailedError(f"{type(err).__name__}: {err}") from err
        return Ran(answer, time.perf_counter() - began, recorder.calls)
