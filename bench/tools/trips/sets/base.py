"""What the tool sets have in common: how a method becomes a tool, and numbers that look random and are the same everywhere."""

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

EFFECT = "__effect__"
F = TypeVar("F", bound=Callable[..., Any])


def effect(kind: str) -> Callable[[F], F]:
    """Mark a method as a tool. `kind`: what a call changes: `pure` (nothing, always the same), `read` (nothing) or `write`."""

    def mark(function: F) -> F:
        setattr(function, EFFECT, kind)
        return function

    return mark


class ToolSet:
    """One set with data of its own: each run of a program gets a new one, so that what one run writes no other sees."""

    NAMESPACE: ClassVar[str]

    @classmethod
    def names(cls) -> list[str]:
        return [name for name, member in vars(cls).items() if hasattr(member, EFFECT)]

    def tools(self) -> dict[str, Callable[..., Any]]:
        """Name in a program → function."""
        return {f"{self.NAMESPACE}.{name}": getattr(self, name) for name in self.names()}


class NotFoundError(LookupError):
    """There is nothing of that name; the message says what was asked for."""


def roll(below: int, *key: object) -> int:
    """A number from 0 to `below` - 1 that only depends on the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:6], "big") % below
