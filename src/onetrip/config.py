"""The only reader of the process's environment variables: every variable is declared here, once.

Everybody else receives values. Each function takes the mapping it reads, so that tests need not change the real one.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from onetrip.errors import Unavailable

# name → meaning. `docs/` lists exactly these; a test compares.
VARIABLES: Final[Mapping[str, str]] = {
    "ONETRIP_HOME": "Folder for environments. Default: share/onetrip of the installation if there is one, else the user's data folder.",
    "ONETRIP_DATA": "Folder for the server's database and sockets, if its configuration names none. Default: server in the user's data folder.",
    "ONETRIP_URL": "Where `onetrip.connect()` finds the server, if it is not told. Default: http://127.0.0.1:8400.",
    "ONETRIP_TOKEN": "The key that `onetrip.connect()` sends, if it is not told.",
    "XDG_DATA_HOME": "The user's data folder, as the XDG base directory specification has it. Default: ~/.local/share.",
    "HOME": "The user's home folder.",
    "UV_CACHE_DIR": "Folder in which uv keeps downloads between builds. Default: none are kept.",
    "OTEL_SDK_DISABLED": "`true`: no OpenTelemetry, whatever else is set.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Where a server sends traces and metrics, without `/v1/…`. Default: `otel.endpoint` of onetrip.toml.",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "The whole address for traces. Default: the endpoint, with `/v1/traces`.",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "The whole address for metrics. Default: the endpoint, with `/v1/metrics`.",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "Only `http/protobuf`, which is the default.",
    "OTEL_EXPORTER_OTLP_HEADERS": "Headers of what is sent, `name=value,…`, values percent-encoded. They come after those of onetrip.toml and win.",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "`gzip` (the default), `deflate` or `none`.",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "`cumulative` (the default), `delta` or `lowmemory`.",
    "OTEL_METRIC_EXPORT_INTERVAL": "Milliseconds between two exports of metrics. Default: 60000.",
    "OTEL_SERVICE_NAME": "The name of this service. Default: `otel.service_name` of onetrip.toml.",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "`true`: code and output in spans. Default: `otel.capture_content` of onetrip.toml.",
}


class OtelVariables(NamedTuple):
    """What OpenTelemetry's standard variables say, as text; None for one that is unset or empty. Whoever uses it checks it."""

    disabled: bool
    endpoint: str | None
    traces_endpoint: str | None
    metrics_endpoint: str | None
    protocol: str | None
    headers: str | None
    compression: str | None
    temporality: str | None
    interval_ms: str | None
    service_name: str | None
    capture_content: str | None


def homes(environ: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> tuple[Path, ...]:
    """Folders that may hold environments, in the order in which they are searched. May be empty; none need exist.

    `ONETRIP_HOME` stands alone when it is set: who names a folder means that one.  Otherwise the installation's own folder
    comes first (`make` puts the default environment there, so that `.venv/bin/onetrip` finds it from any shell), then the
    user's, so that a user who may not write to the installation still adds environments of their own.
    """
    named = environ.get("ONETRIP_HOME", "")
    if named:
        return (Path(os.path.abspath(named)),)
    installation = Path(prefix) / "share" / "onetrip"
    found = [installation] if installation.is_dir() else []
    user = _user_data(environ)
    return tuple(found if user is None else [*found, user])


def writable_home(environ: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> Path:
    """The first of `homes` that we can write to, made if it is missing. Raises Unavailable that says why none is."""
    refused: list[str] = []
    for home in homes(environ, prefix):
        try:
            home.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as err:
            refused.append(f"{home}: {err.strerror}")
            continue
        if os.access(home, os.W_OK | os.X_OK):
            return home
        refused.append(f"{home}: not writable for this user")
    why = "; ".join(refused) or "neither HOME nor XDG_DATA_HOME is set"
    raise Unavailable(
        f"There is no folder to keep environments in ({why}).",
        hint="Set ONETRIP_HOME to a folder that you can write to.",
        field="ONETRIP_HOME",
    )


def data_dir(configured: str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the server's data, made for this user alone if it is missing: as configured, else `ONETRIP_DATA`, else
    in the user's data folder. Raises Unavailable that says why there is none.
    """
    named = configured or environ.get("ONETRIP_DATA", "")
    user = _user_data(environ)
    if named:
        folder = Path(os.path.abspath(named))
    elif user is not None:
        folder = user / "server"
    else:
        raise _no_data_dir("neither HOME nor XDG_DATA_HOME is set")
    try:
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise _no_data_dir(f"{folder}: {err.strerror}") from err
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _no_data_dir(f"{folder}: not writable for this user")
    return folder


def _no_data_dir(why: str) -> Unavailable:
    return Unavailable(
        f"There is no folder to keep the server's data in ({why}).",
        hint="Set `data_dir` in onetrip.toml, or ONETRIP_DATA, to a folder that you can write to.",
        field="data_dir",
    )


def history_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where `onetrip shell` remembers its lines: with the user's own data and for that user alone. None: nowhere."""
    folder = _user_data(environ)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / "shell-history", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:  # a read-only home is no reason not to have a shell
        return None
    return folder / "shell-history"


def _user_data(environ: Mapping[str, str]) -> Path | None:
    data = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data):  # the specification: "all paths must be absolute … consider [others] invalid and ignore"
        return Path(data) / "onetrip"
    home = environ.get("HOME", "")
    return Path(home) / ".local" / "share" / "onetrip" if os.path.isabs(home) else None


def client(environ: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """Address and key of the server that `connect()` means."""
    return environ.get("ONETRIP_URL") or None, environ.get("ONETRIP_TOKEN") or None


def node_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the node: those that say where environments are, and nothing else. A sandbox gets none of them."""
    return {name: environ[name] for name in ("ONETRIP_HOME", "XDG_DATA_HOME", "HOME") if name in environ}


def builder_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the tools that build an environment: all of the caller's, for these are trusted programs that need
    the caller's proxies, mirrors and certificates. A sandbox gets none of them.
    """
    kept = {name: value for name, value in environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    kept["UV_NO_PROGRESS"] = "1"  # we show the progress
    return kept


def builder_cache(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where uv may keep its downloads, if the user named a place. None: a build keeps nothing."""
    return environ.get("UV_CACHE_DIR") or None


def expanded(text: str, *, field: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text of a configuration with `${NAME}` replaced by that variable, so that secrets need not stand in the file.

    Raises Unavailable that names a variable which is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in environ:
            raise Unavailable(
                f"{field}: the configuration names the variable {name}, which is not set.",
                hint=f"Set {name} for the process that serves.",
                field=field,
            )
        return environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)


def otel(environ: Mapping[str, str] = os.environ) -> OtelVariables:
    """The variables of OpenTelemetry that we know. Its SDK reads others itself: certificates, time-outs, sizes of batches."""
    return OtelVariables(
        disabled=environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
        endpoint=environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        traces_endpoint=environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or None,
        metrics_endpoint=environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or None,
        protocol=environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or None,
        headers=environ.get("OTEL_EXPORTER_OTLP_HEADERS") or None,
        compression=environ.get("OTEL_EXPORTER_OTLP_COMPRESSION") or None,
        temporality=environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE") or None,
        interval_ms=environ.get("OTEL_METRIC_EXPORT_INTERVAL") or None,
        service_name=environ.get("OTEL_SERVICE_NAME") or None,
        capture_content=environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT") or None,
    )
