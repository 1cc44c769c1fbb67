"""Carries calls of tools over the channel while a cell runs: from any thread and any event loop, many at once.

There is no thread of ours, since a process with threads leaves no checkpoint. Answers are read by who waits: of several threads one reads
for all, and hands the reading over when it has its own answer; an event loop reads when it would otherwise sleep.

The program is *blocked* when nothing in it can go on but by an answer of the caller's: every event loop has nothing ready and no timer but
those that guard a wait, and every other thread waits without a limit, here or for another thread. Then the host is told (`Blocked`).
Where a thread waits is seen by its frame, or by the system call that it sleeps in; a daemon thread may look around from time to time.
"""

import sys
from _thread import _count as other_threads  # type: ignore[attr-defined]  # how many there are beside the main thread
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from posix import getpid
from typing import Any, Final

from .. import wire
from .channel import Channel
from .interrupts import block_again, block_all, restore
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .stillness import only_guards, others_wait

_modules: Final = sys.modules  # the program may rebind sys.modules
_LOOK_S: Final = 0.02  # between two looks at the other threads …
_REST_S: Final = 0.2  # … once the host was told

Outcome = tuple[bool, bytes]  # whether it failed, and the body of the answer
ENDED: Final[Outcome] = (True, b'{"message": "the cell ended before the answer came", "code": "cell_ended"}')


class NotHere(Exception):
    """No cell runs, or this is a child process."""


class _Waiter:
    __slots__ = ("future", "is_slow", "loop", "outcome", "wake")

    def __init__(self, *, is_slow: bool, loop: Any = None, future: Any = None) -> None:
        self.is_slow, self.loop, self.future = is_slow, loop, future
        self.outcome: Outcome | None = None
        self.wake: Any = allocate_lock() if future is None else None
        if future is None:
            self.wake.acquire()


