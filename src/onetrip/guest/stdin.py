"""What is left of interactive Python: `input()`, which has nobody to ask, and the names that `site` adds."""

import builtins
import site
import sys
from typing import Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_input: Final = builtins.input
_MESSAGE: Final = (
    "input() has nobody to ask: a cell runs without a terminal and its standard input is empty. "
    "Pass values with `inputs=`, which makes them variables, or write them into the code."
)


def read_line(prompt: object = "", /) -> str:
    """Read a line from what the program put in place of sys.stdin; otherwise raise EOFError, as there is nothing to read."""
    try:
        return _input(prompt)
    except EOFError:
        if sys.stdin is not sys.__stdin__:
            raise
    raise EOFError(_MESSAGE)


read_line.__name__ = read_line.__qualname__ = "input"
read_line.__module__ = "builtins"


def add_site_builtins() -> None:
    """`exit`, `quit`, `help` and the like: the interpreter was started without `site`, programs expect them."""
    if not hasattr(builtins, "exit"):
        site.setquit()
        site.setcopyright()
        site.sethelper()
