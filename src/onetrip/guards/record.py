"""What failed programs have done: the next one gets it without doing it again.

**The rule.** A program that does not complete leaves a record of its calls that succeeded, and so do the ones after it, until one completes;
then all is forgotten. A call is known by its tool and its arguments in canonical JSON. The k-th time that a program makes a call, it gets
the k-th recorded success of that call; beyond those, calls are made. Within one program nothing is reused: whoever polls gets news.

- `write` is recorded for as long as the record lasts. A value that was dropped for space leaves a mark: the call is answered with
  `write_already_made`, never made again.
- A write whose end is not known (it timed out and is not `retryable`, was cancelled, or its program ended first) is *in doubt*: the first
  program that would make it again is told so (`write_in_doubt`), however often it tries; the ones after it make it, as their writer knows.
- `read` is recorded only if no write was under way at any moment of it, and forgotten as soon as a write is begun or has ended, whatever
  came of it; so what is reused is what the world was after the last write. It is also forgotten when it is older than `read_s`.
- `pure` is forgotten for space only.
- A success after a failure is the first success: a program that tried again until it worked gets the value at once when sent again.

**Its limits.** Two calls that are meant to be two, one in a failed program and one in the next, are taken for one: such a pair needs
arguments that differ (an order number), or a program that completes between them. The same write with other arguments is another write.
An ordinary failure (`error`) of a write counts as not made, which is what a tool says with it. What changes the world outside this session
is seen by `read_s` only. Undo takes back variables, not the world: it does not change the record.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from onetrip.model import Effect, ToolAnswer, ToolFailure

Key = bytes  # of a call: a digest of tool and arguments
_STRICTNESS: Final[Mapping[Effect, int]] = {"pure": 0, "read": 1, "write": 2}
IN_DOUBT: Final = frozenset({"cancelled", "abandoned"})  # codes of failures after which nobody knows


class Success:
    """One call that succeeded. `value` None: it was too much to keep."""

    __slots__ = ("at", "effect", "tool", "value")
    effect: Effect
    value: bytes | None

    def __init__(self, tool: str, effect: Effect, value: bytes | None, at: float) -> None:
        self.tool, self.effect, self.value, self.at = tool, effect, value, at


class Recorded(NamedTuple):
    """What is known of a call before it is made."""

    state: Literal["made", "dropped", "doubt"]
    value: bytes = b"null"


class Record:
    """Bounded by `max_bytes` of values; a mark for each write beyond takes about 200 bytes, and their number is that of the session's calls."""

    def __init__(self, *, max_bytes: int, read_s: float, clock: Callable[[], float]) -> None:
        self._max_bytes, self._read_s, self._clock = max_bytes, read_s, clock
        self._successes: dict[Key, list[Success]] = {}
        self._used: Counter[Key] = Counter()  # of these, by the present program: those that it reused, and those that it made
        self._doubts: set[Key] = set()
        self._told: set[Key] = set()  # of these, the present program
        self._open: dict[Key, list[tuple[int, Effect]]] = {}  # calls under way: the epoch in which each began
        self._new_doubts: set[Key] = set()  # of the present program, which may try again as it likes
        self._epoch = 0  # counts beginnings and ends of writes
        self._bytes = 0
        self._light: dict[Key, None] = {}  # calls that can be made again, oldest first
        self._reads: set[Key] = set()  # of these, what a write makes old
        self._heavy: deque[Success] = deque()  # writes with a value, oldest first
        self.dropped: Counter[str] = Counter()  # tool → values that were dropped for space

    def look_up(self, key: Key) -> Recorded | None:
        """What the present program gets instead of making this call. It is used up by that. None: make it, and say so (`begin`)."""
        successes = self._successes.get(key, ())
        if successes and successes[0].effect == "read" and self._clock() - successes[0].at > self._read_s:
            self._forget(key)  # all of them: what is left must still be counted from the first
            successes = ()
        if self._used[key] < len(successes):
            found = successes[self._used[key]]
            self._used[key] += 1
            return Recorded("dropped") if found.value is None else Recorded("made", found.value)
        if key in self._doubts:
            self._told.add(key)
            return Recorded("doubt")
        return None

    def begin(self, key: Key, effect: Effect) -> None:
        """The call is made."""
        if effect == "write":
            self._world_changes()
        self._open.setdefault(key, []).append((self._epoch, effect))

    def end(self, key: Key, tool: str, answer: ToolAnswer) -> None:
        """It was answered. An answer for a call that is not under way, such as a program's that has ended, changes nothing."""
        calls = self._open.get(key)
        if not calls:
            return
        undisturbed = all(epoch == self._epoch for epoch, _ in calls)
        _, effect = calls.pop()  # the latest: of several at once the earliest beginning counts for all that are left
        if not calls:
            del self._open[key]
        if effect == "write":
            self._world_changes()
        if answer.error is None:
            if effect != "read" or undisturbed:
                self._add(key, tool, effect, answer.value)
        elif effect == "write" and is_in_doubt(answer.error):
            self._new_doubts.add(key)

    def program_completed(self) -> None:
        self._successes.clear()
        self._light.clear()
        self._reads.clear()
        self._heavy.clear()
        self._bytes = 0
        self._doubts.clear()
        self._new_doubts.clear()
        self.dropped.clear()
        self._start_over()

    def program_failed(self) -> None:
        """The next program begins from the first success of each call. What is still under way is in doubt."""
        under_way = {key for key, calls in self._open.items() if any(effect == "write" for _, effect in calls)}
        if under_way:
            self._world_changes()
        self._doubts = (self._doubts - self._told) | self._new_doubts | under_way
        self._new_doubts.clear()
        self._start_over()

    def _start_over(self) -> None:
        self._used.clear()
        self._told.clear()
        self._open.clear()

    def writes(self) -> Counter[str]:
        """Tool → writes that succeeded since a program completed."""
        return Counter(one.tool for some in self._successes.values() for one in some if one.effect == "write")

    def _world_changes(self) -> None:
        self._epoch += 1
        for key in [*self._reads]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self._bytes -= sum(len(one.value or b"") for one in self._successes.pop(key))
        del self._light[key]
        self._reads.discard(key)
        self._used.pop(key, None)

    def _add(self, key: Key, tool: str, effect: Effect, value: bytes) -> None:
        large = len(value) > self._max_bytes // 4  # it alone is not to cost all the others
        if large:
            self.dropped[tool] += 1
        known = self._successes.get(key, [])
        before: Effect = known[0].effect if known else effect  # the tool may have been declared anew: the stricter of both holds
        strictest = effect if _STRICTNESS[effect] >= _STRICTNESS[before] else before
        if large and strictest != "write":
            if known:
                self._forget(key)  # or what comes after it would be counted as the k-th
            return
        success = Success(tool, strictest, None if large else value, self._clock())
        if known and known[0].effect != strictest:
            for one in known:
                one.effect = strictest
            self._reads.discard(key)
            if strictest == "write":
                del self._light[key]
                self._heavy.extend(known)
        self._successes.setdefault(key, known).append(success)
        self._used[key] += 1
        if strictest != "write":
            self._light.setdefault(key)
        elif success.value is not None:
            self._heavy.append(success)
        if strictest == "read":
            self._reads.add(key)
        self._bytes += len(success.value or b"")
        while self._bytes > self._max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Forget what can be made again, the oldest first; then drop values of writes."""
        if self._light:
            key = next(iter(self._light))
            self.dropped[self._successes[key][0].tool] += len(self._successes[key])
            self._forget(key)
            return
        oldest = self._heavy.popleft()
        self._bytes -= len(oldest.value or b"")
        oldest.value = None
        self.dropped[oldest.tool] += 1


def is_in_doubt(failure: ToolFailure) -> bool:
    """Whether a write that failed like this may have been made. A tool for which repeating is safe says `retryable`."""
    return failure.code in IN_DOUBT or (failure.type == "timeout" and not failure.retryable)
