"""How a program ends: its threads, exit handlers and finalisers, for a one-shot and for a forked child of a cell."""

import atexit
import contextlib
import gc
import sys
import threading
from io import BufferedRandom, BufferedWriter, TextIOWrapper
from posix import _exit as exit_process  # pyright: ignore[reportPrivateUsage]  # its public name is os._exit
from traceback import TracebackException
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .streams import Streams
from .tracebacks import describe

# Bound now: the program may replace them. Both are what Python itself calls at its end; neither has a public name.
_join_threads: Final[Any] = getattr(threading, "_shutdown")  # noqa: B009
_run_exit_handlers: Final[Any] = getattr(atexit, "_run_exitfuncs")  # noqa: B009


def _thread_handlers() -> int:
    """How many functions are to be called before threads are waited for (concurrent.futures has one)."""
    return len(getattr(threading, "_threading_atexits", ()))


_known_handlers: Final[list[int]] = []


def note_handlers() -> None:
    """In the zygote, last: what is registered now has nothing to do in a program without threads."""
    _known_handlers[:] = [_thread_handlers()]


def end_program() -> None:
    """What `python -c` does after the last line: wait for threads that are no daemons, then run the exit handlers."""
    # Joining writes to some 25 pages of memory that a fork shares with its zygote, and most programs have no thread.
    if threading.active_count() > 1 or _known_handlers != [_thread_handlers()]:
        _join_threads()
    _run_exit_handlers()


def drop_namespace(modules: dict[str, Any]) -> None:
    """Let go of the program's objects, so that files it left open are written out and `__del__` methods run.

    Precondition: nothing of ours refers to the namespace any more. A function refers to its globals, so only the collector
    can do it, and in its order; the objects see their globals intact, as at the end of `python -c`.
    """
    modules.pop("__main__", None)
    # The collector may close a file before the buffer above it is written out.
    objects, file = gc.get_objects(), None
    for kind in (TextIOWrapper, BufferedWriter, BufferedRandom):
        for file in objects:
            if issubclass(type(file), kind):
                with contextlib.suppress(OSError, ValueError):
                    kind.flush(file)
    del objects, file
    gc.collect()


def leave_child(failure: BaseException | None, streams: Streams, cell: str, *, final: bool) -> None:
    """End a child that the program forked and that came to the end of its cell. Does not return."""
    status = 0
    if isinstance(failure, SystemExit):
        status = failure.code if isinstance(failure.code, int) else 0 if failure.code is None else 1
    elif failure is not None:
        describe(failure, cell)  # for its side effect: our frames are cut off
        print("".join(TracebackException(type(failure), failure, failure.__traceback__).format()), file=sys.__stderr__)
        status = 1
    if final:
        end_program()
    streams.pass_on_all()
    exit_process(status & 0xFF)
