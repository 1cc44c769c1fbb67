"""Traces and metrics by OTLP: the only file that imports OpenTelemetry, and only when an endpoint is configured.

Nothing here touches OpenTelemetry's global providers, so that the program we are embedded in keeps its own. Everything that
waits for the network does so in the SDK's threads.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client.metrics import MetricWrapperBase

from onetrip.telemetry.metrics import METHODS, Metrics, Numbers
from onetrip.telemetry.otlp_settings import OtlpSettings
from onetrip.telemetry.runs import MAX_ATTRIBUTE, SPAN_NAME, TOOL, TOOL_ATTRIBUTES, Value

TOOL_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
HTTP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_CONTENT_BATCH: Final = 64  # spans with content in one request: some receivers take no more than 1 MB
_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_log: Final = logging.getLogger("opentelemetry.onetrip")


class Spanned:
    """A span that has begun. `end` may be called in another task than the one that began it."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.recording = span.is_recording()

    def set(self, attributes: Mapping[str, Value]) -> None:
        # one lone surrogate would cost the whole batch of spans
        self.span.set_attributes({name: _clean(value) if isinstance(value, str) else value for name, value in attributes.items()})

    def end(self, end_ns: int, error: str | None) -> None:
        if error is not None and self.recording:
            self.span.set_attribute("error.type", error)
            self.span.set_status(trace.StatusCode.ERROR)
        self.span.end(end_ns)

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    @contextmanager
    def current(self) -> Generator[None]:
        """Spans that begin inside are children of this one. To be left in the task that entered it."""
        token = otel_context.attach(trace.set_span_in_context(self.span))
        try:
            yield
        finally:
            otel_context.detach(token)


