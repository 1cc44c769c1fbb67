"""The server's numbers: plain counters in this process, read by `/metrics` and by OpenTelemetry's instruments alike.

Counting costs well under a microsecond: children are looked up once and kept. Every label has few values, whatever callers
and programs do: sets that we do not know beforehand are `Bounded`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Final, Generic, Literal, TypeVar, get_args

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from onetrip.errors import STATUS
from onetrip.model import Result

OTHER: Final = "other"
MAX_TENANTS: Final = 20
MAX_ROUTES: Final = 100
MAX_TOOLS: Final = 200
MAX_EXCEPTIONS: Final = 50
MAX_ENVIRONMENTS: Final = 20
Ended = Literal["closed", "idle", "memory", "lost", "lease", "drained", "failed"]
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
Family = TypeVar("Family", Counter, Gauge)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand: what the service knows of itself and of its node. `pool` is by environment and level of imports."""

    sessions: int = 0
    running: int = 0
    queued: int = 0
    node_up: bool = True
    node_restarts: int = 0  # since this server started
    node_memory_bytes: int = 0
    node_kept_bytes: int = 0  # of these the events of finished runs
    pool: Mapping[str, int] = {}


class Bounded:
    """Label values that are not known beforehand: the first `size` keep their names, the rest are `other`."""

    def __init__(self, size: int) -> None:
        self._size, self._known = size, set[str]()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._size or len(value) > 128 or not value.isprintable():
            return OTHER
        self._known.add(value)
        return value


