"""What E2B's clients send and get, as frozen types, and our results in their words. No I/O."""

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from onetrip.model import DisplayData, Result

ENVD_VERSION: Final = "0.6.4"  # the newest that clients ask about: nothing is refused by them
CHART, DATA, PROCESS = (f"application/vnd.onetrip.{name}+json" for name in ("chart", "data", "process"))
_FIELDS: Final = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    DATA: "data",
    CHART: "chart",
}
_JSON: Final = frozenset({"json", "data", "chart"})
_QUOTED: Final = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that a newer client sends are left out."""


class NewSandbox(Body, frozen=True):
    templateID: str = "base"  # noqa: N815 - on the wire
    timeout: int = 300
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None  # noqa: N815
    autoPause: bool = False  # noqa: N815
    allow_internet_access: bool | None = None
    network: dict[str, Any] | None = None
    mcp: dict[str, Any] | None = None
    volumeMounts: list[Any] | None = None  # noqa: N815


class Timeout(Body, frozen=True):
    timeout: int = 300


class MaybeTimeout(Body, frozen=True):
    timeout: int | None = None


class ForkRequest(Body, frozen=True):
    timeout: int | None = None
    count: int = 1


class SnapshotRequest(Body, frozen=True):
    name: str | None = None


class Execute(Body, frozen=True):
    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = None


class NewContext(Body, frozen=True):
    cwd: str | None = None
    language: str | None = None


class Selector(Body, frozen=True):
    pid: int | None = None
    tag: str | None = None


class ProcessConfig(Body, frozen=True):
    cmd: str
    args: list[str] = []
    envs: dict[str, str] = {}
    cwd: str | None = None


class Start(Body, frozen=True):
    process: ProcessConfig
    pty: dict[str, Any] | None = None
    tag: str | None = None
    stdin: bool | None = None  # older clients do not say: then it may be written to


class Input(Body, frozen=True):
    stdin: bytes | None = None
    pty: bytes | None = None


class ToProcess(Body, frozen=True):
    """`Connect`, `SendInput`, `SendSignal`, `CloseStdin`, `Update`, and the first message of `StreamInput`."""

    process: Selector = Selector()
    input: Input = Input()
    signal: str | int = 0
    pty: dict[str, Any] | None = None


class Streamed(Body, frozen=True):
    """One message of `StreamInput`."""

    start: ToProcess | None = None
    data: ToProcess | None = None
    keepalive: dict[str, Any] | None = None


class PathRequest(Body, frozen=True):
    """`ListDir`, `Stat`, `MakeDir`, `Remove`, `CreateWatcher`, `WatchDir`."""

    path: str = ""
    depth: int = 1
    recursive: bool = False
    includeEntry: bool = False  # noqa: N815


class Move(Body, frozen=True):
    source: str = ""
    destination: str = ""


class Watcher(Body, frozen=True):
    watcherId: str = ""  # noqa: N815


class Entry(msgspec.Struct, frozen=True):
    """A file or folder, as the program `entries` tells it: a stranger's word, of these types."""

    name: str
    path: str
    folder: bool
    size: int
    mode: int
    owner: str
    group: str
    modified_ns: int
    target: str | None
    inode: int


class Answer(msgspec.Struct, frozen=True):
    """What one of our programs gives back."""

    error: str | None = None
    message: str = ""
    entries: tuple[Entry, ...] = ()
    size: int = 0
    code: int | None = None
    left: bool = True
    before: dict[str, str | None] = {}


class Started(msgspec.Struct, frozen=True):
    pid: int


# ---------------------------------------------------------------------------------------------------- our results in their words


def moment(seconds: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def entry(one: Entry) -> dict[str, Any]:
    kind = "FILE_TYPE_SYMLINK" if one.target is not None else "FILE_TYPE_DIRECTORY" if one.folder else "FILE_TYPE_FILE"
    letters = "".join(letter if one.mode >> 8 - at & 1 else "-" for at, letter in enumerate("rwxrwxrwx"))
    told = {
        "name": one.name,
        "type": kind,
        "path": one.path,
        "size": str(one.size),
        "mode": one.mode & 0o777,
        "permissions": f"{'d' if one.folder else '-'}{letters}",
        "owner": one.owner,
        "group": one.group,
        "modifiedTime": moment(min(max(one.modified_ns, 0) / 1e9, 4e9)),
    }
    return told if one.target is None else {**told, "symlinkTarget": one.target, "isSymlink": True}


def output(name: str, text: str) -> dict[str, Any]:
    """A line of /execute: something was printed."""
    return {"type": name, "text": text, "timestamp": time.time_ns()}


def shown(display: DisplayData, *, is_main: bool) -> dict[str, Any]:
    """A line of /execute: a display, or the value of the last expression."""
    line: dict[str, Any] = {"type": "result", "is_main_result": is_main}
    extra: dict[str, str] = {}
    for mime, content in display.data.items():
        field = _FIELDS.get(mime)
        if field is None:
            extra[mime] = content
        elif field in _JSON:
            try:
                line[field] = msgspec.json.decode(content)
            except (msgspec.DecodeError, RecursionError):
                extra[mime] = content
        else:
            line[field] = unquoted(content) if field == "text" else content
    return {**line, "extra": extra} if extra else line


def main_result(result: Result) -> dict[str, Any] | None:
    """The same for a value that is told by its text alone."""
    return None if result.text is None else {"type": "result", "is_main_result": True, "text": unquoted(result.text)}


def unquoted(text: str) -> str:
    """A plain string without its quotes, as E2B shows it."""
    found = _QUOTED.fullmatch(text)
    return text if found is None else found[1] if found[1] is not None else found[2]


def failed(result: Result) -> dict[str, Any] | None:
    """A line of /execute: how the cell failed, if it did."""
    error, limit = result.error, result.limit
    if error is None and limit is None and result.status == "completed":
        return None
    name = error.type if error is not None else "LimitExceeded"
    value = error.message if error is not None else f"stopped: {result.status}"
    trace = error.traceback if error is not None else ""
    if limit is not None:
        value = f"{value} (over the {limit.name} limit of {limit.limit:g} {limit.unit})"
    if result.session.rolled_back:
        value = f"{value}; the context is as it was before this code"
    elif not result.session.survived:
        value = f"{value}; the context was started anew"
    return {"type": "error", "name": name, "value": value, "traceback": trace or f"{name}: {value}"}
