"""What the client says and how it reads what it is told: requests built, answers decoded. No I/O, no clock.

What equals Onetrip's own default is not sent, so that the server's configuration decides it.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec

from onetrip import checks, errors, schema
from onetrip.errors import BadRequest, OnetripError, PlatformError
from onetrip.model import (
    Cell,
    FileInfo,
    Isolation,
    Limits,
    Policy,
    ProgramError,
    Result,
    Rewound,
    SessionSpec,
    SessionState,
    Support,
    Tool,
    ToolAnswer,
    ToolFailure,
)
from onetrip.seam import Contents

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "DELETE"]
JSON: Final = "application/json"
INLINE_BYTES: Final = 16 << 20  # of files that are sent with the request that opens a session; the others follow
INLINE_FILES: Final = 1000
MAX_SHOWN: Final = 300  # characters of an answer that is not ours
_DEFAULTS: Final = SessionSpec()
_BY_STATUS: Final[Mapping[int, type[OnetripError]]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.SessionGone,
    412: errors.PreconditionFailed,
    413: errors.TooLarge,
    416: errors.RangeUnsatisfiable,
    429: errors.QuotaExceeded,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
    507: errors.WorkspaceFull,
}


class Ask(msgspec.Struct, frozen=True):
    """One request. `path` is relative to the server's address. `key`: repeated under the same key it is done once."""

    method: Method
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key: str | None = None

    def all_headers(self) -> dict[str, str]:
        found = dict(self.headers)
        if self.body is not None:
            found.setdefault("Content-Type", JSON)
        if self.key is not None:
            found["Idempotency-Key"] = self.key
        return found


# ---------------------------------------------------------------------------------------------------- what is asked


def open_session(spec: SessionSpec, files: Contents, key: str) -> tuple[Ask, dict[str, bytes]]:
    """The request, and the files that are too much for it and have to follow. Raises BadRequest."""
    inline: dict[str, bytes] = {}
    later: dict[str, bytes] = {}
    size = 0
    for path, data in files.items():
        fits = size + len(data) <= INLINE_BYTES and len(inline) < INLINE_FILES
        (inline if fits else later)[path] = data
        size += len(data) if fits else 0
    request = schema.SessionRequest(
        **_common(spec),
        files=_files(inline),
        tools=_declared(spec.tools),
        wait_s=None if spec.wait_s == _DEFAULTS.wait_s else spec.wait_s,
        idle_timeout_s=spec.idle_timeout_s,
        checkpoints=spec.checkpoints,
        on_error=spec.on_error,
    )
    return _post("v1/sessions", request, key), later


def session(session_id: str, method: Literal["GET", "DELETE"] = "GET") -> Ask:
    return Ask(method, f"v1/sessions/{_part(session_id)}")


def cell(session_id: str, asked: Cell, key: str) -> Ask:
    """Raises BadRequest."""
    _check(asked)
    request = schema.CellRequest(
        code=asked.code,
        inputs=asked.inputs,
        timeout_s=asked.timeout_s,
        final=asked.final,
        stream=True,
        tools=_declared(asked.tools),
    )
    return _post(f"v1/sessions/{_part(session_id)}/runs", request, key)


def shot(spec: SessionSpec, asked: Cell, files: Contents, key: str) -> Ask:
    """Raises BadRequest."""
    _check(asked)
    request = schema.RunRequest(
        **_common(spec), code=asked.code, inputs=asked.inputs, timeout_s=asked.timeout_s, stream=True, files=_files(files),
        tools=_declared((*spec.tools, *asked.tools)), wait_s=None if spec.wait_s == _DEFAULTS.wait_s else spec.wait_s,
    )  # fmt: skip
    return _post("v1/runs", request, key)


def answer(run_id: str, answers: Sequence[ToolAnswer], key: str) -> Ask:
    """Raises BadRequest."""
    results = tuple(schema.ToolResult(id=one.id, value=msgspec.Raw(one.value), error=_failed(one.error)) for one in answers)
    return _post(f"v1/runs/{_part(run_id)}/tool_results", schema.ToolResultsRequest(results=results, wait=False), key)


def _failed(failure: ToolFailure | None) -> schema.ToolFailed | None:
    return None if failure is None else schema.ToolFailed(**msgspec.structs.asdict(failure))


def run(run_id: str) -> Ask:
    return Ask("GET", f"v1/runs/{_part(run_id)}")


def events(run_id: str, after: int) -> Ask:
    return Ask("GET", f"v1/runs/{_part(run_id)}/events", headers=(("Last-Event-ID", str(after)),))


def interrupt(run_id: str) -> Ask:
    return Ask("POST", f"v1/runs/{_part(run_id)}/interrupt", b"")


def rewind(session_id: str, cells: int, key: str, *, forward: bool) -> Ask:
    """Raises BadRequest."""
    checks.check_cells(cells)
    return _post(f"v1/sessions/{_part(session_id)}/{'redo' if forward else 'undo'}", schema.UndoRequest(cells), key)


def fork(session_id: str, count: int, key: str) -> Ask:
    """Raises BadRequest."""
    checks.check_count(count)
    return _post(f"v1/sessions/{_part(session_id)}/fork", schema.ForkRequest(count), key)


def files(session_id: str) -> Ask:
    return Ask("GET", f"v1/sessions/{_part(session_id)}/files")


def file(session_id: str, path: str, method: Method = "GET", *headers: tuple[str, str]) -> Ask:
    """Raises BadRequest. Whether the path may be is for the server to say, so it has to arrive as it is."""
    return Ask(method, f"v1/sessions/{_part(session_id)}/files/{_quoted(path)}", headers=headers)


