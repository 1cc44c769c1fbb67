"""Signals: the program may be interrupted, our own code may not.

Outside of `Gate.run` every signal is blocked in this thread, so that neither an interrupt nor an alarm of the program's can
raise in the middle of an answer.  A signal that arrives meanwhile stays pending and reaches the program in its next cell; an
interrupt that was for the cell before is dropped (`Gate.drop_interrupt`).
"""

# The C functions themselves: the wrappers in `signal` build enum sets, which costs more than the system calls.
from _signal import default_int_handler, pthread_sigmask, set_wakeup_fd, signal  # type: ignore[import-not-found]  # no stubs
from collections.abc import Callable
from functools import partial
from operator import is_
from signal import SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_SETMASK, SIGCHLD, SIGINT, SIGKILL, SIGSTOP, SIGURG, valid_signals
from typing import Final, cast

from .own import OWN as __builtins__  # noqa: F401  # see own.py

# Faults that the processor raises must stay deliverable.
_FAULTS: Final = frozenset({4, 5, 7, 8, 11, 31})  # ILL TRAP BUS FPE SEGV SYS
_ALL: Final = tuple(sorted({int(s) for s in valid_signals()} - _FAULTS - {int(SIGKILL), int(SIGSTOP)}))
_INT, _BLOCK, _SET, _IGNORE = int(SIGINT), int(SIG_BLOCK), int(SIG_SETMASK), int(SIG_IGN)
_CHILD, _DEFAULT, _WAKE = int(SIGCHLD), int(SIG_DFL), int(SIGURG)


def block_all() -> set[int]:
    """Block every signal in this thread. Returns the mask as it was, for `restore`.

    May raise what a signal raises that came just before; then the mask is as it was.
    """
    mask = cast("set[int]", pthread_sigmask(_BLOCK, ()))
    try:
        pthread_sigmask(_BLOCK, _ALL)  # runs Python's handlers last, when all are blocked already
    except BaseException:
        pthread_sigmask(_SET, mask)
        raise
    return mask


# Block every signal in this thread, also when it raises what a signal raises that came just before. Not a function of Python's,
# which a signal could enter instead of.
block_again: Final = cast("Callable[[], object]", partial(pthread_sigmask, _BLOCK, _ALL))


def forget_zygote() -> None:
    """Undo what the process we were forked from does with its children's deaths."""
    set_wakeup_fd(-1)
    signal(_CHILD, _DEFAULT)


def be_wakeable() -> None:
    """Let SIGURG, by default ignored, end a system call and do nothing else.

    An interrupt that comes between the interpreter's last look and the call of, say, `sleep` is not seen until that returns.
    The host wakes the call; before Python begins it again it runs the handlers of all signals that have come (PEP 475).
    """
    signal(_WAKE, is_)  # any function in C that takes two objects: no frame of ours is in the program's way


def restore(mask: set[int]) -> None:
    """May raise at once what a signal that waited raises."""
    pthread_sigmask(_SET, mask)


class Gate:
    """Lets signals through while a cell runs."""

    def __init__(self) -> None:
        self._mask: set[int] = set()  # the program's own mask
        self.failure: BaseException | None = None

    def shut(self) -> None:
        """Block all signals; the program's mask is kept for its next cell."""
        self._mask = block_all()

    def drop_interrupt(self) -> None:
        """Precondition: `shut`. One that waits is discarded."""
        signal(_INT, _IGNORE)  # POSIX: discards what is pending (sigaction, "SIG_IGN")

    def run(self, action: Callable[[], object]) -> None:
        """Run the program's code. What it raised, interrupts included, is in `failure` afterwards.

        `failure` is an attribute and not the result, because a local of this frame would make a cycle with the traceback
        and keep everything the program's frames refer to alive.
        """
        self.failure = None
        finished = False
        try:
            try:
                signal(_INT, default_int_handler)
                restore(self._mask)
                action()
                finished = True
            except BaseException as error:  # noqa: BLE001  # whatever the program raises is a result
                if not finished:  # else an interrupt that came between the last line and here: too late
                    self.failure = error
            self.shut()
        except BaseException:  # noqa: BLE001  # an interrupt between the program's end and the mask: too late
            block_all()
