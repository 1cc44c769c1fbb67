"""The guard of one session: asked before each call of a tool, told its answer, and told how each program ended."""

import copy
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from onetrip.guards.circuits import Circuits
from onetrip.guards.failures import MAX_READ_BYTES, Failure, Known, failure_of, hint
from onetrip.guards.record import Key, Record
from onetrip.model import ProgramError, Status, Tool, ToolAnswer, ToolCall, ToolFailure
from onetrip.texts import shown

MAX_TOOLS: Final = 1000  # whose declarations are kept for hints
MAX_RESULTS: Final = 32  # tools whose last result is kept for hints
MAX_FINGERPRINTS: Final = 256
MAX_NOTE: Final = 600  # characters
_NAMED: Final = 8  # tools in one note


class GuardLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a session may do before it is told to stop. Calls of one program are `Limits.tool_calls`."""

    session_calls: int = 10_000  # made, of all programs; a result that is reused is no call
    failed_in_a_row: int = 10  # programs, whatever their failures: then it is a loop
    same_failure: int = 3  # the time at which it is a loop
    circuit_after: int = 3  # failures of one kind of one call
    circuit_s: float = 60.0  # until a call that may succeed later is tried again
    read_s: float = 600.0  # for which the result of a read is reused
    record_bytes: int = 4 << 20  # of results for the program after a failed one


class Instead(msgspec.Struct, frozen=True):
    """What a call is answered with, without being made: a recorded value (`reused`), or a failure."""

    value: bytes = b"null"
    error: ToolFailure | None = None

    @property
    def reused(self) -> bool:
        return self.error is None


class Verdict(msgspec.Struct, frozen=True):
    """What to say with a result. `loop`: the same again and again, `code` says in which way; more programs will not help."""

    notes: tuple[str, ...] = ()
    loop: bool = False
    code: str | None = None  # "loop_detected"


class Guard:
    """Of one session, used from one event loop.

    The order is: `know` the tools; for each call `before`, and `after` if that gave None and the call was made; when the program has ended and
    no answer comes any more, `program_ended`. A call without an `after` by then counts as one whose end is not known. See `record` for what
    is reused and when.
    """

    def __init__(self, limits: GuardLimits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits = limits or GuardLimits()
        self._clock = clock
        self._record = Record(max_bytes=limits.record_bytes, read_s=limits.read_s, clock=clock)
        self._circuits = Circuits(after=limits.circuit_after, close_s=limits.circuit_s, clock=clock)
        self._tools: OrderedDict[str, Tool] = OrderedDict()
        self._results: OrderedDict[str, bytes] = OrderedDict()
        self._failures: OrderedDict[tuple[str, str | None, str], int] = OrderedDict()
        self._failed = 0  # programs in a row
        self._calls = 0

    @property
    def calls_left(self) -> int:
        return max(0, self._limits.session_calls - self._calls)

    def know(self, tools: Iterable[Tool]) -> None:
        """The tools that programs of this session have, for hints."""
        for tool in tools:
            self._tools[tool.name] = tool
            self._tools.move_to_end(tool.name)
        while len(self._tools) > MAX_TOOLS:
            self._tools.popitem(last=False)

    def before(self, tool: Tool, arguments: bytes) -> Instead | None:
        """What a call (arguments in canonical JSON) is answered with. None: make it, and give its answer to `after`."""
        if tool.name not in self._tools:
            self.know((tool,))
        key = _key(tool, arguments)
        recorded = self._record.look_up(key)
        if recorded is not None:
            match recorded.state:
                case "made":
                    return Instead(recorded.value)
                case "dropped":
                    return _refused(
                        "write_already_made",
                        f"{tool.name} was made with these arguments by an earlier program that failed, and is not made again. Its "
                        "result was too large to be kept: read what you need of it with another call.",
                    )
                case "doubt":
                    return _refused(
                        "write_in_doubt",
                        f"{tool.name} was called with these arguments by an earlier program that failed, and whether it took effect is not "
                        "known. Make sure with a call that reads; a program after this one may make it again.",
                    )
        failure = self._circuits.look_up(key, tool)
        if failure is not None:
            return Instead(error=failure)
        if self._calls >= self._limits.session_calls:
            return _refused("session_calls", f"this session has made all of its {self._limits.session_calls:,} calls of tools")
        self._calls += 1
        self._record.begin(key, tool.effect)
        return None

    def after(self, tool: Tool, arguments: bytes, answer: ToolAnswer) -> None:
        """How a call that was made was answered."""
        key = _key(tool, arguments)
        self._record.end(key, tool.name, answer)
        if answer.error is not None:
            self._circuits.failed(key, tool, answer.error)
            return
        self._circuits.succeeded(key, tool)
        if len(answer.value) <= MAX_READ_BYTES:
            self._results[tool.name] = answer.value
            self._results.move_to_end(tool.name)
            if len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)

    def program_ended(self, status: Status, error: ProgramError | None, source: str, ledger: Sequence[ToolCall]) -> Verdict:
        """How a program ended: what to say about it, and whether it goes round. A program that is `waiting` has not ended."""
        if status == "waiting":
            return Verdict()
        if status == "completed":
            self._record.program_completed()
            self._failures.clear()
            self._failed = 0
            few = self.calls_left <= self._limits.session_calls // 10
            return Verdict(_cut([self._budget()] if few and ledger else []))
        notes, loop = list[str](), False
        if status in ("failed", "limit_exceeded"):  # an interrupt, or the loss of a sandbox, is not the program's fault
            said, loop = self._judge(failure_of(error or ProgramError(status, ""), source, ledger))
            notes += said
        notes += self._what_was_done(ledger)
        self._record.program_failed()
        return Verdict(_cut(notes), loop, "loop_detected" if loop else None)

    def branch(self) -> "Guard":
        """For a branch of the session: what was done before it, it shall not do again either. Between two programs only."""
        return copy.deepcopy(self, {id(self._clock): self._clock})

    def _judge(self, failure: Failure) -> tuple[list[str], bool]:
        fingerprint = failure.fingerprint()
        times = self._failures[fingerprint] = self._failures.get(fingerprint, 0) + 1
        self._failures.move_to_end(fingerprint)
        if len(self._failures) > MAX_FINGERPRINTS:
            self._failures.popitem(last=False)
        self._failed += 1
        advice = hint(failure, Known(self._tools, self._results))
        if times >= self._limits.same_failure:
            instead = f"say what is missing, or go on with what there is.{f' {advice}' if advice else ''}"
            return [f"loop_detected: {failure}, {times} times. Do not send another program with this line: {instead}"], True
        if self._failed >= self._limits.failed_in_a_row:
            return [
                f"loop_detected: {self._failed} programs in a row failed, the last with {failure}. Stop, and say what is missing."
            ], True
        notes: list[str] = []
        if times > 1:
            notes.append(
                f"The same failure again ({failure}): do not send this line again. "
                f"{advice or 'Look first: print the values that it uses, in a program of their own.'}"
            )
        elif advice:
            notes.append(advice)
        if self._failed >= 3:
            notes.append(f"{self._failed} programs in a row failed: take a smaller step, and look at what comes of it.")
        return notes, False

    def _what_was_done(self, ledger: Sequence[ToolCall]) -> list[str]:
        notes: list[str] = []
        made = self._record.writes()
        if made:
            notes.append(
                f"Already made, and not made again if the program is sent again (it gets their results): {_counted(made)}."
            )
        doubtful = Counter(
            call.tool
            for call in ledger
            if call.status in ("timeout", "cancelled", "pending") and self._effect(call.tool) == "write"
        )
        if doubtful:
            notes.append(f"Whether they took effect is not known: {_counted(doubtful)}. Make sure before you call them again.")
        if self._record.dropped:
            notes.append(f"Results too large to be kept for the next program: {_counted(self._record.dropped)}.")
        if ledger:
            notes.append(self._budget())
        return notes

    def _effect(self, name: str) -> str:
        tool = self._tools.get(name)
        return tool.effect if tool is not None else "write"

    def _budget(self) -> str:
        return f"Calls of tools left in this session: {self.calls_left:,}."


def _key(tool: Tool, arguments: bytes) -> Key:
    return hashlib.blake2b(tool.name.encode() + b"\0" + arguments, digest_size=16).digest()


def _refused(code: str, message: str) -> Instead:
    return Instead(error=ToolFailure(message, code=code))


def _counted(tools: Counter[str]) -> str:
    listed = ", ".join(f"{shown(name)} ×{count}" if count > 1 else shown(name) for name, count in tools.most_common(_NAMED))
    return f"{listed} and {len(tools) - _NAMED} more tools" if len(tools) > _NAMED else listed


def _cut(notes: list[str]) -> tuple[str, ...]:
    return tuple(shown(note, MAX_NOTE) for note in notes)
