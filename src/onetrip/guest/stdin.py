"""What is left of interactive Python: standard input, where nobody answers, and the names that `site` adds.

Reading fails, and says why: a program that took silence for an empty input would go on with nothing.
"""

import builtins
import site
from io import BufferedReader, FileIO, TextIOWrapper
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_input: Final = builtins.input
_READING: Final = (
    "there is nobody to ask: a cell runs without a terminal and without standard input. "
    "Pass values with `inputs=`, which makes them variables, or write them into the code."
)


class _Nobody(FileIO):
    """Descriptor 0, which is /dev/null for the programs that this one starts, and cannot be read by this one."""

    __module__ = "io"

    def readinto(self, _buffer: Any, /) -> int:
        raise EOFError(_READING)

    def readall(self) -> bytes:
        raise EOFError(_READING)

    def read(self, _size: int | None = -1, /) -> bytes:
        raise EOFError(_READING)


def open_stream() -> TextIOWrapper:
    """A new `sys.stdin`."""
    raw = _Nobody(0, "r", closefd=False)
    raw.name = "<stdin>"
    stream = TextIOWrapper(BufferedReader(raw, 512), encoding="utf-8", errors="surrogateescape")
    stream.mode = "r"  # type: ignore[attr-defined]
    return stream


def read_line(prompt: object = "", /) -> str:
    """Read a line from what the program put in place of sys.stdin; otherwise raise EOFError, as there is nothing to read."""
    return _input(prompt)


read_line.__name__ = read_line.__qualname__ = "input"
read_line.__module__ = "builtins"


def add_site_builtins() -> None:
    """`exit`, `quit`, `help` and the like: the interpreter was started without `site`, programs expect them."""
    if not hasattr(builtins, "exit"):
        site.setquit()
        site.setcopyright()
        site.sethelper()
