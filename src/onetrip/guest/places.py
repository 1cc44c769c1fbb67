"""Where in a program a call of a tool is made: which task, and the how-manieth of its calls; the same whatever runs first.

A task is named by the task that made it and by how many that one had made before; so is what is given to a pool of threads. A thread has
the name that `threading` gave it.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from threading import current_thread, main_thread
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_modules: Final = sys.modules  # the program may rebind sys.modules


class _Place:
    __slots__ = ("calls", "made", "path")

    def __init__(self, path: str) -> None:
        self.path, self.calls, self.made = path, 0, 0

    def below(self) -> "_Place":
        self.made += 1
        path = f"{self.path}.{self.made}"
        return _Place(path if len(path) <= 2000 else f"…{hash(path)}.{self.made}")


_here: ContextVar[_Place] = ContextVar("place")
_threads: Final[dict[str, _Place]] = {}
_root: list[_Place] = [_Place("")]


def begin() -> None:
    """A cell begins."""
    _root[0] = _Place("")
    _threads.clear()


def _place() -> _Place:
    if (place := _here.get(None)) is not None:
        return place
    thread = current_thread()
    if thread is main_thread():
        return _root[0]
    return _threads.setdefault(thread.name, _Place(f"thread {thread.name[:200]}"))


def next_place() -> tuple[str, int]:
    """Of the call that is being made."""
    place = _place()
    place.calls += 1
    return place.path, place.calls


def follow(loop: Any) -> None:
    """Name the tasks that this event loop makes from now on."""
    if loop.get_task_factory() is None:
        loop.set_task_factory(_task)


def _task(loop: Any, coro: Any, *, context: Any = None, **options: Any) -> Any:
    context = copy_context() if context is None else context
    context.run(_here.set, _place().below())
    return _modules["asyncio"].Task(coro, loop=loop, context=context, **options)


def follow_loops(follow: Callable[[Any], None]) -> None:
    """The same, by `follow`, for every event loop that is made from now on."""
    events: Any = _modules["asyncio.events"]
    asyncio: Any = _modules["asyncio"]
    made = events.new_event_loop
    if getattr(made, "__qualname__", "") == "follow_loops.<locals>.new_event_loop":
        return

    def new_event_loop() -> Any:
        loop = made()
        follow(loop)
        return loop

    events.new_event_loop = asyncio.new_event_loop = new_event_loop


_submit: Final = ThreadPoolExecutor.submit


def follow_executors() -> None:
    """Name what is given to pools of threads: which thread takes it is chance."""

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _submit(self, _placed, _place().below(), fn, *args, **kwargs)

    submit.__doc__ = _submit.__doc__
    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]


def _placed(place: _Place, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    token = _here.set(place)
    try:
        return fn(*args, **kwargs)
    finally:
        _here.reset(token)
