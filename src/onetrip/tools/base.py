"""What a server tool is: its description, how it is called, its limits; and what the code of a tool can raise and ask."""

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, Literal

import msgspec

from onetrip.model import Effect, Tool, ToolFailure

Failure = Literal["error", "timeout", "denied", "arguments"]

Blocking = Callable[[bytes, int], bytes]
Awaiting = Callable[[bytes, int], Coroutine[Any, Any, bytes]]

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_RESULT_BYTES: Final = 8 << 20
DEFAULT_THREADS: Final = 16  # calls at once of a function that blocks: each holds a thread
DEFAULT_CALLS: Final = 256  # calls at once of a function that awaits


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What whoever registers a tool says of it. None: nothing; then the function, or the default, says it."""

    name: str | None = None
    description: str | None = None
    effect: Effect | None = None
    approval: Literal["never", "required"] | None = None
    timeout_s: float | None = None  # of one call, waiting for its turn included
    concurrency: int | None = None  # calls at once; more wait
    rate: float | None = None  # calls per second; a second's worth may come at once, more wait
    max_result_bytes: int | None = None  # of the value as JSON


class ServerTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that we answer ourselves.

    `invoke` takes the arguments as JSON (an object) and the most bytes that the value may have, and gives the value as JSON; it raises
    ToolFailed, or anything else. Where it is `blocking` it returns the bytes and is called in a thread, else it returns a coroutine.
    """

    tool: Tool
    invoke: Blocking | Awaiting
    blocking: bool = False
    concurrency: int | None = None
    rate: float | None = None
    max_result_bytes: int = DEFAULT_RESULT_BYTES


class ToolFailed(Exception):
    """Raised by the code of a tool: the program gets `message`, word for word, as a ToolError.

    `retryable` says whether the same call may succeed later; `code` is a stable word for programs.
    """

    def __init__(self, message: str, *, retryable: bool = False, type: Failure = "error", code: str | None = None) -> None:  # noqa: A002 -- the name it has in ToolFailure
        super().__init__(message)
        self.failure = ToolFailure(message=message, type=type, retryable=retryable, code=code)


class CurrentCall(msgspec.Struct, frozen=True):
    """The call that a tool's code is answering."""

    id: str  # the same when the same call is made again: an idempotency key
    tool: str
    run_id: str
    session_id: str | None
    deadline: float  # by time.monotonic(); then the program has its answer, whatever the code does


CALL: Final[ContextVar[CurrentCall]] = ContextVar("onetrip_tool_call")


def current_call() -> CurrentCall:
    """The call that this code answers, also in threads and tasks that copied its context. Raises LookupError where there is none."""
    try:
        return CALL.get()
    except LookupError:
        raise LookupError("current_call() is known only while a tool answers a call.") from None


def too_large(size: int | None, most: int) -> ToolFailed:
    """`size` None: it was not even measured."""
    what = "more" if size is None else f"{size:,} bytes"
    return ToolFailed(
        f"The result has {what} as JSON; the most is {most:,} bytes. Ask for less, or for a part.", code="result_too_large"
    )
