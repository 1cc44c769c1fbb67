"""How far the bench is: one line on stderr, rewritten on a terminal, and nothing that could disturb what is measured."""

import sys
from types import TracebackType
from typing import Self


class Progress:
    """Draws only when it is told to, from the same thread: a spinner's thread would be measured too."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def say(self, what: str) -> None:
        if self._live:
            print(f"\r\x1b[K{what} …", end="", file=sys.stderr, flush=True)
        elif what != self._last:
            print(f"{what} …", file=sys.stderr, flush=True)
        self._last = what

    def step(self, what: str, at: int, of: int) -> None:
        self.say(f"{what}, {at + 1} of {of}" if self._live else what)
