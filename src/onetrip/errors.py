"""Our exceptions, split by whose fault it was, and one table: code → status → hint.

    OnetripError
    ├── BadRequest          the caller asked for something that cannot be; nothing was started
    │   ├── UnknownEnvironment
    │   ├── NotFound        a session, run or file that does not exist (any more), or is another tenant's
    │   ├── Conflict        it contradicts an earlier request, such as another body under the same idempotency key
    │   ├── PreconditionFailed     the file is not, or no longer, the one that the request names
    │   ├── RangeUnsatisfiable     the file has no such bytes
    │   └── TooLarge        the body of a request
    ├── Unauthorized        no key, or one that is not (or no longer) known
    ├── Forbidden           the key may not do this
    ├── QuotaExceeded       the tenant has used up what it may have; `retry_after_s` says when to come back
    ├── Unavailable         we cannot do it now or here; nothing was started
    │   ├── IsolationUnavailable   the host cannot give the level that the caller's floor asks for
    │   └── Overloaded      `retry_after_s` says when to come back
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

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint or self.hint_default
        self.field = field
        self.retry_after_s = retry_after_s


class BadRequest(OnetripError, ValueError):
    code = "bad_request"
    hint_default = "Correct the field that the message names. Nothing was started."


class UnknownEnvironment(BadRequest):
    code = "unknown_environment"
    hint_default = "`onetrip env list` shows what there is; `onetrip env build NAME --package …` makes a new one."


class NotFound(OnetripError, LookupError):
    code = "not_found"
    hint_default = "It was closed, or never existed."


class Conflict(BadRequest):
    code = "conflict"
    hint_default = "Use a new idempotency key for a new request, and the same body for a repeated one."


class PreconditionFailed(BadRequest):
    code = "precondition_failed"
    hint_default = "Read the file again, and decide anew. It was not changed."


class RangeUnsatisfiable(BadRequest):
    code = "range_unsatisfiable"
    hint_default = "Ask for bytes that the file has."


class TooLarge(BadRequest):
    code = "too_large"
    hint_default = "Send less: files go by `PUT /v1/sessions/{sid}/files/{path}`, which has no limit but the workspace's."


class Unauthorized(OnetripError):
    code = "unauthorized"
    hint_default = "Send `Authorization: Bearer KEY`; `onetrip keys create` makes one."


class Forbidden(OnetripError):
    code = "forbidden"
    hint_default = "Ask an administrator for a key with the role that this needs (`onetrip keys create --role …`)."


class QuotaExceeded(OnetripError):
    code = "quota_exceeded"
    hint_default = "Wait as long as `Retry-After` says, or close what is open. Nothing was started."


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


def named(code: str) -> type[OnetripError]:
    """The class that has this code; OnetripError for one that we do not know, such as a newer server's."""
    edge: list[type[OnetripError]] = [OnetripError]
    while edge:
        found = edge.pop()
        if found.code == code and found is not OnetripError:
            return PlatformError if found.code == "internal" else found
        edge += found.__subclasses__()
    return OnetripError


# code → (HTTP status, is a retry worth it). Complete by test.
STATUS: dict[str, tuple[int, bool]] = {
    "bad_request": (400, False),
    "unknown_environment": (400, False),
    "not_found": (404, False),
    "conflict": (409, False),
    "precondition_failed": (412, False),
    "range_unsatisfiable": (416, False),
    "too_large": (413, False),
    "unauthorized": (401, False),
    "forbidden": (403, False),
    "quota_exceeded": (429, True),
    "session_gone": (410, False),
    "workspace_full": (507, False),
    "overloaded": (503, True),
    "unavailable": (503, True),
    "isolation_unavailable": (501, False),
    "sandbox_failed": (500, True),
    "internal": (500, False),
}
