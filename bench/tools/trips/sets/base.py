"""What the tool sets have in common: which of their methods are tools, and numbers that look random and are the same everywhere."""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from onetrip.tools import ToolFailed


class ToolSet:
    """One set with data of its own: each run of a program gets a new one, so that what one run writes no other sees.

    Its public methods are its tools, marked with `onetrip.tool`, and named with its namespace in front.
    """

    NAMESPACE: ClassVar[str]

    @property
    def state(self) -> object:
        """What was written; to be compared."""
        raise NotImplementedError

    def tools(self) -> dict[str, Callable[..., Any]]:
        """Name in a program → function."""
        names = [name for name, member in vars(type(self)).items() if inspect.isfunction(member) and not name.startswith("_")]
        return {f"{self.NAMESPACE}.{name}": getattr(self, name) for name in names}


class NotFoundError(ToolFailed):
    """There is nothing of that name; the message says what was asked for."""


def roll(below: int, *key: object) -> int:
    """A number from 0 to `below` - 1 that only depends on the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:6], "big") % below
