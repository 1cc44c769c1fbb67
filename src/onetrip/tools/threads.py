"""Threads for functions that block: as many as are needed, at most so many, and none that keeps the process from ending.

`concurrent.futures` joins its threads when the interpreter ends, so one function that hangs would hang it; and its queue would let
calls of one tool wait behind another's that hang.
"""

import queue
import threading
from collections.abc import Callable


class Threads:
    """`submit` gives work to a thread that is free, the one used last, or to a new one."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._started = 0
        self._idle: list[queue.SimpleQueue[Callable[[], None] | None]] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, work: Callable[[], None]) -> bool:
        """False: every thread is busy, and there may be no more. `work` must not raise."""
        with self._lock:
            if self._closed:
                return False
            if self._idle:
                mine = self._idle.pop()
            elif self._started < self._most:
                self._started += 1
                mine = queue.SimpleQueue[Callable[[], None] | None]()
                threading.Thread(target=self._serve, args=(mine,), name=f"{self._name}-{self._started}", daemon=True).start()
            else:
                return False
        mine.put(work)
        return True

    def close(self) -> None:
        """Threads end with the work that they have. Nobody waits for them."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for mine in idle:
            mine.put(None)

    def _serve(self, mine: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
        while (work := mine.get()) is not None:
            work()
            del work  # it holds arguments and a result, which may be large
            with self._lock:
                if self._closed:
                    return
                self._idle.append(mine)