def put_file(session_id: str, path: str, data: bytes | None = None) -> Ask:
    """Raises BadRequest. `data` None: it is streamed."""
    kind = ("Content-Type", "application/octet-stream")
    return msgspec.structs.replace(file(session_id, path, "PUT", kind), body=data)


def capabilities() -> Ask:
    return Ask("GET", "v1/capabilities")


def health() -> Ask:
    return Ask("GET", "healthz")


# ---------------------------------------------------------------------------------------------------- what is answered


def decode(body: bytes, kind: type[T]) -> T:
    """Raises PlatformError for an answer that is not what it should be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise PlatformError(
            f"the server's answer cannot be read: {err}",
            hint="Is this the address of Onetrip, and of a version that fits this client?",
        ) from err


def result(body: bytes) -> Result:
    return decode(body, Result)


def session_id(body: bytes) -> str:
    return decode(body, schema.SessionInfo).id


def branches(body: bytes) -> list[str]:
    return [each.id for each in decode(body, schema.ForkResponse).sessions]


def rewound(body: bytes) -> Rewound:
    found = decode(body, schema.Rewinding)
    return Rewound(found.cells, found.note)


def listing(body: bytes) -> list[FileInfo]:
    return [FileInfo(each.path, each.size, each.modified_ns) for each in decode(body, schema.FileList).files]


def support(body: bytes) -> Support:
    found = decode(body, schema.Capabilities)
    return Support("jail", found.level, found.isolation)


class _Problem(msgspec.Struct, frozen=True):
    """`schema.Problem`, of which another version may say less or more."""

    detail: str
    code: str
    hint: str | None = None
    field: str | None = None


def error(status: int, headers: Mapping[str, str], body: bytes) -> OnetripError:
    """What an answer says that is no success: the server's own error, or what a status of somebody else's means."""
    fallback = _BY_STATUS.get(status, PlatformError)
    retry_after_s = _seconds(headers.get("retry-after"))
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        shown = "".join(char if char.isprintable() else " " for char in body[:MAX_SHOWN].decode(errors="replace")).strip()
        return fallback(
            f"{status} from something that is not Onetrip: {shown or 'an empty answer'}",
            hint="Is the address right? A proxy on the way answers like this, too.",
            retry_after_s=retry_after_s,
        )
    named = errors.named(problem.code)
    kind = fallback if named is OnetripError else named
    return kind(problem.detail, hint=problem.hint, field=problem.field, retry_after_s=retry_after_s)


def lost(run_id: str, session_id: str | None, *, survived: bool) -> Result:
    """The result of a run that the server began and does not know any more."""
    why = "the server lost this run, and with it whatever came of it"
    return Result(
        id=run_id,
        session_id=session_id,
        status="lost",
        error=ProgramError("SandboxLost", why),
        session=SessionState(survived=survived, note=why),
        isolation=Isolation("jail", "strict", ()),
    )


# ---------------------------------------------------------------------------------------------------- inside


def _common(spec: SessionSpec) -> dict[str, Any]:
    """What one-shots and sessions have in common, without what is as by default."""
    return {
        "environment": None if spec.environment == _DEFAULTS.environment else spec.environment,
        "limits": _limits(spec.limits),
        "policy": schema.PolicyRequest(modules=spec.policy.modules) if spec.policy != Policy() else schema.PolicyRequest(),
        "metadata": spec.metadata,
        "isolation_floor": spec.isolation_floor,
        "threads": spec.threads,
    }


def _declared(tools: Sequence[Tool]) -> tuple[schema.DeclaredTool, ...]:
    """As the server is told them: whoever answers, for it they are the client's."""
    names = schema.DeclaredTool.__struct_fields__
    return tuple(schema.DeclaredTool(**{name: getattr(tool, name) for name in names}) for tool in tools)


def _limits(limits: Limits) -> schema.LimitsRequest:
    checks.check_limits(limits)
    product = Limits()
    names = limits.__struct_fields__
    changed = {name: getattr(limits, name) for name in names if getattr(limits, name) != getattr(product, name)}
    return schema.LimitsRequest(**changed)


def _files(contents: Contents) -> tuple[schema.FileContent, ...]:
    return tuple(map(_file, contents.items()))


def _file(item: tuple[str, bytes]) -> schema.FileContent:
    path, data = item
    try:
        return schema.FileContent(path, data.decode())
    except UnicodeDecodeError:
        return schema.FileContent(path, base64.b64encode(data).decode(), "base64")


def _check(asked: Cell) -> None:
    checks.check_source(asked.code)
    checks.check_inputs(asked.inputs)
    checks.check_timeout(asked.timeout_s)


def _post(path: str, request: schema.Request, key: str) -> Ask:
    try:
        return Ask("POST", path, msgspec.json.encode(request), key=key)
    except (TypeError, ValueError, RecursionError) as err:  # a lone surrogate in a name, for one
        raise BadRequest(f"the request cannot be sent as JSON: {err}") from err


def _part(name: str) -> str:
    """An id as one part of a path, whatever somebody put into it."""
    return _quoted(name).replace("/", "%2F")


def _quoted(path: str) -> str:
    """Dots are quoted, too: `..` would be resolved on the way, and name something else."""
    try:
        return quote(path, safe="/").replace(".", "%2E")
    except UnicodeEncodeError:
        raise BadRequest(f"the path {path!r} is not text", field="path") from None


def _seconds(text: str | None) -> float | None:
    """Of `Retry-After`; None for a date, which we never send."""
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None
