"""`Telemetry`: the one object through which the server counts, times, traces and logs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Self

from onetrip import config
from onetrip.errors import Unavailable
from onetrip.settings import Otel
from onetrip.telemetry import otlp_settings
from onetrip.telemetry.logs import LineHandler, Log
from onetrip.telemetry.metrics import Metrics, Snapshot
from onetrip.telemetry.runs import RunSpan

if TYPE_CHECKING:
    from onetrip.telemetry.otlp import Otlp

FLUSH_S: Final = 5.0


class Telemetry:
    """Counters always; spans and metrics by OTLP where an endpoint is configured. All methods are quick and never raise."""

    def __init__(self, otlp: "Otlp | None" = None, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.otlp = otlp
        self.log = Log()
        self._handler: LineHandler | None = None

    @classmethod
    def create(cls, otel: Otel, environ: Mapping[str, str] | None = None) -> Self:
        """Raises BadRequest for a setting that cannot be, Unavailable if an endpoint is set and the packages are missing."""
        settings = otlp_settings.resolve(otel, config.otel() if environ is None else config.otel(environ))
        metrics = Metrics()
        if settings is None:
            return cls(None, metrics)
        try:
            from onetrip.telemetry.otlp import Otlp  # noqa: PLC0415 -- an extra that only who configures it needs
        except ImportError as err:
            raise Unavailable(
                f"OpenTelemetry is configured, but its packages are missing ({err.name or err}).",
                hint="`pip install 'onetrip[otel]'`, or unset the endpoint.",
                field="otel.endpoint",
            ) from err
        return cls(Otlp(settings, metrics), metrics)

    def logs_to(self, handler: LineHandler) -> None:
        """The lines that this handler drops are counted."""
        self._handler = handler

    # ------------------------------------------------------------------ what happens

    def run_span(
        self,
        *,
        run_id: str,
        session_id: str | None,
        tenant: str,
        environment: str = "default",
        code: str = "",
        call_id: str | None = None,
    ) -> RunSpan:
        """Around one run, from its acceptance on; see `RunSpan`. `code` leaves this process only with `capture_content`."""
        return RunSpan(
            self.metrics,
            self.otlp,
            run_id=run_id,
            session_id=session_id,
            tenant=tenant,
            environment=environment,
            code=code,
            call_id=call_id,
        )

    def refused(self, code: str) -> None:
        """A request ended with an error of ours."""
        self.metrics.refuse(code)

    def tool_called(self, tool: str, outcome: str, seconds: float) -> None:
        """A server tool answered: `outcome` is "ok" or the kind of its failure."""
        self.metrics.tool_calls(self.metrics.tool(tool), outcome).inc()
        self.metrics.tool_seconds.observe(seconds)

    def answers_refused(self, code: str) -> None:
        """Answers to calls were not taken, for this error of ours."""
        self.metrics.answers_refused(code).inc()

    def session_opened(self, count: int = 1) -> None:
        self.metrics.opened().inc(count)

    def session_ended(self, reason: str) -> None:
        """`metrics.Ended` lists the reasons that have a name; any other is `other`."""
        self.metrics.end_session(reason)

    def exception(self, error: BaseException, event: str = "exception") -> None:
        """One that nobody expected: counted, and logged with its traceback."""
        self.metrics.exception(error)
        self.log.error(event, error=error)

    def observe(self, now: Snapshot) -> None:
        """How things stand: to be called by whoever asks the node, every few seconds and before `render`."""
        self.metrics.observe(now)

    # ------------------------------------------------------------------ out

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of `/metrics` and its content type, by the request's `Accept`."""
        if self._handler is not None:
            self.metrics.observe_dropped(self._handler.dropped)
        return self.metrics.render(accept)

    async def aclose(self, deadline_s: float = FLUSH_S) -> None:
        """Send what is left. Never takes longer than the deadline; what could not be sent by then is lost."""
        if self.otlp is not None and not await self.otlp.aclose(deadline_s):
            self.log.warning("telemetry_not_flushed", deadline_s=deadline_s)
