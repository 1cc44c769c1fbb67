"""What the service tells, as telemetry wants it: one span and one count per run, reasons from a short list, log lines without content."""

import msgspec

from onetrip import model
from onetrip.errors import OnetripError
from onetrip.model import ToolAnswer, ToolRequest
from onetrip.node.messages import Statistics
from onetrip.service.observer import EndKind
from onetrip.service.records import Facts, Run, Session
from onetrip.service.service import Service
from onetrip.telemetry import RunSpan, Snapshot, Telemetry

_results = msgspec.json.Decoder(model.Result)


class Observing:
    """The service's `Observer`."""

    def __init__(self, telemetry: Telemetry, *, content: bool) -> None:
        self._telemetry, self._content = telemetry, content
        self._spans: dict[str, RunSpan] = {}

    def run_began(self, run: Run, code: str) -> None:
        span = self._telemetry.run_span(run_id=run.id, session_id=run.session_id, tenant=run.meta.tenant, code=code)
        self._spans[run.id] = span.__enter__()

    def run_finished(self, run: Run, facts: Facts, data: bytes) -> None:
        result = _results.decode(data) if self._content else _without_content(facts)
        if (span := self._spans.pop(run.id, None)) is not None:
            span.done(result)
            span.__exit__(None, None, None)
        self._telemetry.log.info(
            "run",
            run_id=run.id,
            session_id=run.session_id,
            tenant=run.meta.tenant,
            status=facts.status,
            duration_ms=facts.usage.wall_ms,
            limit=facts.limit.name if facts.limit else None,
        )

    def tool_called(self, request: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
        outcome = "ok" if answer.error is None else answer.error.type
        self._telemetry.tool_called(request.tool, outcome, seconds)
        self._telemetry.log.info(
            "tool", run_id=request.run_id, session_id=request.session_id, code=outcome, tool=request.tool, call_id=request.id,
            duration_ms=round(seconds * 1e3, 3),
        )  # fmt: skip

    def answers_refused(self, run_id: str, error: OnetripError) -> None:
        self._telemetry.answers_refused(error.code)
        self._telemetry.log.warning("answers refused", run_id=run_id, code=error.code)

    def run_failed(self, run: Run, error: OnetripError) -> None:
        if (span := self._spans.pop(run.id, None)) is not None:
            span.__exit__(type(error), error, None)
        self._telemetry.refused(error.code)
        self._telemetry.log.warning(
            "run failed", run_id=run.id, session_id=run.session_id, tenant=run.meta.tenant, code=error.code
        )

    def not_saved(self, error: OnetripError) -> None:
        self._telemetry.exception(error, "result not saved")

    def session_opened(self, session: Session) -> None:
        self._telemetry.session_opened()
        self._telemetry.log.info("session opened", session_id=session.id, tenant=session.meta.tenant)

    def session_ended(self, session: Session, kind: EndKind, reason: str) -> None:
        self._telemetry.session_ended(kind)
        self._telemetry.log.info("session ended", session_id=session.id, tenant=session.meta.tenant, code=kind, reason=reason)


def snapshot(service: Service, statistics: Statistics | None) -> Snapshot:
    """What is now, for gauges."""
    stats = service.admission.stats()
    return Snapshot(
        sessions=stats.sessions,
        running=stats.running,
        queued=stats.queued,
        node_up=service.nodes.ready is None,
        node_restarts=service.nodes.restarts,
        node_memory_bytes=0 if statistics is None else statistics.memory_bytes,
        node_kept_bytes=0 if statistics is None else statistics.log_bytes,
        pool={} if statistics is None else {"warm": statistics.warm},
    )


def _without_content(facts: Facts) -> model.Result:
    return model.Result(
        id=facts.id,
        session_id=facts.session_id,
        status=facts.status,
        error=facts.error,
        limit=facts.limit,
        session=facts.session,
        usage=facts.usage,
        isolation=facts.isolation,
    )
