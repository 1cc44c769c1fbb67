"""A simulated model: how long it takes and what it reads, of an exchange whose every word is known beforehand. Nobody is asked."""

import json
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Assumptions:
    """How fast the simulated model and the tools are. The defaults are of the order of hosted models and services."""

    latency_s: float = 1.5  # from the request to the first token, however long the conversation is
    token_s: float = 0.0125  # for each token that is written: 80 a second
    bytes_per_token: float = 4.0
    tool_s: float = 0.1  # each call of a tool


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way to do a task needs; or several tasks together."""

    inferences: int = 0
    calls: int = 0
    new_bytes: int = 0  # everything that was read or written, counted once
    read_bytes: int = 0  # what all inferences read: each the whole conversation up to it
    written_bytes: int = 0  # what the model wrote
    model_s: float = 0.0
    tools_s: float = 0.0  # while the model waited for tools, or for the program

    @property
    def time_s(self) -> float:
        return self.model_s + self.tools_s

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Conversation:
    """Counts what a model reads and writes, in bytes of UTF-8. `spans`: how long model and tools took in turn, in seconds."""

    def __init__(self, prompt: str, assumptions: Assumptions) -> None:
        self._assumptions = assumptions
        self._unread, self._context = len(prompt.encode()), 0
        self.cost = Cost()
        self.spans: list[float] = []

    def infer(self, written: str) -> None:
        """One inference: it reads the conversation with what was said since the last one, and writes."""
        said = len(written.encode())
        self._context += self._unread
        model_s = self._assumptions.latency_s + said / self._assumptions.bytes_per_token * self._assumptions.token_s
        self.cost += Cost(1, 0, self._unread + said, self._context, said, model_s)
        self.spans.append(model_s)
        self._context += said
        self._unread = 0

    def told(self, text: str, *, calls: int, tools_s: float) -> None:
        """What comes back from outside, after so many seconds; the next inference reads it."""
        self._unread += len(text.encode())
        self.cost += Cost(calls=calls, tools_s=tools_s)
        self.spans.append(tools_s)


def compact(value: Any) -> str:
    """JSON as it is sent: without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
