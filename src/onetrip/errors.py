"""Our exceptions, split by whose fault it was, and one table: code → status → hint.

    OnetripError
    ├── BadRequest          the caller asked for something that cannot be; nothing was started
    │   ├── UnknownEnvironment
    │   └── NotFound        a session, run or file that does not exist (any more)
    ├── Unavailable         we cannot do it now or here; nothing was started
    │   ├── IsolationUnavailable   the host cannot give the level that the caller's floor asks for
    │   └── Overloaded
    ├── WorkspaceFull       no space left for a file; what was there is unchanged
    ├── SessionGone         the session ended before this call; `reason` says how
    └── PlatformError       we failed: the sandbox did not start, or was lost through no fault of the program
        └── SandboxFailed   a step of the jail failed; names the step

A program that fails is a result (`Result.error`), never one of these.
"""

from typing import ClassVar


class OnetripError(Exception):
    """Base of all. `str(error)` says what happened, `hint` what to do, `field` which part of the request was wrong."""

    code: ClassVar[str] = "internal"
    hint_default: ClassVar[str] = "This is our fault; please report it with the output of `onetrip doctor --json`."

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.hint_default
        self.field = field


class BadRequest(OnetripError, ValueError):
    code = "bad_request"
    hint_default = "Correct the field that the message names. Nothing was started."


class UnknownEnvironment(BadRequest):
    code = "unknown_environment"
    hint_default = "`onetrip env list` shows what there is; `onetrip env build NAME --package …` makes a new one."


class NotFound(OnetripError, LookupError):
    code = "not_found"
    hint_default = "It was closed, or never existed."


class Unavailable(OnetripError):
    code = "unavailable"
    hint_default = "Try again later. Nothing was started."


class IsolationUnavailable(Unavailable):
    code = "isolation_unavailable"
    hint_default = "`onetrip doctor` names what is missing and the remedy."


class Overloaded(Unavailable):
    code = "overloaded"
    hint_default = "Wait for other runs to end, or raise the limit of live sandboxes. Nothing was started."


class SessionGone(OnetripError):
    code = "session_gone"
    hint_default = "Open a new session; the variables and files of this one are gone."


class WorkspaceFull(OnetripError):
    code = "workspace_full"
    hint_default = "Delete files, or open the session with a larger `limits.disk_mb`. What was there before is unchanged."


class PlatformError(OnetripError):
    code = "internal"


class SandboxFailed(PlatformError):
    code = "sandbox_failed"
    hint_default = "`onetrip doctor` checks every step. Nothing is left behind."


# code → (HTTP status, is a retry worth it). Complete by test.
STATUS: dict[str, tuple[int, bool]] = {
    "bad_request": (400, False),
    "unknown_environment": (400, False),
    "not_found": (404, False),
    "session_gone": (410, False),
    "workspace_full": (507, False),
    "overloaded": (503, True),
    "unavailable": (503, True),
    "isolation_unavailable": (501, False),
    "sandbox_failed": (500, True),
    "internal": (500, False),
}
