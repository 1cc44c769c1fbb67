"""Listens to the interpreter's audit events: is another program about to write, were files opened for writing, or mapped?

An audit hook is the only way to see every door out of the interpreter (`subprocess`, `os.system`, `os.exec*`, `os.posix_spawn`)
without replacing functions that programs compare, patch or pickle. It cannot be removed again, so there is one, and it does little.
"""

from collections.abc import Callable
from os import O_ACCMODE, readlink, utime
from sys import addaudithook
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_OTHERS_WRITE: Final = frozenset({"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.spawn", "pty.spawn"})


_ACCESS_READ, _ACCESS_COPY = 1, 3  # mmapmodule.c: these stores do not reach the file


class Listener:
    """`wrote` becomes True when the program opens a file for writing."""

    def __init__(self, before_others_write: Callable[[], None]) -> None:
        self.wrote = False
        self._mapped: set[str] = set()
        self._before_others_write = before_others_write

    def listen(self) -> None:
        others, act = _OTHERS_WRITE, self._before_others_write

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                if args[2] & O_ACCMODE:
                    self.wrote = True
            elif event == "mmap.__new__":
                if args[0] >= 0 and args[2] not in (_ACCESS_READ, _ACCESS_COPY):
                    self._note(args[0])
            elif event in others:
                act()

        addaudithook(hook)

    def _note(self, fd: int) -> None:
        try:
            self._mapped.add(readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            return  # no such descriptor, which mmap says itself

    def touch_mapped(self) -> None:
        """Let the times of files that were mapped since the last call say that they may have changed.

        mmap(2) promises as much of a store, but a tmpfs keeps it only for a page that was not read before. By these times the host
        knows what a cell changed.
        """
        while self._mapped:
            try:
                utime(self._mapped.pop())
            except OSError:
                continue  # it is gone, or read-only
