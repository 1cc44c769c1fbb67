"""Runs cells: the program's namespace, one cell after another, and the report on each.

The order of a cell: its code, its result, its figures, for a one-shot the program's end; then everything written is passed on and
the report is made. Only the first four are the program's time, in which it can be interrupted (see `interrupts`).

Trace and profile functions that a cell sets last until its end. They are switched off without a call that they could see, so
they never observe a frame of ours; a later cell that wants to be traced sets them again.
"""

import builtins
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from importlib.machinery import BuiltinImporter
from itertools import chain
from json import loads
from posix import getpid
from sys import setprofile, settrace
from types import ModuleType
from typing import Any, Final, cast

from . import reseed
from .audit import Listener
from .calling import Calls
from .channel import Channel
from .display import Displays, plain_text
from .ending import drop_namespace, end_program, leave_child
from .interrupts import Gate, block_all
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .own import Keeper
from .source import Program, compile_cell, register
from .streams import Streams
from .tools import Toolset
from .tracebacks import describe, limit_of
from .values import json_form, quote

_MODULES: Final = sys.modules  # the program may rebind sys.modules
_NONE: Final = (None,)
_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE
_NOTHING: Final = object()
_MAX_VARIABLES: Final = 100  # whose names are told


class _Outcome:
    """What is known about a cell while it runs."""

    __slots__ = ("error", "form", "interrupted", "limit", "notes", "text", "variables")

    def __init__(self) -> None:
        self.text: str | None = None
        self.form: str | None = None
        self.error: dict[str, Any] | None = None
        self.interrupted = False
        self.limit: str | None = None
        self.notes: Sequence[str] = ()
        self.variables: Sequence[str] = ()

    def report(self) -> bytes:
        error = "null"
        if self.error is not None:
            line = self.error["line"]
            texts = [f'"{name}": {quote(self.error[name])}' for name in ("type", "message", "traceback")]
            error = f'{{{", ".join(texts)}, "line": {"null" if line is None else line}}}'
        variables = f', "variables": [{", ".join(map(quote, self.variables))}]' if self.variables else ""
        notes = f', "notes": [{", ".join(quote(note[:500]) for note in self.notes[:50])}]' if self.notes else ""
        return (
            f'{{"text": {"null" if self.text is None else quote(self.text)}, "value": {self.form or "null"}, '
            f'"has_value": {"true" if self.form is not None else "false"}, "error": {error}, '
            f'"interrupted": {"true" if self.interrupted else "false"}, '
            f'"limit": {"null" if self.limit is None else quote(self.limit)}'
            f"{variables}{notes}}}"
        ).encode("ascii")


