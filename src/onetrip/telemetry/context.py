"""The request that the present task works for, so that every log line and span can name it without being told.

One object per request, changed in place: what a handler notes, the middleware around it sees, and so do the tasks that
the handler started, however long they live.
"""

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

_SANE: Final = re.compile(r"[A-Za-z0-9._~:+/=-]{1,128}", re.ASCII)


@dataclass(slots=True)
class RequestInfo:
    """What is known of a request so far. `code` is that of the error it ended with; `route` the template, if no router says it."""

    request_id: str
    tenant: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    code: str | None = None
    route: str | None = None
    trace_id: str | None = None  # of a span that is recorded


CURRENT: Final[ContextVar[RequestInfo | None]] = ContextVar("onetrip_request", default=None)


def current() -> RequestInfo | None:
    return CURRENT.get()


def note(
    *,
    tenant: str | None = None,
    session_id: str | None = None,
    run_id: str | None = None,
    code: str | None = None,
    route: str | None = None,
) -> None:
    """Say more of the present request. Outside of one, nothing happens."""
    info = CURRENT.get()
    if info is None:
        return
    info.tenant = tenant or info.tenant
    info.session_id = session_id or info.session_id
    info.run_id = run_id or info.run_id
    info.code = code or info.code
    info.route = route or info.route


def request_id(offered: str | None) -> str:
    """The caller's own id if it is short and of harmless characters, else a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered
    return f"req_{secrets.token_hex(12)}"
