"""What the tools take and give: frozen types, from which the schemas that clients see are made. Their descriptions are for a model."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from onetrip.errors import BadRequest
from onetrip.model import Level, LimitHit, ProgramError, SessionState, Status, Usage

T = TypeVar("T")
MAX_BRANCHES: Final = 64

SessionId = Annotated[str, Meta(description="The session's id, as an earlier result gave it.")]
Path = Annotated[str, Meta(description="Path relative to the session's working folder, such as `data/sales.csv`.")]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ExecutePython(Arguments, frozen=True):
    code: Annotated[str, Meta(description="Python source. The value of its last expression is returned, as in a notebook.")]
    session_id: Annotated[
        str | None,
        Meta(description="Go on in this session: its variables, imports and files are there. Leave it out to begin a new one."),
    ] = None
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Stop the program after so many seconds. Default: the session's wall limit, usually 60."),
    ] = None
    one_shot: Annotated[
        bool,
        Meta(
            description="Run in a sandbox of its own that is thrown away afterwards with its variables and files; no session_id."
        ),
    ] = False


class CreateSession(Arguments, frozen=True):
    environment: Annotated[str | None, Meta(description="A named set of packages. Leave it out for the default one.")] = None
    wall_s: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Longest time of one run, in seconds.")] = None
    cpu_s: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="CPU time of one run, in seconds.")] = None
    memory_mb: Annotated[Annotated[int, Meta(gt=0)] | None, Meta(description="Memory, files included, in MB.")] = None
    disk_mb: Annotated[Annotated[int, Meta(gt=0)] | None, Meta(description="Size of the working folder, in MB.")] = None
    on_error: Annotated[
        Literal["keep", "rollback"],
        Meta(description="After an exception: `keep` what the code did until then, as in a notebook, or `rollback` all of it."),
    ] = "keep"


class OfSession(Arguments, frozen=True):
    session_id: SessionId


class Undo(OfSession, frozen=True):
    cells: Annotated[int, Meta(ge=1, le=1000, description="How many runs to take back.")] = 1


class Fork(OfSession, frozen=True):
    count: Annotated[int, Meta(ge=1, le=MAX_BRANCHES, description="How many branches to make.")] = 1


class ReadFile(OfSession, frozen=True):
    path: Path


class WriteFile(OfSession, frozen=True):
    path: Path
    text: Annotated[str | None, Meta(description="The content, as text. Give this or content_base64.")] = None
    content_base64: Annotated[str | None, Meta(description="The content, as base64, for a file that is not text.")] = None


# ---------------------------------------------------------------------------------------------------- what they give


class FileLink(msgspec.Struct, frozen=True):
    path: str
    size: int
    change: Literal["created", "modified", "deleted"]
    uri: str | None  # to read it by; None where it is gone


class Cut(msgspec.Struct, frozen=True):
    """Which parts were too long to be given whole."""

    stdout: bool = False
    stderr: bool = False
    text: bool = False
    value: bool = False


class Isolation(msgspec.Struct, frozen=True):
    tier: str
    level: Level


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """What one run gave. `exit_code` is 0 if the program completed, else 1; `status` and `error` say more."""

    session_id: str | None
    exit_code: Literal[0, 1]
    status: Status
    stdout: str
    stderr: str
    text: str | None
    value: Any
    error: ProgramError | None
    limit: LimitHit | None
    truncated: Cut
    files: tuple[FileLink, ...]
    images: int
    session: SessionState
    notes: tuple[str, ...] = ()  # what was mended in the program, and hints for its next version
    usage: Usage
    isolation: Isolation
    run_id: str


class Session(msgspec.Struct, frozen=True):
    session_id: str


class Sessions(msgspec.Struct, frozen=True):
    session_ids: tuple[str, ...]


class Undone(msgspec.Struct, frozen=True):
    session_id: str
    cells: int  # how many runs the state now has behind it
    note: str | None = None  # what could not be brought back


class File(msgspec.Struct, frozen=True):
    path: str
    size: int
    uri: str


class Files(msgspec.Struct, frozen=True):
    session_id: str
    files: tuple[File, ...]


class Content(msgspec.Struct, frozen=True):
    path: str
    size: int
    encoding: Literal["utf-8", "base64"]
    content: str


class Written(msgspec.Struct, frozen=True):
    path: str
    size: int
    uri: str


class Closed(msgspec.Struct, frozen=True):
    session_id: str
    closed: bool = True


def decode(arguments: Mapping[str, Any] | None, kind: type[T]) -> T:
    """What a client sent, checked. Models write numbers as text and name what they leave out; that much is forgiven. Raises BadRequest."""
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as err:
        what = str(err).replace("Object", "The arguments object").replace(" - at `$.", " - at `")
        raise BadRequest(f"arguments: {what}", hint="The tool's input schema says what it takes.", field="arguments") from err


def json_schema(kind: Any) -> dict[str, Any]:
    """A JSON Schema whose root is an object, as clients want it, and not a reference to one."""
    _, found = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    root = found.pop(kind.__name__)
    return {**root, "$defs": found} if found else root