class Runner:
    """One session's namespace. `run` never raises on the program's account."""

    def __init__(self, streams: Streams, displays: Displays, listener: Listener) -> None:
        self._streams, self._displays, self._listener = streams, displays, listener
        self._keeper = Keeper()
        self._gate = Gate()
        self._pid = 0
        self._futures = 0
        self._loop: Any = None  # asyncio.Runner, from the first cell with an await on
        self._results: list[Any] = [_NOTHING, _NOTHING, _NOTHING]  # what _, __ and ___ were set to
        self._outcome = _Outcome()
        self._value: Any = None  # result of the cell that runs
        self._space: dict[str, Any] = {}
        self.tools: Toolset | None = None  # what its programs can call
        self.seeded: set[str] = set()  # libraries whose generator the program seems to have seeded

    def event_loop(self) -> Any:
        """The event loop of the session, if a cell needed one."""
        return self._loop.get_loop() if self._loop is not None else None

    def own(self) -> None:
        """In the process that will run cells."""
        self._pid = getpid()
        if self.tools is not None:
            self.tools.calls.own()

    def tell_tools(self, catalogue: bytes, channel: Channel) -> None:
        """Its programs can call these tools from now on."""
        if self.tools is None:
            self.tools = Toolset(Calls(channel))
        self.tools.tell(catalogue, self._space)

    def start(self) -> ModuleType:
        """Make the `__main__` of the cells. Signals are blocked from here on, but while a cell runs.

        A zygote calls it after it has frozen what it has: the collector must be able to free the program's objects at their end.
        """
        block_all()
        self.own()
        main = ModuleType("__main__")
        self._space = vars(main)
        # As in the __main__ of `python -c`.
        self._space |= {"__loader__": BuiltinImporter, "__annotations__": {}, "__builtins__": builtins}
        return main

    def accept_builtins(self) -> None:
        """The builtins as they are now are how they should be."""
        self._keeper = Keeper()

    def close(self) -> None:
        """Close the event loop, if there is one."""
        if self._loop is not None:
            self._loop.close()

    def drop_interrupt(self) -> None:
        """One that came too late for the cell before is not for the next one."""
        self._gate.drop_interrupt()

    def run(self, cell: int, source: bytes, inputs: bytes, *, final: bool) -> bytes:
        """Run one cell and return the body of its `Done`."""
        name = f"<cell {cell}>"
        outcome = self._outcome = _Outcome()
        self._streams.begin()
        self._displays.broken_figure = None
        self._listener.wrote = False
        variables: dict[str, Any] = loads(inputs) if inputs else {}
        if b"see" in source or b"state" in source:
            self.seeded |= reseed.seeded_by(source)
        if self.tools is not None:
            self.tools.begin()
        self._keeper.give_back()
        self._attempt(name, lambda: self._program(name, source, variables), final=final)
        value, self._value = self._value, None
        if value is not None:
            self._remember(value)  # here, where nothing can interrupt it half-way
            del value
        if "matplotlib.pyplot" in _MODULES:
            self._attempt(name, self._displays.show_figures, final=final)
            if self._displays.broken_figure is not None:
                self._note(self._displays.broken_figure, name)
                self._displays.broken_figure = None
        if getattr(sys, "stdout", None) is not self._streams.out or getattr(sys, "stderr", None) is not self._streams.err:
            self._attempt(name, _flush_replaced, final=final)
        if final:
            self._end(name, source)
        elif outcome.error is not None:
            outcome.variables = self._variables()
        if self.tools is not None:
            self.tools.calls.end()
        self._listener.touch_mapped()
        self._streams.pass_on_all()
        return outcome.report()

    def _attempt(self, name: str, action: Callable[[], object], *, final: bool) -> None:
        """Run code of the program, and note what it raised."""
        self._gate.run(action)
        if self._gate.failure is None:
            self._keeper.mend_needed()
        else:
            self._keeper.mend()
        if getpid() != self._pid:
            leave_child(self._gate.failure, self._streams, name, final=final)
        if self._gate.failure is not None:
            self._note(self._gate.failure, name)
            self._gate.failure = None  # the program's frames, and all they hold, are free now

    def _note(self, failure: BaseException, name: str) -> None:
        outcome = self._outcome
        if outcome.error is not None:
            return  # the first error is the one that explains
        if isinstance(failure, SystemExit) and (failure.code is None or (isinstance(failure.code, int) and failure.code == 0)):
            return
        outcome.interrupted = isinstance(failure, KeyboardInterrupt)
        outcome.limit = limit_of(failure)
        outcome.error = describe(failure, name)

    # ------------------------------------------------------------------ the program's code

    def _program(self, name: str, source: bytes, variables: dict[str, Any]) -> None:
        text = source.decode()
        register(text, name)
        self._space |= variables
        program = compile_cell(text, name, self._futures, self.tools.callable(self._space) if self.tools is not None else None)
        self._futures = program.futures
        if self.tools is not None:
            self.tools.modes[name], self._outcome.notes = program.awaits, program.notes
            if program.awaits:
                self.tools.follow_loops()
        value = self._run_async(program) if program.is_async else self._run_plain(program)
        if value is not None:
            self._value = value
            text, form = plain_text(value), json_form(value)
            self._displays.result(value, text)
            self._outcome.text, self._outcome.form = text, form  # last: a cell that was interrupted has no result

    def _run_plain(self, program: Program) -> Any:
        """Run both parts and return the value of the last expression."""
        spaces = (self._space,)
        steps: list[Iterable[Any]] = []
        if program.body is not None:
            steps.append(map(exec, (program.body,), spaces))
        if program.last is not None:
            steps.append(map(eval, (program.last,), spaces))
        value = None
        # A step of an iterator is not a call, so a profile function set by the program sees nothing between its own last
        # event and its end.
        try:
            for value in chain(*steps):  # noqa: B007  # the last one is the result
                pass
        finally:
            for _ in map(setprofile, _NONE):
                pass
            for _ in map(settrace, _NONE):
                pass
        return value

    def _run_async(self, program: Program) -> Any:
        """The same for a cell with a top-level await: on the session's event loop, which only such cells need."""
        if self._loop is None or self._loop.get_loop().is_closed():
            from asyncio import Runner as LoopRunner  # noqa: PLC0415  # most sessions never need it

            self._loop = LoopRunner()
        if self.tools is not None:
            self.tools.follow(self._loop.get_loop())
        return self._loop.run(self._awaited(program), context=copy_context())

    async def _awaited(self, program: Program) -> Any:
        value = None
        try:
            for part in (program.body, program.last):
                if part is not None:
                    for value in map(eval, (part,), (self._space,)):  # noqa: B007  # as above
                        pass
                    if part.co_flags & _COROUTINE:
                        value = await value  # type: ignore[misc]
            if self.tools is not None:
                await self.tools.settled()
        finally:
            for _ in map(setprofile, _NONE):
                pass
            for _ in map(settrace, _NONE):
                pass
        return cast("Any", value) if program.last is not None else None

    def _variables(self) -> list[str]:
        """What the program has made of its namespace: names that the next cell finds."""
        theirs = self.tools.names if self.tools is not None else frozenset[str]()
        names = (
            name
            for name in list(self._space)
            if type(name) is str and name[:1] != "_" and name not in theirs and len(name) <= 100
        )
        return [name for name, _ in zip(names, range(_MAX_VARIABLES), strict=False)]

    def _remember(self, value: object) -> None:
        """`_`, `__`, `___` as in IPython: the last three results, unless the program uses these names itself."""
        space, results = self._space, self._results
        for i, name in enumerate(("_", "__", "___")):
            if name in space and space[name] is not results[i]:
                return
        results.insert(0, value)
        results.pop()
        for result, name in zip(results, ("_", "__", "___"), strict=True):
            if result is not _NOTHING:
                space[name] = result

    # ------------------------------------------------------------------ the end of a one-shot

    def _end(self, name: str, source: bytes) -> None:
        if self._loop is not None:
            self._attempt(name, self.close, final=True)
        self._attempt(name, end_program, final=True)
        # Dropping the namespace costs a garbage collection; only these two can make it visible.
        if self._listener.wrote or b"__del__" in source:
            self._space, self._results = {}, []
            self._attempt(name, lambda: drop_namespace(_MODULES), final=True)


def _flush_replaced() -> None:
    """What the program put in place of its streams may hold text too."""
    for name in ("stdout", "stderr"):
        flush = getattr(getattr(sys, name, None), "flush", None)
        if callable(flush):
            flush()
