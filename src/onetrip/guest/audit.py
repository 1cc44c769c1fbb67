"""Listens to the interpreter's audit events: is another program about to write, and were files opened for writing?

An audit hook is the only way to see every door out of the interpreter (`subprocess`, `os.system`, `os.exec*`, `os.posix_spawn`)
without replacing functions that programs compare, patch or pickle. It cannot be removed again, so there is one, and it does little.
"""

from collections.abc import Callable
from os import O_ACCMODE
from sys import addaudithook
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_OTHERS_WRITE: Final = frozenset({"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.spawn", "pty.spawn"})


class Listener:
    """`wrote` becomes True when the program opens a file for writing."""

    def __init__(self, before_others_write: Callable[[], None]) -> None:
        self.wrote = False
        self._before_others_write = before_others_write

    def listen(self) -> None:
        others, act = _OTHERS_WRITE, self._before_others_write

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                if args[2] & O_ACCMODE:
                    self.wrote = True
            elif event in others:
                act()

        addaudithook(hook)
