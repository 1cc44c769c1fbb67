"""Whether threads and event loops of the program stand still: nothing in them goes on unless another one, or an answer, lets it.

Frames tell where a thread is in Python, the kernel whether it sleeps without a limit in a lock that C code has taken. To read the latter
lets other threads run, so what the frames said must be so afterwards as well.
"""

import platform
import sys
import threading
from collections.abc import Collection
from concurrent.futures import thread as executor_threads
from posix import getpid
from time import sleep
from types import CodeType
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_FUTEX: Final = {"x86_64": b"202", "aarch64": b"98"}.get(platform.machine(), b"none")
_threads: Final[dict[int, Any]] = vars(threading)["_active"]
_frames: Final = sys._current_frames  # pyright: ignore[reportPrivateUsage]
# Where a thread waits without a limit, if `timeout` there is None; these wait for others, or for nothing.
_WAITS: Final = tuple(
    found.__code__
    for found in (
        threading.Condition.wait,
        threading.Thread.join,
        getattr(threading.Thread, "_wait_for_tstate_lock", None),
        getattr(executor_threads, "_worker", None),
    )
    if found is not None
)
_DEPTH: Final = 6  # of what looks calls, at most
_MOMENT_S: Final = 0.001  # in which a thread that can go on does
_CONDITION_WAIT: Final = threading.Condition.wait.__code__
_START: Final = threading.Thread.start.__code__


def others_wait(ours: Collection[CodeType], select: CodeType) -> bool:
    """Whether every thread but this one waits without a limit. `ours`: functions of ours that wait; `select`: ours around a selector's."""
    before = _all_wait(ours, select)
    if before is None:
        return False
    if not before:
        return True
    # A thread that hands the interpreter over looks like one that waits, until somebody has taken it; so two looks, with time to go on between.
    sleep(_MOMENT_S)
    return _all_wait(ours, select) == before


def _all_wait(ours: Collection[CodeType], select: CodeType) -> dict[int, tuple[Any, int]] | None:
    """Where in which frame each other thread waits; None if one does not."""
    me = threading.get_ident()
    places: dict[int, tuple[Any, int]] = {ident: (frame, frame.f_lasti) for ident, frame in _frames().items() if ident != me}
    asleep: list[int] = []
    for ident, (frame, _) in places.items():
        if _looks(frame):
            places[ident] = others_wait, 0
            continue
        found = _where(frame, ident, ours, select)
        if found is False:
            return None
        if found is not True:
            asleep.append(found)
    return places if all(map(_waits_for_lock, asleep)) else None


def _looks(frame: Any) -> bool:
    """Whether this thread looks whether others wait, as we do, which it does only if it waits itself."""
    for _ in range(_DEPTH):
        if frame is None or frame.f_code is _LOOK:
            return frame is not None
        frame = frame.f_back
    return False


def _where(frame: Any, ident: int, ours: Collection[CodeType], select: CodeType) -> bool | int:
    """Whether this thread waits, by its frames; or the id by which the kernel knows it."""
    code = frame.f_code
    if code in ours:
        return True
    if code.co_name == "select":
        return _is_idle_loop(frame, select)
    if code is _CONDITION_WAIT and any(
        above is not None and above.f_code is _START for above in (frame.f_back, frame.f_back.f_back)
    ):
        return False  # for a thread that is just being started
    thread = _threads.get(ident)
    if thread is None:
        return False
    if code in _WAITS and frame.f_locals.get("timeout") not in (None, -1):
        return code is _CONDITION_WAIT and bool(thread.daemon)  # it looks around now and then
    # The frame is the same before the wait and after it: a worker that has work, or who was woken and waits for the interpreter.
    return getpid() if thread is threading.main_thread() else thread.native_id


def _is_idle_loop(frame: Any, select: CodeType) -> bool:
    """Whether this frame, in a selector, is that of a loop which nothing but others will wake."""
    above = frame.f_back
    if above is not None and above.f_code is select:
        above = above.f_back
    return above is not None and above.f_code.co_qualname == "BaseEventLoop._run_once" and only_guards(above.f_locals["self"])


def only_guards(loop: Any) -> bool:
    """Whether nothing is ready in this loop, and no timer is set but those that end a wait for something else."""
    if loop._ready:
        return False
    return all(handle._cancelled or _is_guard(handle._callback) for handle in loop._scheduled)


def _is_guard(callback: Any) -> bool:
    """asyncio.timeout and wait_for, wait, as_completed: what they call when the time is over."""
    name = getattr(getattr(callback, "__func__", callback), "__qualname__", "")
    return name in (
        "Timeout._on_timeout",
        "_release_waiter",
        "as_completed.<locals>._on_timeout",
        "_AsCompletedIterator._handle_timeout",
    )


def _waits_for_lock(native_id: int) -> bool:
    """Whether this thread sleeps until another one wakes it: locks are taken in C, so no frame tells. Whoever waits for the interpreter does
    so with a limit."""
    try:
        with open(f"/proc/self/task/{native_id}/syscall", "rb") as file:
            fields = file.read().split()
    except OSError:
        return False
    return len(fields) > 4 and fields[0] == _FUTEX and fields[4] == b"0x0"  # futex(2): the fourth argument is the limit


_LOOK: Final = others_wait.__code__
