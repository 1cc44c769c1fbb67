"""What a task is: a question, what is right, and two programs that find it out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Task:
    """`sequential` makes one call after another, `gathered` all that it can at once; both end with the answer as an expression.

    `waits`: tool → why a call of it comes later than its arguments alone would allow, such as a condition. What is not named here
    waits for nothing but its arguments.
    """

    name: str
    question: str
    expected: Any
    sequential: str
    gathered: str
    waits: Mapping[str, str] = field(default_factory=dict[str, str])
    space: str = ""  # the namespace of its tool set

    def right(self, answer: Any) -> bool:
        """Whether an answer is the expected one. Numbers may differ in the ninth digit; the order of a list counts."""
        return _same(self.expected, answer)


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, dict | list):
        if type(got) is not type(cast("object", wanted)):
            return False
        one, other = _parts(wanted), _parts(got)
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(wanted, bool) or isinstance(got, bool) or not isinstance(wanted, int | float):
        return type(wanted) is type(got) and wanted == got
    return isinstance(got, int | float) and math.isclose(wanted, got, rel_tol=1e-9, abs_tol=1e-9)


def _parts(value: Any) -> dict[Any, Any]:
    """What is in a dictionary, or in a list by its place."""
    return dict(cast("dict[Any, Any]", value) if isinstance(value, dict) else enumerate(cast("list[Any]", value)))
