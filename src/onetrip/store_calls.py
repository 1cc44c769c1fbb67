"""Rows of the database about calls of server tools that change something: begun, and what they gave. They outlive the server that made them."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

PRUNE_ROWS: Final = 500  # in one transaction
Rows = Callable[[str, tuple[object, ...] | Mapping[str, object]], list[Any]]
Change = Callable[[str, tuple[object, ...]], int]


class CallRows:
    """Of a `Store`, whose connections it uses. Everything raises Unavailable for a disk that takes nothing more."""

    def __init__(self, rows: Rows, change: Change, clock: Callable[[], float]) -> None:
        self._rows, self._change, self._clock = rows, change, clock

    def begin(self, run_id: str, call_id: str) -> Literal["new", "begun"] | bytes:
        """Enter a call that is about to be made. "begun": it was entered before, and nobody knows what came of it; bytes: its answer."""
        insert = "INSERT INTO tool_calls (run, call, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        if self._change(insert, (run_id, call_id, self._clock())) == 1:
            return "new"
        for (answer,) in self._rows("SELECT answer FROM tool_calls WHERE run = ? AND call = ?", (run_id, call_id)):
            return "begun" if answer is None else answer
        return "new"  # pruned in between

    def end(self, run_id: str, call_id: str, answer: bytes) -> None:
        """What it gave."""
        self._change("UPDATE tool_calls SET answer = ? WHERE run = ? AND call = ?", (answer, run_id, call_id))

    def prune(self, before: float) -> int:
        """Forget calls that were made before then, `PRUNE_ROWS` at most; how many."""
        query = "DELETE FROM tool_calls WHERE (run, call) IN (SELECT run, call FROM tool_calls WHERE at < ? LIMIT ?)"
        return self._change(query, (before, PRUNE_ROWS))
