"""Where OTLP goes, as configured: `[otel]` of onetrip.toml, over which the standard variables win. Checked once, here."""

import math
from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import msgspec

from onetrip.config import OtelVariables
from onetrip.errors import BadRequest
from onetrip.settings import Otel

_COMPRESSIONS: Final = ("gzip", "deflate", "none")
_TEMPORALITIES: Final = ("cumulative", "delta", "lowmemory")


class OtlpSettings(msgspec.Struct, frozen=True, kw_only=True):
    traces_endpoint: str | None
    metrics_endpoint: str | None
    headers: dict[str, str]
    compression: str
    temporality: str
    interval_ms: float
    service_name: str
    sample_ratio: float
    capture_content: bool

    def __repr__(self) -> str:  # headers hold keys
        return f"OtlpSettings(traces_endpoint={self.traces_endpoint!r}, metrics_endpoint={self.metrics_endpoint!r})"


def resolve(otel: Otel, variables: OtelVariables) -> OtlpSettings | None:
    """What to send and where; None: nothing. Raises BadRequest that names the setting or the variable."""
    if variables.disabled:
        return None
    base = variables.endpoint or otel.endpoint
    named = "OTEL_EXPORTER_OTLP_ENDPOINT" if variables.endpoint else "otel.endpoint"
    traces = _address(variables.traces_endpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _address(base, named, "/v1/traces")
    metrics = _address(variables.metrics_endpoint, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or _address(base, named, "/v1/metrics")
    if traces is None and metrics is None:
        return None
    if variables.protocol not in {None, "http/protobuf"}:
        raise BadRequest(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {variables.protocol!r}; we speak http/protobuf only",
            field="OTEL_EXPORTER_OTLP_PROTOCOL",
            hint="Name the collector's HTTP port (usually 4318) as the endpoint, and unset the variable.",
        )
    if not 0 <= otel.sample_ratio <= 1:
        raise BadRequest(f"otel.sample_ratio is {otel.sample_ratio:g}; it is a share, from 0 to 1", field="otel.sample_ratio")
    capture = variables.capture_content
    return OtlpSettings(
        traces_endpoint=traces,
        metrics_endpoint=metrics,
        headers=_checked({**otel.headers, **_headers(variables.headers or "")}),
        compression=_one_of(variables.compression, _COMPRESSIONS, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        temporality=_one_of(variables.temporality, _TEMPORALITIES, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"),
        interval_ms=_milliseconds(variables.interval_ms),
        service_name=variables.service_name or otel.service_name,
        sample_ratio=otel.sample_ratio,
        capture_content=otel.capture_content if capture is None else capture.strip().lower() in {"true", "1"},
    )


def _address(endpoint: str | None, named: str, path: str = "") -> str | None:
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadRequest(f"{named} is {endpoint!r}, which is no http:// or https:// address", field=named)
    return f"{endpoint.rstrip('/')}{path}" if path else endpoint


def _headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, values percent-encoded, as the specification of OTLP's exporters has it."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:  # not shown: it may be a key that lost its name
            raise BadRequest("OTEL_EXPORTER_OTLP_HEADERS has a part without `=`", field="OTEL_EXPORTER_OTLP_HEADERS")
        found[name.strip()] = unquote(value.strip())
    return found


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and name and " " not in name) or not value.isprintable():
            raise BadRequest("a header for OTLP has characters that no header may have", field="otel.headers")
    return dict(headers)


def _one_of(value: str | None, known: tuple[str, ...], named: str) -> str:
    said = known[0] if value is None else value.strip().lower()
    if said not in known:
        raise BadRequest(f"{named} is {value!r}; it can be {', '.join(known)}", field=named)
    return said


def _milliseconds(value: str | None) -> float:
    try:
        found = 60_000.0 if value is None else float(value)
    except ValueError:
        found = math.nan
    if not 1 <= found <= 86_400_000:
        raise BadRequest(
            f"OTEL_METRIC_EXPORT_INTERVAL is {cast('str', value)!r}; it is milliseconds", field="OTEL_METRIC_EXPORT_INTERVAL"
        )
    return found
