"""The tool calls of one run as the host sees them: checked, named, counted, answered, and waited for.

Theory of operation
-------------------
The program says what it calls (`wire.ToolCall`), which task of it does, and when all of it waits (`wire.Blocked`). Names, arguments and sizes
are checked here. A call is known by a hash of run, task, place in the task, tool and arguments, so by the same id in whatever order calls
arrive. A *server call* is answered by `ask`, at once and beside all others. A *client call*, and one that needs approval, is `pending`
until `answer` is called. When nothing but pending calls keeps a program that says it waits, the run is `waiting`: whoever asked for it gets a
result with all of them, and answers some or all in any order. The program waits inside of its call, so there is nothing it could catch.

Whether it waits is the program's word. A lie stops its wall clock and nothing else: CPU, memory and the lease hold on. All that a
program says may be a lie, so nothing here grows, or takes longer, with what it says but for the bounds below.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import msgspec

from onetrip import model, wire
from onetrip.bindings import Binding
from onetrip.errors import BadRequest, Conflict
from onetrip.model import PendingCall, Tool, ToolAnswer, ToolCall, ToolFailure, ToolRequest
from onetrip.seam import Ask, Prompt
from onetrip.texts import shown

MAX_ARGUMENT_BYTES: Final = 1 << 20  # of one call
MAX_OPEN_BYTES: Final = 8 << 20  # of the arguments of all calls that are open; as objects they may be twenty times that
MAX_DEPTH: Final = 200  # of arguments: whoever encodes a result has less stack than we may have here
MAX_VALUE_BYTES: Final = 32 << 20
MAX_MESSAGE: Final = 20_000  # characters of a failure's
LEDGER_CALLS: Final = 10_000  # that a result tells one by one
LEDGER_BYTES: Final = 4096  # of the arguments that it repeats
LEDGER_TOTAL_BYTES: Final = 4 << 20
PREVIEW_CHARS: Final = 200
CANCEL_S: Final = 1.0  # for a tool to notice that it is cancelled; then it is left to itself
EVENT_BYTES: Final = 512  # what an event costs beside its content
_encoder: Final = msgspec.json.Encoder(order="sorted")
_failed: Final = msgspec.json.Encoder()
_STATUS: Final[Mapping[str, Any]] = {"error": "error", "arguments": "error", "denied": "denied", "timeout": "timeout"}


class _Call:
    __slots__ = (
        "arguments",
        "began",
        "id",
        "is_made",
        "kind",
        "number",
        "preview",
        "raw",
        "reused",
        "status",
        "task",
        "took",
        "tool",
    )

    def __init__(self, number: int, tool: Tool, arguments: Any, raw: bytes, began: float) -> None:
        self.number, self.tool, self.arguments, self.raw, self.began = number, tool, arguments, raw, began
        self.id = ""
        self.kind: str | None = None  # what is waited for: "call" or "approval"; None: a server call, or answered
        self.status = "pending"
        self.took = 0.0
        self.preview: str | None = None
        self.reused = False
        self.is_made = False  # so that its answer is one of the tool's
        self.task: asyncio.Future[Any] | None = None


class Calls:
    """The calls of one run. `send` carries an answer to the guest, `tell` an event to the caller.

    `send` says whether it took the answer: a value it may refuse, because too many wait for the guest to read them. `over_limit` is called
    when there are more than `limit`, once; `on_waiting` when the run begins or ceases to wait. `aclose` in any case.
    """

    def __init__(
        self, run_id: str, session_id: str | None, binding: Binding, limit: int, *, send: Callable[[int, bool, bytes], bool],
        tell: Callable[[model.Event, int], None], over_limit: Callable[[], None], on_waiting: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self._run_id, self._session_id, self._binding, self._limit = run_id, session_id, binding, limit
        self._send, self._tell, self._over_limit, self._on_waiting = send, tell, over_limit, on_waiting
        self._began = time.monotonic()
        self._open: dict[int, _Call] = {}
        self._pending: dict[str, _Call] = {}
        self._ids: set[str] = set()
        self._places: dict[str, int] = {}  # first id of a place → how many more calls gave the same place
        self._ledger: list[_Call] = []
        self._open_bytes = self._ledger_bytes = self._count = self._answered = 0
        self._lease: asyncio.TimerHandle | None = None
        self._stands: tuple[int, int] | None = None  # calls made and answers taken, when it said that it is blocked
        self.waiting = False
        self.waits = 0  # how often it began to
        self.ended = False

    # ------------------------------------------------------------------ what the guest says

    def hear(self, message: wire.ToolCall | wire.ToolDrop | wire.Blocked) -> None:
        if self.ended:
            return  # a child of the program that held on to the channel
        match message:
            case wire.ToolCall():
                self._stands = None
                self._moves()
                self._called(message)
            case wire.ToolDrop():
                self._stands = None
                self._moves()
                self._dropped(message)
            case wire.Blocked():
                self._blocked(message)

    def _called(self, message: wire.ToolCall) -> None:
        self._count += 1
        if self._count > self._limit + 1:
            return  # it was told, and is being stopped
        raw, began = message.parts[0], time.monotonic()
        tool = self._binding.tools.get(message.tool)
        call = _Call(message.number, tool or Tool(name=shown(message.tool, 200)), None, raw, began)
        self._open[call.number] = call
        self._open_bytes += len(raw)
        refusal = self._refusal(call, known=tool is not None)
        self._open_bytes += len(call.raw) - len(raw)
        call.id = self._name(call, message.path, message.ordinal)
        if len(self._ledger) < LEDGER_CALLS:
            self._ledger.append(call)
        if self._count > self._limit:
            self._answer(call, _failure(call, f"more than {self._limit} tool calls in one program", code="tool_calls"))
            self._over_limit()
            return
        at_once = ToolAnswer(call.id, error=refusal) if refusal is not None else self._known(call)
        told = self._line(call)
        if at_once is not None:  # so that who reads it does not begin to make it
            told = msgspec.structs.replace(told, status=_STATUS[at_once.error.type] if at_once.error is not None else "ok")
        self._tell(model.ToolCalled(told), EVENT_BYTES + min(len(raw), LEDGER_BYTES))
        if at_once is not None:
            self._answer(call, at_once)
            return
        call.is_made = True
        if call.tool.approval == "required":
            self._wait_for(call, "approval")
        else:
            self._proceed(call)

    def _known(self, call: _Call) -> ToolAnswer | None:
        """What the session's guard answers instead of the tool."""
        guard = self._binding.guard
        instead = None if guard is None else guard.before(call.tool, call.raw)
        if instead is None:
            return None
        call.reused = instead.reused
        return ToolAnswer(call.id, instead.value, instead.error)

    def _dropped(self, message: wire.ToolDrop) -> None:
        """Nobody in the program waits for it. What a tool began it may finish or not: it is cancelled."""
        if (call := self._open.get(message.number)) is not None:
            if call.task is not None:
                call.task.cancel()
            self._close(call, "cancelled", "the program did not wait for it")

    def _blocked(self, message: wire.Blocked) -> None:
        """Believed only if it is of now: every call has come, every answer was taken, and nobody but the caller keeps it waiting."""
        self._stands = message.asked, message.answered
        self._look()

    def _look(self) -> None:
        is_now = self._stands == (self._count, self._answered)
        if is_now and self._pending and len(self._pending) == len(self._open) and not self.waiting:
            self.waiting = True
            self.waits += 1
            self._on_waiting(True)

    def _moves(self) -> None:
        """The program does something, so it does not wait."""
        if self.waiting:
            self.waiting = False
            self._on_waiting(False)

    # ------------------------------------------------------------------ answers

    def answer(self, answers: Sequence[ToolAnswer]) -> None:
        """Answer pending calls, some or all; to an approval, true is the permission, and false a denial. All are taken or none.

        Raises BadRequest for an id that was never pending or comes twice, or a value too large or not of its kind; Conflict for one that
        is not pending any more.
        """
        seen: set[str] = set()
        for answer in answers:
            if answer.id in seen:
                raise BadRequest(f"results: {answer.id!r} is answered twice in one request", field="results")
            seen.add(answer.id)
            if answer.id not in self._pending:
                if answer.id in self._ids:
                    raise Conflict(f"the call {answer.id!r} does not wait for an answer any more", hint=_LATE)
                raise BadRequest(f"results: this run has no call {answer.id[:60]!r}", field="results", hint=_UNKNOWN)
            if len(answer.value) > MAX_VALUE_BYTES:
                raise BadRequest(
                    f"results: the value of {answer.id!r} has {len(answer.value):,} bytes; the most is {MAX_VALUE_BYTES:,}"
                )
            if self._pending[answer.id].kind == "approval" and answer.error is None and answer.value not in {b"true", b"false"}:
                raise BadRequest(
                    f"results: {answer.id!r} waits for approval, and its answer is no yes or no", field="results", hint=_YES_OR_NO
                )
        self._moves()
        for answer in answers:
            call = self._pending.pop(answer.id)
            if call.kind == "approval" and answer.error is None:
                if answer.value == b"true":
                    self._proceed(call)
                else:
                    self._answer(call, ToolAnswer(call.id, error=NOT_APPROVED))
            else:
                self._answer(call, answer)
        self._look()  # the program hears nothing of a permission, so it will not say again that it is blocked

    def pending(self) -> tuple[PendingCall, ...]:
        return tuple(
            PendingCall(
                call.id,
                call.tool.name,
                call.arguments if call.arguments is not None else msgspec.json.decode(call.raw),
                "approval" if call.kind == "approval" else "call",
            )
            for call in sorted(self._pending.values(), key=lambda call: call.number)
        )

    def ledger(self) -> tuple[ToolCall, ...]:
        """Every call, in the order of arrival; of very many the first."""
        return tuple(map(self._line, self._ledger))

    @property
    def untold(self) -> int:
        """Calls that the ledger leaves out."""
        return self._count - len(self._ledger)

    async def aclose(self) -> None:
        """The run is over: nothing is waited for any more, and what tools have begun is cancelled."""
        self.ended = True
        if self._lease is not None:
            self._lease.cancel()
        tasks = [call.task for call in self._open.values() if call.task is not None]
        for call in list(self._open.values()):
            self._close(call, "cancelled", "the program ended before it was answered")
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_S)

    # ------------------------------------------------------------------ inside

    def _refusal(self, call: _Call, *, known: bool) -> ToolFailure | None:
        """What speaks against making it. Decodes its arguments."""
        if len(call.raw) > MAX_ARGUMENT_BYTES or self._open_bytes > MAX_OPEN_BYTES:
            size = f"{len(call.raw):,} bytes; the most is {MAX_ARGUMENT_BYTES:,} each and {MAX_OPEN_BYTES:,} of all open calls"
            call.raw = b"{}"
            return ToolFailure(f"arguments of {size}", "arguments", code="too_large")
        try:
            arguments: object = msgspec.json.decode(call.raw)
            call.raw = _encoder.encode(arguments)
        except (msgspec.DecodeError, ValueError, RecursionError):
            call.raw = b"{}"
            return ToolFailure("the arguments are not JSON, or nested without end", "arguments")
        if not isinstance(arguments, dict) or _is_deep(cast("object", arguments), call.raw):
            call.raw = b"{}"
            what = f"nested more than {MAX_DEPTH} deep" if isinstance(arguments, dict) else "not an object"
            return ToolFailure(f"the arguments are {what}", "arguments")
        if len(call.raw) <= LEDGER_BYTES:
            call.arguments = arguments  # larger ones take many times their bytes, and are decoded when somebody needs them
        if not known:
            return ToolFailure(f"there is no tool {call.tool.name!r}", "denied", code="unknown_tool")
        if call.tool.side == "server" and self._binding.ask is None:
            return ToolFailure("nobody answers this tool here", "denied", code="unknown_tool")
        problem = self._binding.problem(call.tool, arguments)
        return None if problem is None else ToolFailure(problem, "arguments")

    def _name(self, call: _Call, path: str, ordinal: int) -> str:
        """An id that depends on what is called where, and not on when. A program that gives one place twice gets another id for it."""
        told = "\0".join((self._run_id, path, str(ordinal), call.tool.name)).encode("utf-8", "replace") + b"\0" + call.raw
        name = "call_" + hashlib.sha256(told).hexdigest()[:24]
        if name in self._ids:
            again = self._places[name] = self._places.get(name, 0) + 1
            name = "call_" + hashlib.sha256(told + b"\0%d" % again).hexdigest()[:24]
        self._ids.add(name)
        return name

    def _proceed(self, call: _Call) -> None:
        if call.tool.side == "client":
            self._wait_for(call, "call")
        else:
            call.kind = None
            ask = cast("Ask", self._binding.ask)
            answering = ask(ToolRequest(call.id, call.tool.name, call.raw, self._run_id, self._session_id))
            came = partial(self._came, call)
            if isinstance(answering, Prompt) and not answering.done():
                call.task = answering
                answering.at_once = came
            else:
                call.task = asyncio.ensure_future(answering)
                call.task.add_done_callback(came)

    def _wait_for(self, call: _Call, kind: str) -> None:
        call.kind = kind
        self._pending[call.id] = call
        if self._lease is None:
            self._lease = asyncio.get_running_loop().call_later(self._binding.wait_s, self._give_up)

    def _came(self, call: _Call, future: "asyncio.Future[ToolAnswer]") -> None:
        call.task = None
        if future.cancelled():
            return
        err = future.exception()  # against the agreement; without an answer the program would wait for ever
        if call.number in self._open:
            failure = None if err is None else ToolFailure(f"{type(err).__name__}: {err}")
            self._answer(call, future.result() if failure is None else ToolAnswer(call.id, error=failure))

    def _give_up(self) -> None:
        """Nobody answered in time: the program is told so, and may go on."""
        self._lease = None
        now = time.monotonic()
        late = [call for call in self._pending.values() if now - call.began >= self._binding.wait_s - 0.001]
        if late:
            self._moves()
        for call in late:
            del self._pending[call.id]
            words = f"nobody answered within {self._binding.wait_s:g} s"
            self._answer(call, ToolAnswer(call.id, error=ToolFailure(words, "timeout", retryable=True)))
        if self._pending:
            first = min(call.began for call in self._pending.values())
            self._lease = asyncio.get_running_loop().call_later(max(0.0, first + self._binding.wait_s - now), self._give_up)

    def _answer(self, call: _Call, answer: ToolAnswer) -> None:
        if self._binding.guard is not None and call.is_made:
            self._binding.guard.after(call.tool, call.raw, answer)
        failure = answer.error
        if failure is None and len(answer.value) > MAX_VALUE_BYTES:
            failure = ToolFailure(
                f"its result has {len(answer.value):,} bytes; the most is {MAX_VALUE_BYTES:,}", code="too_large"
            )
        if failure is None and not self._send(call.number, False, answer.value):
            failure = ToolFailure("too many results wait for the program to read them", code="too_large")
        if failure is None:
            self._close(call, "ok", answer.value[: PREVIEW_CHARS * 4].decode("utf-8", "replace")[:PREVIEW_CHARS])
        else:
            message = failure.message[:MAX_MESSAGE].encode("utf-8", "replace").decode()  # names of files may hold half characters
            self._close(call, _STATUS[failure.type], message[:PREVIEW_CHARS])
            self._send(call.number, True, _failed.encode(msgspec.structs.replace(failure, message=message)))
        self._answered += 1

    def _close(self, call: _Call, status: str, preview: str) -> None:
        self._open.pop(call.number, None)
        self._pending.pop(call.id, None)
        self._open_bytes -= len(call.raw)
        call.status, call.preview, call.kind = status, preview, None
        call.took = time.monotonic() - call.began
        self._ledger_bytes += len(call.raw)
        if len(call.raw) > LEDGER_BYTES or self._ledger_bytes > LEDGER_TOTAL_BYTES:
            call.arguments, call.raw = None, b""
        if not self.ended:
            self._tell(model.ToolAnswered(self._line(call)), EVENT_BYTES + min(len(call.raw), LEDGER_BYTES))

    def _line(self, call: _Call) -> ToolCall:
        took = call.took if call.status != "pending" else time.monotonic() - call.began
        return ToolCall(
            call.id, call.tool.name, call.arguments if len(call.raw) <= LEDGER_BYTES else None, cast("Any", call.status),
            round((call.began - self._began) * 1e3, 3), round(took * 1e3, 3), call.preview, call.reused,
        )  # fmt: skip


def _is_deep(value: object, raw: bytes) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (cast("dict[str, Any]", one).values() if isinstance(one, dict) else cast("list[Any]", one))
        ]
    return bool(level)


def _failure(call: _Call, message: str, *, code: str) -> ToolAnswer:
    return ToolAnswer(call.id, error=ToolFailure(message, code=code))


NOT_APPROVED: Final = ToolFailure("nobody allowed this call", "denied", code="not_approved")
_YES_OR_NO: Final = "Send true to allow the call; false, or an error, to deny it. The tool itself gives the value."
_LATE: Final = "It was answered before, or the program does not wait for it any more; the result says what waits now."
_UNKNOWN: Final = "`pending` in the result lists the ids that wait."
