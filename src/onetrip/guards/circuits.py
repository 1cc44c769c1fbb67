"""Circuits: the same call that fails the same way again and again is answered at once, without being made.

A circuit belongs to one call (tool and arguments) and opens at the third failure of one kind: same type and code, same message but for numbers
and spaces. A success of that very call closes it, one with other arguments does not. An open one lets a single call through

- after `close_s`, if the failure is `retryable`;
- after another tool has written something, which may have removed the cause (the file is there now); at most three times, or a program
  that writes a log and calls in vain would go on for ever.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from onetrip.guards.record import Key
from onetrip.model import Tool, ToolFailure
from onetrip.texts import shown

MAX_CIRCUITS: Final = 1000  # calls of a session whose failures are counted; the ones that failed longest ago are forgotten first
MAX_WAYS: Final = 8  # in which one call fails
MAX_PROBES: Final = 3  # calls let through because something was written
_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|[0-9]+", re.IGNORECASE)
_SPACES: Final = re.compile(r"\s+")


def normalised(message: str) -> str:
    """A message without what differs from one time to the next: numbers, addresses, digests, spaces."""
    return _SPACES.sub(" ", _NUMBERS.sub("#", message[:500])).strip().casefold()


class _Circuit:
    def __init__(self) -> None:
        self.ways: Counter[tuple[str, str | None, str]] = Counter()
        self.failure: ToolFailure | None = None  # why it is open
        self.times = 0
        self.since = 0.0
        self.written = 0  # by other tools, when it opened
        self.probes = 0


class Circuits:
    def __init__(self, *, after: int, close_s: float, clock: Callable[[], float]) -> None:
        self._after, self._close_s, self._clock = after, close_s, clock
        self._circuits: OrderedDict[Key, _Circuit] = OrderedDict()
        self._written: Counter[str] = Counter()  # tool → writes that succeeded

    def look_up(self, key: Key, tool: Tool) -> ToolFailure | None:
        """The answer, if the circuit of this call is open."""
        circuit = self._circuits.get(key)
        if circuit is None or circuit.failure is None:
            return None
        left = circuit.since + self._close_s - self._clock()
        if circuit.failure.retryable and left <= 0:
            circuit.since = self._clock()  # one goes through: the next only after as long again
            return None
        written = self._written_by_others(tool.name)
        if written > circuit.written and circuit.probes < MAX_PROBES:
            circuit.written, circuit.probes = written, circuit.probes + 1
            return None
        then = (
            f"It is tried again in {left:.0f} s." if circuit.failure.retryable else "Change the arguments, or go on without it."
        )
        return ToolFailure(
            f"{tool.name} has failed {circuit.times} times in the same way with these arguments "
            f"({circuit.failure.type}: {shown(circuit.failure.message, 200)}), so it was not called again. {then}",
            retryable=circuit.failure.retryable,
            code="circuit_open",
        )

    def failed(self, key: Key, tool: Tool, failure: ToolFailure) -> None:
        circuit = self._circuits.setdefault(key, _Circuit())
        self._circuits.move_to_end(key)
        if len(self._circuits) > MAX_CIRCUITS:
            self._circuits.popitem(last=False)
        way = (failure.type, failure.code, normalised(failure.message))
        if way not in circuit.ways and len(circuit.ways) >= MAX_WAYS:
            circuit.ways.popitem()
        circuit.ways[way] += 1
        circuit.failure = None
        if circuit.ways[way] >= self._after:
            circuit.failure, circuit.times, circuit.since = failure, circuit.ways[way], self._clock()
            circuit.written = self._written_by_others(tool.name)

    def succeeded(self, key: Key, tool: Tool) -> None:
        self._circuits.pop(key, None)
        if tool.effect == "write":
            self._written[tool.name] += 1

    def _written_by_others(self, tool: str) -> int:
        return self._written.total() - self._written[tool]