class Numbers(Generic[Family]):
    """A counter or gauge with labels, whose children are looked up once each."""

    def __init__(self, family: Family, unit: str) -> None:
        self.family: Family = family
        self.unit = unit
        self._children: dict[tuple[str, ...], Family] = {}

    def __call__(self, *labels: str) -> Family:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self.family.labels(*labels) if labels else self.family
        return child

    def known(self) -> set[tuple[str, ...]]:
        return set(self._children)

    def values(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        for metric in self.family.collect():
            for sample in metric.samples:
                if not sample.name.endswith("_created"):
                    yield sample.value, sample.labels


class Timing:
    """A histogram, in seconds or bytes. `export` is OpenTelemetry's recorder of the same, when that is on."""

    def __init__(self, histogram: Histogram, unit: str, buckets: tuple[float, ...]) -> None:
        self.histogram, self.unit, self.buckets = histogram, unit, buckets
        self.export: Callable[[float], None] | None = None

    def observe(self, value: float) -> None:
        self.histogram.observe(value)
        if self.export is not None:
            self.export(value)


class Metrics:
    """All of them, in a registry of their own. `docs/telemetry.md` lists them; a test compares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.counters: list[Numbers[Counter]] = []
        self.gauges: list[Numbers[Gauge]] = []
        self.timings: list[Timing] = []
        ProcessCollector(registry=self.registry)
        self._gauge("build_info", "Always 1; the version is the label.", "1", "version")(version("onetrip")).set(1)

        self.requests = self._counter("http_requests", "HTTP requests answered.", "{request}", "route", "method", "status")
        self.request_seconds = Histogram(
            "onetrip_http_request_seconds",
            "Duration of HTTP requests, streams to their end.",
            ("route", "method"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = self._gauge("http_requests_in_flight", "HTTP requests not yet answered.", "{request}")
        self.bytes = self._counter("http_body_bytes", "Bytes of bodies, in from callers and out to them.", "By", "direction")
        self.refused = self._counter("refused", "Requests refused or failed, by the code of the error.", "{request}", "code")
        self.exceptions = self._counter("exceptions", "Exceptions that nobody expected: our faults.", "{exception}", "type")

        self.runs = self._counter(
            "runs", "Runs that ended; `aborted` ones have no result.", "{run}", "status", "limit", "tier", "level"
        )
        self.run_seconds = self._timing("run_seconds", "From a run's acceptance to its result.")
        self.run_wall = self._timing("run_wall_seconds", "What the program took, by our clock.")
        self.run_cpu = self._timing("run_cpu_seconds", "CPU time of the program and its children.")
        self.run_queue = self._timing("run_queue_seconds", "Waiting for a turn.")
        self.run_start = self._timing("run_start_seconds", "Until there was a sandbox.")
        self.run_output = self._counter("run_output_bytes", "What programs printed and displayed.", "By")
        self.tenant_runs = self._counter("tenant_runs", "Runs that ended, by tenant.", "{run}", "tenant")
        self.tenant_cpu = self._counter("tenant_cpu_seconds", "CPU time of programs, by tenant.", "s", "tenant")

        self.tool_calls = self._counter("tool_calls", "Calls of server tools that were answered.", "{call}", "tool", "outcome")
        self.tool_seconds = self._timing("tool_seconds", "What a call of a server tool took.")
        self.answers_refused = self._counter(
            "tool_answers_refused", "Answers to calls that were not taken: unknown, late, twice, too large.", "{request}", "code"
        )

        self.opened = self._counter("sessions_opened", "Sessions opened, branches included.", "{session}")
        self.ended = self._counter("sessions_ended", "Sessions that ended.", "{session}", "reason")
        self.sessions = self._gauge("sessions", "Live sessions.", "{session}")
        self.running = self._gauge("runs_running", "Runs that have a sandbox.", "{run}")
        self.queued = self._gauge("runs_queued", "Runs that wait for their turn.", "{run}")
        self.pool = self._gauge("pool_sandboxes", "Warm sandboxes that wait for work.", "{sandbox}", "kind")
        self.node_up = self._gauge("node_up", "1 while the node that holds the sessions answers.", "1")
        self.node_restarts = self._counter("node_restarts", "Nodes started anew after one was lost.", "{restart}")
        self.node_memory = self._gauge("node_memory_bytes", "Resident memory of the node.", "By")
        self.node_kept = self._gauge(
            "node_kept_bytes", "Events of saved runs that the node keeps for readers who come back.", "By"
        )
        self.log_dropped = self._counter("log_lines_dropped", "Log lines that their reader did not take.", "{line}")

        self.tenant, self.route = Bounded(MAX_TENANTS), Bounded(MAX_ROUTES)
        self.tool = Bounded(MAX_TOOLS)
        self._exception, self._kind = Bounded(MAX_EXCEPTIONS), Bounded(MAX_ENVIRONMENTS)
        self._request_seconds: dict[tuple[str, str], Histogram] = {}
        self._restarts_seen = self._dropped_seen = 0

    def _counter(self, name: str, text: str, unit: str, *labels: str) -> Numbers[Counter]:
        numbers = Numbers(Counter(f"onetrip_{name}", text, labels, registry=self.registry), unit)
        self.counters.append(numbers)
        return numbers

    def _gauge(self, name: str, text: str, unit: str, *labels: str) -> Numbers[Gauge]:
        numbers = Numbers(Gauge(f"onetrip_{name}", text, labels, registry=self.registry), unit)
        self.gauges.append(numbers)
        return numbers

    def _timing(self, name: str, text: str) -> Timing:
        timing = Timing(Histogram(f"onetrip_{name}", text, buckets=SECONDS, registry=self.registry), "s", SECONDS)
        self.timings.append(timing)
        return timing

    # ------------------------------------------------------------------ what happened

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        method = method if method in METHODS else OTHER
        self.requests(route, method, f"{status // 100}xx").inc()
        timed = self._request_seconds.get((route, method))
        if timed is None:
            timed = self._request_seconds[route, method] = self.request_seconds.labels(route, method)
        timed.observe(seconds)

    def run(self, result: Result, tenant: str, seconds: float) -> None:
        usage = result.usage
        limit = result.limit.name if result.limit is not None else "none"
        self.runs(result.status, limit, result.isolation.tier, result.isolation.level).inc()
        self.run_seconds.observe(seconds)
        self.run_wall.observe(usage.wall_ms / 1e3)
        self.run_cpu.observe(usage.cpu_ms / 1e3)
        self.run_queue.observe(usage.queue_ms / 1e3)
        self.run_start.observe(usage.start_ms / 1e3)
        self.run_output().inc(max(0, usage.output_bytes))
        name = self.tenant(tenant)
        self.tenant_runs(name).inc()
        self.tenant_cpu(name).inc(max(0.0, usage.cpu_ms / 1e3))

    def aborted(self, tenant: str) -> None:
        self.runs("aborted", "none", "none", "none").inc()
        self.tenant_runs(self.tenant(tenant)).inc()

    def refuse(self, code: str) -> None:
        self.refused(code if code in STATUS else OTHER).inc()

    def end_session(self, reason: str) -> None:
        self.ended(reason if reason in get_args(Ended) else OTHER).inc()

    def exception(self, error: BaseException) -> None:
        self.exceptions(self._exception(type(error).__name__)).inc()

    def observe(self, now: Snapshot) -> None:
        self.sessions().set(now.sessions)
        self.running().set(now.running)
        self.queued().set(now.queued)
        self.node_up().set(1 if now.node_up else 0)
        self.node_memory().set(now.node_memory_bytes)
        self.node_kept().set(now.node_kept_bytes)
        self.node_restarts().inc(max(0, now.node_restarts - self._restarts_seen))
        self._restarts_seen = max(self._restarts_seen, now.node_restarts)
        sizes: dict[str, int] = {}
        for kind, size in now.pool.items():
            name = self._kind(kind)
            sizes[name] = sizes.get(name, 0) + size
        for labels in {(name,) for name in sizes} | self.pool.known():
            self.pool(*labels).set(sizes.get(labels[0], 0))

    def observe_dropped(self, lines: int) -> None:
        self.log_dropped().inc(max(0, lines - self._dropped_seen))
        self._dropped_seen = max(self._dropped_seen, lines)

    # ------------------------------------------------------------------ /metrics

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of `/metrics` and its content type: OpenMetrics for who asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutBirthdays(self.registry)), content_type


class _WithoutBirthdays(Collector):
    """The registry without `_created` samples, which would double the series and tell nobody anything."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