class Calls:
    """`begin` and `end` around each cell; `wait` and `await_` in between. `is_slow`: the caller, not a server, answers the call."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pid = getpid()
        self._reading = allocate_lock()  # held by who reads, and between cells by nobody's leave
        self._reading.acquire()
        self._inbox: deque[bytes] = deque()
        self._waiters: dict[int, _Waiter] = {}
        self._loops: dict[Any, Any] = {}  # event loop → its own selector
        self._readers: set[Any] = set()  # those of them that read the channel
        self._running = False
        self._asked = self._answered = self._slow = self._threads = 0  # of the last: calls that threads wait for
        self._resuming: set[_Waiter] = set()  # answered, and not yet on their way
        self._told = (0, 0)

    def own(self) -> None:
        """In a process that goes on in place of the one that made this."""
        self._pid = getpid()

    def begin(self) -> None:
        """A cell begins."""
        self._asked = self._answered = self._slow = self._threads = 0
        self._resuming.clear()
        self._told = (0, 0)
        self._inbox.clear()
        self._running = True
        self._reading.release()

    def end(self) -> None:
        """The cell is over: who waits still hears that nothing will come. Signals are blocked."""
        if not self._running or getpid() != self._pid:
            return
        self._running = False
        self._reading.acquire()  # whoever reads stops within `_LOOK_S`
        for loop in list(self._loops):
            self._detach(loop)
        for number in list(self._waiters):
            self._settle(number, ENDED)

    def futures(self) -> list[Any]:
        """What the running event loop waits for."""
        loop = _modules["asyncio"].get_running_loop()
        return [waiter.future for waiter in self._waiters.copy().values() if waiter.loop is loop]

    # ------------------------------------------------------------------ calling

    def wait(self, tool: str, place: tuple[str, int], body: bytes, *, is_slow: bool) -> Outcome:
        """Call, and block this thread until the answer. Raises NotHere, ValueError (too large), and what interrupts."""
        waiter = _Waiter(is_slow=is_slow)
        mask = block_all()  # interrupts come where we sleep; elsewhere they would leave a lock taken, or a call that nobody knows
        try:
            number = self._send(waiter, tool, place, body)
            try:
                while waiter.outcome is None:
                    if self._reading.acquire(False):
                        try:
                            while waiter.outcome is None and self._running:
                                self._read(mask)
                        finally:
                            block_again()
                            self._reading.release()
                            self._hand_over()
                    else:
                        _let_in(mask, waiter.wake.acquire)  # until it is answered, or the reading is handed over
            except BaseException:
                block_again()
                self._drop(number, waiter)
                self._hand_over()  # it may have been handed to this thread
                raise
            self._resuming.discard(waiter)
            return waiter.outcome
        finally:
            restore(mask)

    async def await_(self, tool: str, place: tuple[str, int], body: bytes, *, is_slow: bool) -> Outcome:
        """The same in a task. Cancelling it drops the call."""
        loop = _modules["asyncio"].get_running_loop()
        self._attach(loop)
        waiter = _Waiter(is_slow=is_slow, loop=loop, future=loop.create_future())
        mask = block_all()
        try:
            number = self._send(waiter, tool, place, body)
        finally:
            restore(mask)
        try:
            outcome: Outcome = await waiter.future
        except BaseException:
            self._drop(number, waiter)
            raise
        self._resuming.discard(waiter)
        return outcome

    def _send(self, waiter: _Waiter, tool: str, place: tuple[str, int], body: bytes) -> int:
        """Signals are blocked: an interrupt between two packets would leave half a message."""
        if not self._running:
            raise NotHere
        with self._channel.sending:
            run = self._channel.run()
            if run is None:
                raise NotHere
            number = self._asked + 1
            packets = list(wire.packets(wire.ToolCall(run, number, tool, place[0], place[1], (body,))))
            self._asked = number
            self._waiters[number] = waiter
            self._slow += waiter.is_slow
            self._threads += waiter.future is None
            self._channel.put(packets)
        return number

    def _drop(self, number: int, waiter: _Waiter) -> None:
        """The program does not wait for it any more."""
        mask = block_all()
        try:
            self._resuming.discard(waiter)
            if self._waiters.pop(number, None) is None:
                return  # it was answered, and nobody is there to see it
            self._slow -= waiter.is_slow
            self._threads -= waiter.future is None
            self._told = (0, 0)  # the host hears that the program moves: that it is blocked again is news
            with self._channel.sending:
                if (run := self._channel.run()) is not None and self._running:
                    self._channel.put(list(wire.packets(wire.ToolDrop(run, number))))
        finally:
            restore(mask)

    # ------------------------------------------------------------------ reading

    def _read(self, mask: set[int]) -> None:
        """Wait for packets, with the program's own mask of signals, and pass on what they bring. The caller holds `_reading`."""
        if not self._inbox:
            if other_threads() == 0:
                self._tell_if_blocked()
                _let_in(mask, self._channel.pull, self._inbox)
            else:
                if self._slow and self._others_wait():
                    self._tell_if_blocked()
                is_told = self._slow and (self._asked, self._answered) == self._told
                _let_in(mask, self._channel.pull, self._inbox, wait_s=_REST_S if is_told else _LOOK_S)
        self._pass_on()

    def _pass_on(self) -> None:
        """Signals are blocked: a packet that was taken must not be lost."""
        while self._inbox:
            message = self._channel.complete(self._inbox.popleft())
            if isinstance(message, wire.ToolResult):
                self._answered += 1
                self._settle(message.number, (message.failed, message.parts[0]))

    def _settle(self, number: int, outcome: Outcome) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is None:
            return
        self._slow -= waiter.is_slow
        self._threads -= waiter.future is None
        self._resuming.add(waiter)
        waiter.outcome = outcome
        if waiter.future is None:
            _release(waiter.wake)
        elif _modules["asyncio"]._get_running_loop() is waiter.loop:
            _fulfil(waiter.future, outcome)
        else:
            try:
                waiter.loop.call_soon_threadsafe(_fulfil, waiter.future, outcome)
            except RuntimeError:  # it is closed
                self._resuming.discard(waiter)

    def _hand_over(self) -> None:
        for waiter in list(self._waiters.values()) if self._threads else ():
            if waiter.future is None:
                _release(waiter.wake)
                return

    # ------------------------------------------------------------------ event loops

    def watch(self, loop: Any) -> None:
        """Hear when this loop is about to sleep, also if calls are made in threads alone while it waits for them."""
        if self._running and loop not in self._loops and hasattr(loop, "_selector"):
            self._loops[loop] = loop._selector
            loop._selector = _Selector(loop._selector, loop, self)

    def _attach(self, loop: Any) -> None:
        self.watch(loop)
        if loop in self._loops and loop not in self._readers:
            self._readers.add(loop)
            loop.add_reader(self._channel.fd, self._readable)

    def _detach(self, loop: Any) -> None:
        selector = self._loops.pop(loop)
        if not loop.is_closed():
            if loop in self._readers:
                loop.remove_reader(self._channel.fd)
            loop._selector = selector
        self._readers.discard(loop)

    def _readable(self) -> None:
        """Called by an event loop."""
        mask = block_all()
        try:
            if self._reading.acquire(False):  # else a thread is about to read
                try:
                    if self._running:
                        self._channel.pull(self._inbox, wait_s=0.0)
                        self._pass_on()
                finally:
                    self._reading.release()
                    self._hand_over()
        finally:
            restore(mask)

    def idles(self, loop: Any) -> float | None:
        """An event loop is about to sleep. Returns after how many seconds it is to look again; None: not at all."""
        if not self._slow or not self._running or not only_guards(loop):
            return None
        if other_threads() and not self._others_wait():
            return _LOOK_S
        self._tell_if_blocked()
        return None

    # ------------------------------------------------------------------ being blocked

    def _tell_if_blocked(self) -> None:
        state = (self._asked, self._answered)
        if not self._slow or self._resuming or state == self._told or self._inbox:
            return
        mask = block_all()
        try:
            with self._channel.sending:
                run = self._channel.run()
                if run is not None and state == (self._asked, self._answered):
                    self._told = state
                    self._channel.put(list(wire.packets(wire.Blocked(run, *state))))
        finally:
            restore(mask)

    def _others_wait(self) -> bool:
        return others_wait(_OURS, _SELECT)


class _Selector:
    """Around the selector of an event loop: hears when the loop is about to sleep."""

    def __init__(self, inner: Any, loop: Any, calls: Calls) -> None:
        self._inner, self._loop, self._calls = inner, loop, calls

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return self._inner.select(timeout)
        again = self._calls.idles(self._loop)
        return self._inner.select(timeout if again is None else again if timeout is None else min(timeout, again))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _let_in(mask: set[int], sleep: Callable[..., object], *args: Any, **options: Any) -> None:
    """Sleep with this mask of signals; afterwards all are blocked, also when one of them raises."""
    try:
        restore(mask)
        sleep(*args, **options)
    finally:
        block_again()


def _fulfil(future: Any, outcome: Outcome) -> None:
    return None if future.done() else future.set_result(outcome)


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:  # it was told already
        return


_OURS: Final = frozenset({Calls.wait.__code__, Channel.pull.__code__})
_SELECT: Final = _Selector.select.__code__
