"""Around every HTTP request: its id, its span, its numbers, and one line in the log. Plain ASGI, so streams stay streams."""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, cast

from onetrip.telemetry.context import CURRENT, RequestInfo, request_id
from onetrip.telemetry.hub import Telemetry
from onetrip.telemetry.logs import REPORTED

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds: no span, and a line at `debug` only
CLIENT_GONE: Final = 499  # nobody was there to answer
UNMATCHED: Final = "unmatched"


class TelemetryMiddleware:
    """The outermost layer. It changes nothing of a response but its `X-Request-Id`, and holds nothing back."""

    def __init__(self, app: App, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(self._telemetry, scope, receive, send)
        token = CURRENT.set(request.info)
        try:
            await request.serve(self._app)
        finally:
            CURRENT.reset(token)


class _Request:
    """One request on its way through."""

    def __init__(self, telemetry: Telemetry, scope: Scope, receive: Receive, send: Send) -> None:
        self.info = RequestInfo(request_id(_header(scope["headers"], b"x-request-id")))
        self._telemetry, self._scope, self._receive, self._send = telemetry, scope, receive, send
        self._bytes_in = telemetry.metrics.bytes("in")
        self._bytes_out = telemetry.metrics.bytes("out")
        self._status: int | None = None
        self._complete = False

    async def serve(self, app: App) -> None:
        telemetry, scope = self._telemetry, self._scope
        method, otlp = str(scope["method"]), telemetry.otlp
        in_flight = telemetry.metrics.in_flight()
        in_flight.inc()
        started, start_ns = time.perf_counter_ns(), time.time_ns()
        span = None if otlp is None or scope["path"] in QUIET else otlp.request(method, scope["headers"], start_ns)
        try:
            if span is None:
                await app(scope, self.receive, self.send)
            else:
                if span.recording:
                    self.info.trace_id = span.trace_id
                with span.current():
                    await app(scope, self.receive, self.send)
        except Exception as err:  # counted and logged here; the server below closes the connection
            self._status = self._status or 500
            telemetry.exception(err, "request_failed")
            err.add_note(f"{REPORTED}{self.info.request_id}")
            raise
        finally:
            in_flight.dec()
            took_ns = time.perf_counter_ns() - started
            route, status = self.info.route or route_template(scope), self._status or CLIENT_GONE
            telemetry.metrics.request(telemetry.metrics.route(route), method, status, took_ns / 1e9)
            if otlp is not None and span is not None:
                otlp.request_ended(
                    span,
                    end_ns=start_ns + took_ns,
                    seconds=took_ns / 1e9,
                    method=method,
                    route=telemetry.metrics.route(route),
                    scope=scope,
                    status=status,
                )
            self._say(method, route, status, took_ns / 1e6)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes_in.inc(len(message.get("body", b"")))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            kept = [
                pair
                for pair in cast("Iterable[tuple[bytes, bytes]]", message.get("headers", ()))
                if pair[0].lower() != b"x-request-id"
            ]
            message = {**message, "headers": [*kept, (b"x-request-id", self.info.request_id.encode("ascii"))]}
        elif message["type"] == "http.response.body":
            self._bytes_out.inc(len(message.get("body", b"")))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def _say(self, method: str, route: str, status: int, took_ms: float) -> None:
        log, path = self._telemetry.log, str(self._scope["path"])
        write = log.debug if path in QUIET else log.info
        write(
            "request",
            method=method,
            path=path,
            route=None if route == path else route,
            status=status,
            code=self.info.code,
            duration_ms=round(took_ms, 3),
            complete=None if self._complete else False,  # the answer broke off
        )


def route_template(scope: Scope) -> str:
    """The template that the router matched, such as `/v1/runs/{rid}`, below the prefix it is mounted at; never the path itself."""
    route = scope.get("route")
    if route is None:
        return UNMATCHED
    prefix = str(scope.get("root_path", ""))
    # a mount's own path is the prefix already; only a leaf has an endpoint of its own
    return f"{prefix}{route.path}" if hasattr(route, "endpoint") else f"{prefix}/*"


def _header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1")
    return None
