"""What a server is configured with: `onetrip.toml`, decoded once into frozen types. Units are in the names.

Every setting has a default that serves one team on one machine; a file that has none of them is valid.
"""

import os
import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from onetrip.errors import BadRequest
from onetrip.model import Effect, Level, Limits

Role = Literal["admin", "user", "reader"]  # manages tenants and sees all · runs its tenant's programs · only looks
LOCAL_TENANT: Final = "default"  # the one that exists before anybody made another


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one tenant may have at once, or use in a day (UTC). None: as much as the machine gives."""

    sessions: int | None = None
    concurrent_runs: int | None = None  # those that wait for a slot included
    requests_per_s: float | None = None  # bursts of twice as many
    cpu_s_per_day: float | None = None
    memory_mb: int | None = None  # sum of `limits.memory_mb` of its live sessions and running one-shots
    disk_mb: int | None = None  # the same for `limits.disk_mb`


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The highest limits that a request may ask for."""

    wall_s: float = 3600.0
    cpu_s: float = 3600.0
    memory_mb: int = 8192
    processes: int = 512
    disk_mb: int = 8192
    output_mb: int = 64
    tool_calls: int = 10_000


class Otel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OpenTelemetry by OTLP; off unless an endpoint is set here or by the standard variables."""

    endpoint: str | None = None
    headers: dict[str, str] = {}
    service_name: str = "onetrip"
    sample_ratio: float = 1.0  # of runs that get spans
    capture_content: bool = False  # code and output in spans: they are sensitive


class ToolOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is changed of tools whose names match, whatever they say of themselves. None: nothing."""

    enabled: bool = True
    effect: Effect | None = None
    approval: Literal["never", "required"] | None = None
    timeout_s: float | None = None  # of one call, waiting for its turn included
    concurrency: int | None = None  # calls at once
    rate: float | None = None  # calls per second
    max_result_bytes: int | None = None


class OpenApiTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operations of an OpenAPI 3 document as tools. In values `${NAME}` is a variable of the process that serves."""

    name: str  # the namespace
    document: str  # a path, or an address that is read when the server starts
    base_url: str | None = None  # None: as the document says, if that is its own host
    headers: dict[str, str] = {}  # sent with every request
    query: dict[str, str] = {}  # the same, for parameters in the query
    only: tuple[str, ...] = ()  # names or patterns of the operations to take; (): all


class McpTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tools of an MCP server: of a program (`command`) or at an address (`url`). `${NAME}` as above."""

    name: str  # the namespace
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}  # all that the program gets; PATH too, if it needs one
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    only: tuple[str, ...] = ()


class Tools(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The server's own tools, which programs may call."""

    functions: tuple[str, ...] = ()  # "module:function", or "module" for all that are marked with @onetrip.tool
    python_path: tuple[str, ...] = ()  # folders in which these modules are looked for, before others
    entry_points: bool = False  # those that installed packages register as `onetrip.tools`
    openapi: tuple[OpenApiTools, ...] = ()
    mcp: tuple[McpTools, ...] = ()
    options: dict[str, ToolOptions] = {}  # by name or pattern, such as "shop.*"; later ones win


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8400
    data_dir: str | None = None  # database and sockets; None: in the user's data folder
    environment: str = "default"  # warmed up at the start
    isolation_floor: Level = "strict"  # of what is warmed up; each request may name its own
    warm: int = 4  # sandboxes kept ready per kind
    lease_s: float = 3600.0  # how long sessions live on after a server that died
    max_sessions: int = 2000  # of all tenants together
    max_running: int | None = None  # programs at once; None: four per CPU
    max_queue: int = 256  # runs that wait for their turn; more are refused at once
    queue_timeout_s: float = 30.0  # a run that waited so long is refused
    idle_timeout_s: float = 1800.0  # of a session that does not say
    min_free_memory_mb: int = 512  # below it, sessions idle for longest end
    min_idle_s: float = 10.0  # a session that was used so recently does not end for memory
    keep_results_s: float = 24 * 3600.0  # how long a finished run can be fetched
    audit_runs: bool = True  # a line in the audit log for each run; without, only for sessions, keys and what is refused
    max_body_mb: int = 64  # of a JSON request
    head_s: float = 20.0  # for the head of a request to arrive; then the connection is closed
    stall_s: float = 60.0  # for a JSON body to arrive; also in which nothing of a file or an answer is sent or taken
    drain_s: float = 30.0  # after SIGTERM, for runs that are on their way
    keep_sessions: bool = False  # after SIGTERM they live on for `lease_s`, for the server that is started next
    allowed_hosts: tuple[str, ...] = ()  # names under which clients may reach us, beside the address we listen on
    allowed_origins: tuple[str, ...] = ()  # web pages that may call us
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_content: bool = False  # code and output in logs
    limits: Limits = Limits()  # of a request that does not say
    caps: Caps = Caps()
    quota: Quota = Quota()  # of a tenant that has none of its own
    otel: Otel = Otel()
    tools: Tools = Tools()


def load(path: Path | None) -> Settings:
    """Settings from a TOML file; the defaults without one. Raises BadRequest that names the field."""
    if path is None:
        return Settings()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise BadRequest(f"the configuration {os.fspath(path)!r} cannot be read: {err.strerror}", field="config") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise BadRequest(f"the configuration {os.fspath(path)!r} is not TOML: {err}", field="config") from err
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as err:
        raise BadRequest(
            f"the configuration {os.fspath(path)!r}: {err}", field="config", hint="docs/serve.md lists every setting."
        ) from err