class Otlp:
    """Sends what happens to a collector. See `runs.Tracer` for what runs need of it."""

    def __init__(self, settings: OtlpSettings, metrics: Metrics) -> None:
        self.capture_content = settings.capture_content
        about = {"service.name": settings.service_name, "service.version": version("onetrip")}
        resource = Resource.create({**about, "service.instance.id": secrets.token_hex(8)})
        compression = Compression(settings.compression)
        self._traces: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._record_tool: Callable[[float, Mapping[str, str]], None] | None = None
        self._record_http: Callable[[float, Mapping[str, Value]], None] | None = None
        if settings.traces_endpoint is not None:
            spans = OTLPSpanExporter(settings.traces_endpoint, headers=settings.headers, compression=compression)
            self._traces = TracerProvider(
                sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
                resource=resource,
                shutdown_on_exit=False,  # `aclose` does it, with a deadline
                span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE, max_span_attribute_length=MAX_ATTRIBUTE),
            )
            batch = _CONTENT_BATCH if settings.capture_content else None
            self._traces.add_span_processor(BatchSpanProcessor(spans, max_export_batch_size=batch))
            self._tracer = self._traces.get_tracer("onetrip", version("onetrip"))
        if settings.metrics_endpoint is not None:
            sums = OTLPMetricExporter(
                settings.metrics_endpoint,
                headers=settings.headers,
                compression=compression,
                preferred_temporality=_temporality(settings.temporality),
            )
            reader = PeriodicExportingMetricReader(sums, settings.interval_ms)
            self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
            self._instruments(self._meters.get_meter("onetrip", version("onetrip")), metrics)

    def _instruments(self, meter: Meter, metrics: Metrics) -> None:
        for counter in metrics.counters:
            meter.create_observable_counter(*_named(counter))
        for gauge in metrics.gauges:
            meter.create_observable_gauge(*_named(gauge))
        for timing in metrics.timings:
            name, text = _described(timing.histogram)
            timing.export = meter.create_histogram(
                name, timing.unit, text, explicit_bucket_boundaries_advisory=timing.buckets
            ).record
        tool = "gen_ai.execute_tool.duration"
        self._record_tool = meter.create_histogram(
            tool, "s", "Duration of tool execution.", explicit_bucket_boundaries_advisory=TOOL_SECONDS
        ).record
        self._record_http = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=HTTP_SECONDS,
        ).record

    # ------------------------------------------------------------------ spans

    def run(self, start_ns: int) -> Spanned:
        """The span of one run, a child of the request that the task works for."""
        return Spanned(
            self._tracer.start_span(SPAN_NAME, kind=trace.SpanKind.INTERNAL, attributes=TOOL_ATTRIBUTES, start_time=start_ns)
        )

    def run_ended(self, seconds: float, error: str | None) -> None:
        if self._record_tool is not None:
            attributes = {"gen_ai.tool.name": TOOL, "gen_ai.tool.type": TOOL_ATTRIBUTES["gen_ai.tool.type"]}
            self._record_tool(seconds, attributes if error is None else {**attributes, "error.type": error})

    def request(self, method: str, headers: Iterable[tuple[bytes, bytes]], start_ns: int) -> Spanned:
        """The span of one request; it continues the caller's trace if the caller has one."""
        carrier = {name.decode("ascii"): value.decode("latin-1") for name, value in headers if name in _TRACE_HEADERS}
        parent = _PROPAGATOR.extract(carrier) if carrier else None
        return Spanned(
            self._tracer.start_span(
                method if method in METHODS else "HTTP", context=parent, kind=trace.SpanKind.SERVER, start_time=start_ns
            )
        )

    def request_ended(
        self, span: Spanned, *, end_ns: int, seconds: float, method: str, route: str, scope: Mapping[str, Any], status: int
    ) -> None:
        known = method if method in METHODS else "_OTHER"
        attributes: dict[str, Value] = {"http.request.method": known, "http.route": route, "http.response.status_code": status}
        error = str(status) if status >= 500 else None
        if self._record_http is not None:
            self._record_http(seconds, attributes if error is None else {**attributes, "error.type": error})
        if span.recording:
            span.span.update_name(f"{method if method in METHODS else 'HTTP'} {route}")
            attributes |= {
                "url.scheme": str(scope.get("scheme", "http")),
                "url.path": str(scope.get("path", "")),
                "network.protocol.version": str(scope.get("http_version", "")),
            }
            if known == "_OTHER":
                attributes["http.request.method_original"] = method
            span.set(attributes)
        span.end(end_ns, error)

    # ------------------------------------------------------------------ the end

    async def aclose(self, deadline_s: float) -> bool:
        """Send what is left, for as long as the deadline allows. Whether all of it could be."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        ends: list[Callable[[], None]] = []
        if self._traces is not None:
            ends.append(self._traces.shutdown)
        if self._meters is not None:
            ends.append(partial(self._meters.shutdown, deadline_s * 1000))
        left = len(ends)

        def ended() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        def end(shut_down: Callable[[], None]) -> None:
            try:
                shut_down()
            except Exception:  # noqa: BLE001 -- the outermost shell of a thread; the SDK raises bare Exceptions
                _log.warning("what was left could not be sent", exc_info=True)
            try:
                loop.call_soon_threadsafe(ended)
            except RuntimeError:
                pass  # the deadline passed, and the loop is closed

        for (
            shut_down
        ) in ends:  # side by side, and as daemons, so that a collector that hangs holds up neither the other nor the process
            threading.Thread(target=end, args=(shut_down,), name="onetrip-telemetry-end", daemon=True).start()
        try:
            async with asyncio.timeout(deadline_s):
                await done.wait()
        except TimeoutError:
            return False
        return True


Instrument = tuple[str, list[Callable[[CallbackOptions], Iterable[Observation]]], str, str]


def _named(numbers: Numbers[Any]) -> Instrument:
    """Name, callback, unit and description of an instrument that reads one of our families."""
    name, text = _described(numbers.family)

    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, labels) for value, labels in numbers.values()]

    return name, [read], numbers.unit, text


def _described(family: MetricWrapperBase) -> tuple[str, str]:
    """Name and description for OpenTelemetry: `onetrip_runs` is `onetrip.runs`."""
    described = next(iter(family.describe()))
    return described.name.replace("onetrip_", "onetrip.", 1), described.documentation


def _temporality(preference: str) -> dict[type, AggregationTemporality]:
    delta, cumulative = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE
    sync, observed = {"cumulative": (cumulative, cumulative), "lowmemory": (delta, cumulative), "delta": (delta, delta)}[
        preference
    ]
    return {Counter: sync, Histogram: sync, ObservableCounter: observed}


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")[:MAX_ATTRIBUTE]
