"""One run as telemetry sees it: what its span says, how its failure is called, and what is counted when it ends.

The names of attributes are those of OpenTelemetry's conventions for GenAI (repository `semantic-conventions-genai`, status
Development), which left the Python package; so they are written out here. What only a sandbox has is under `sandbox.`.
"""

import builtins
import json
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol, Self

from onetrip.model import Result
from onetrip.telemetry.metrics import Metrics

TOOL: Final = "run_python"
SPAN_NAME: Final = f"execute_tool {TOOL}"
TOOL_ATTRIBUTES: Final[Mapping[str, str]] = {
    "gen_ai.operation.name": "execute_tool",
    "gen_ai.tool.name": TOOL,
    "gen_ai.tool.type": "extension",
}
MAX_ATTRIBUTE: Final = 4095  # characters; more is refused by some receivers
OTHER_ERROR: Final = "_OTHER"  # the convention's word for an error outside of a known set
Value = str | bool | int | float
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}", re.ASCII)
_OURS: Final = frozenset({"ProcessDied", "ProtocolViolation", "SandboxLost", "LimitExceeded"})
_BUILTIN: Final = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
_LIMITS: Final[Mapping[str, str]] = {"wall": "timeout", "memory": "oom"}  # others by their own name


class Span(Protocol):
    """A span that has begun. `recording` is false when nobody would see its attributes."""

    @property
    def recording(self) -> bool: ...
    def set(self, attributes: Mapping[str, Value]) -> None: ...
    def end(self, end_ns: int, error: str | None) -> None: ...


class Tracer(Protocol):
    """What a run needs of tracing; `otlp.Otlp` is the one that sends."""

    @property
    def capture_content(self) -> bool: ...
    def run(self, start_ns: int) -> Span: ...
    def run_ended(self, seconds: float, error: str | None) -> None: ...


class RunSpan:
    """`with telemetry.run_span(…) as span: …; span.done(result)`. May be entered in one task and left in another.

    Without `done` the run counts as aborted, with the exception's class as the error.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracer: Tracer | None,
        *,
        run_id: str,
        session_id: str | None,
        tenant: str,
        environment: str,
        code: str,
        call_id: str | None,
    ) -> None:
        self._metrics, self._tracer = metrics, tracer
        self._about = run_id, session_id, tenant, environment, code, call_id
        self._span: Span | None = None
        self._result: Result | None = None
        self._started = self._start_ns = 0

    def __enter__(self) -> Self:
        self._started = time.perf_counter_ns()
        if self._tracer is not None:
            self._start_ns = time.time_ns()
            self._span = self._tracer.run(self._start_ns)
        return self

    def done(self, result: Result) -> None:
        self._result = result

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        took_ns = time.perf_counter_ns() - self._started
        result, tenant = self._result, self._about[2]
        if result is None:
            self._metrics.aborted(tenant)
        else:
            self._metrics.run(result, tenant, took_ns / 1e9)
        if self._tracer is None or self._span is None:
            return
        name = (kind.__name__ if kind is not None else "aborted") if result is None else error_type(result)
        if self._span.recording:
            self._describe(self._span, result, content=self._tracer.capture_content)
        self._span.end(self._start_ns + took_ns, name)
        self._tracer.run_ended(took_ns / 1e9, name if name is None or result is None else known_error(result))

    def _describe(self, span: Span, result: Result | None, *, content: bool) -> None:
        run_id, session_id, tenant, environment, code, call_id = self._about
        attributes: dict[str, Value] = {
            "code.language": "python",
            "sandbox.run.id": run_id,
            "sandbox.tenant": tenant,
            "sandbox.environment": environment,
        }
        if session_id is not None:
            attributes["sandbox.id"] = session_id
        if call_id is not None:
            attributes["gen_ai.tool.call.id"] = call_id
        if content:
            attributes["gen_ai.tool.call.arguments"] = fitted({"code": code})
        if result is not None:
            attributes |= described(result)
            if content:
                said = {"status": result.status, "text": result.text or "", "stdout": result.stdout, "stderr": result.stderr}
                if result.error is not None:
                    said["error"] = f"{result.error.type}: {result.error.message}"
                attributes["gen_ai.tool.call.result"] = fitted(said)
        span.set(attributes)


def described(result: Result) -> dict[str, Value]:
    """What a span says of a result; nothing of it is code or output."""
    usage = result.usage
    attributes: dict[str, Value] = {
        "sandbox.status": result.status,
        "sandbox.tier": result.isolation.tier,
        "sandbox.level": result.isolation.level,
        "sandbox.wall_ms": usage.wall_ms,
        "sandbox.cpu_ms": usage.cpu_ms,
        "sandbox.queue_ms": usage.queue_ms,
        "sandbox.start_ms": usage.start_ms,
        "sandbox.memory_peak_bytes": usage.peak_memory_bytes,
        "sandbox.output_bytes": usage.output_bytes,
        "sandbox.timed_out": result.limit is not None and result.limit.name == "wall",
        "sandbox.rolled_back": result.session.rolled_back,
        "sandbox.survived": result.session.survived,
    }
    if result.limit is not None:
        attributes["sandbox.limit"] = result.limit.name
    return attributes


def error_type(result: Result) -> str | None:
    """How a run failed: `timeout`, `oom`, another limit's name, `interrupted`, `lost`, or the class that the program raised.

    The class's name is the program's word: what is no name, or a long one, is `_OTHER`.
    """
    if result.limit is not None:
        return _LIMITS.get(result.limit.name, result.limit.name)
    if result.status in {"completed", "waiting"}:
        return None
    if result.status in {"interrupted", "lost"}:
        return result.status
    name = result.error.type if result.error is not None else ""
    return name if _NAME.fullmatch(name) else OTHER_ERROR


def known_error(result: Result) -> str | None:
    """The same for a label, of which there must be few: classes that a program made up are `_OTHER`."""
    name = error_type(result)
    if name is None or result.status != "failed" or name in _BUILTIN or name in _OURS:
        return name
    return OTHER_ERROR


def fitted(texts: dict[str, str]) -> str:
    """The texts as JSON that no receiver cuts: the longest of them is shortened until all fit."""
    kept = {name: text if len(text) <= MAX_ATTRIBUTE else f"{text[:MAX_ATTRIBUTE]}…" for name, text in texts.items()}
    while len(said := json.dumps(kept, ensure_ascii=False)) > MAX_ATTRIBUTE:
        longest = max(kept, key=lambda name: len(kept[name]))
        kept[longest] = f"{kept[longest][: len(kept[longest]) * 3 // 4]}…"
    return said.encode("utf-8", "replace").decode("utf-8")
