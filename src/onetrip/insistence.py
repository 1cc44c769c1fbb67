"""An interrupt of a cell that is not forgotten: the program is woken until it has noticed, and killed when it goes on."""

import asyncio
from collections.abc import Callable
from typing import Final

from onetrip.tiers.base import Sandbox

WAKES: Final = 8  # within the time that a program has to end


class Insistence:
    """For one sandbox, whose cells run one after the other. `kill` is called for the one that goes on.

    A signal that comes as the program begins to wait, after the interpreter looked for signals and before the system call, is
    noticed when the call returns, which may take an hour. So the call is woken; a program that has noticed sees none of it.
    """

    def __init__(self, sandbox: Sandbox, kill: Callable[[], None]) -> None:
        self._sandbox, self._kill = sandbox, kill
        self._next: asyncio.TimerHandle | None = None

    def begin(self, grace_s: float) -> None:
        """Interrupt the cell now, and kill it in so many seconds unless `end` is called before."""
        self._sandbox.interrupt()
        self._wait(grace_s / WAKES, WAKES)

    def _wait(self, step_s: float, left: int) -> None:
        self._next = asyncio.get_running_loop().call_later(step_s, self._go_on, step_s, left - 1)

    def _go_on(self, step_s: float, left: int) -> None:
        if left == 0:
            self._kill()
            return
        self._sandbox.interrupt(again=True)
        self._wait(step_s, left)

    def end(self) -> None:
        """The cell has ended."""
        if self._next is not None:
            self._next.cancel()

    def may_be_late(self) -> bool:
        """Whether a cell was interrupted since the last time that this was asked: it may have ended before the signal was there."""
        was, self._next = self._next is not None, None
        return was
