"""Telemetry around a real server on a real socket, with a real collector that decodes what it is sent."""

import asyncio
import json
import os
import re
import socket
import time
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn
from otlp_receiver import attributes, otlp_receiver
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from onetrip.model import Isolation, LimitHit, ProgramError, Result, Usage
from onetrip.settings import Otel
from onetrip.telemetry import Telemetry, TelemetryMiddleware, logs, note

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OUTCOMES = {
    "ok": ("completed", None, None),
    "zero": ("failed", ProgramError("ZeroDivisionError", "division by zero"), None),
    "slow": ("limit_exceeded", ProgramError("LimitExceeded", ""), LimitHit("wall", 60, "s")),
    "fat": ("limit_exceeded", ProgramError("LimitExceeded", ""), LimitHit("memory", 1024, "MB")),
}


def a_result(name="ok", **fields):
    status, error, limit = OUTCOMES[name]
    usage = Usage(wall_ms=3.0, cpu_ms=2.0, peak_memory_bytes=1000)
    isolation = Isolation("jail", "strict", ())
    return Result(
        id="run_1", session_id=None, status=status, error=error, limit=limit, usage=usage, isolation=isolation, **fields
    )


class Server(uvicorn.Server):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self.up.set()


class Served:
    """An application with one of each kind of end that a request can have."""

    def __init__(self, telemetry) -> None:
        self.telemetry = telemetry
        self.go, self.gone = asyncio.Event(), asyncio.Event()
        self.base = ""
        routes = [
            Route("/v1/runs/{rid}", self.run, methods=["GET", "POST"]),
            Route("/v1/echo", self.echo, methods=["PUT"]),
            Route("/v1/stream", self.stream),
            Route("/v1/fault", self.fault),
            Route("/v1/broken", self.broken),
            Route("/healthz", self.healthz),
            Mount("/e2b", routes=[Route("/sandboxes/{sid}", self.healthz)]),
            Mount("/raw", app=PlainTextResponse("raw")),
        ]
        self.app = TelemetryMiddleware(Starlette(routes=routes), telemetry)

    async def run(self, request):
        name = request.path_params["rid"]
        note(tenant="acme", run_id="run_1")
        with self.telemetry.run_span(run_id="run_1", session_id=None, tenant="acme", code="print('secret')") as span:
            span.done(a_result(name, stdout="secret\n"))
        return JSONResponse({"id": "run_1"})

    async def echo(self, request):
        note(code="too_large")
        return PlainTextResponse(str(len(await request.body())), status_code=413)

    async def stream(self, request):
        async def pieces():
            try:
                yield b"data: 1\n\n"
                await self.go.wait()
                yield b"data: 2\n\n"
            finally:
                self.gone.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def fault(self, request):
        raise LookupError("no such thing")

    async def broken(self, request):
        async def pieces():
            yield b"begun"
            raise LookupError("in the middle")

        return StreamingResponse(pieces(), headers={"Content-Length": "100"})

    async def healthz(self, request):
        return PlainTextResponse("ok")

    def count(self, route, method="GET", status="2xx"):
        registry = self.telemetry.metrics.registry
        return registry.get_sample_value("onetrip_http_requests_total", {"route": route, "method": method, "status": status})


@asynccontextmanager
async def served(telemetry):
    here = Served(telemetry)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        here.base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = Server(uvicorn.Config(here.app, log_config=None, lifespan="off", http="httptools", ws="none"))
        task = asyncio.create_task(server.serve([listening]))
        async with asyncio.timeout(20):
            await server.up.wait()
        try:
            async with httpx.AsyncClient(base_url=here.base, timeout=20) as client:
                yield here, client
        finally:
            here.go.set()
            server.should_exit = True
            await task


@contextmanager
def log_lines(level="debug"):
    """What was logged, as a function that reads it so far."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    handler, kept = logs.configure(level, fd=write_end, human=False), []

    def lines(event=None):
        try:
            kept.extend(json.loads(line) for line in os.read(read_end, 1 << 20).decode().splitlines())
        except BlockingIOError:
            pass
        return [line for line in kept if event in {None, line["event"]}]

    try:
        yield lines
    finally:
        logs.release(handler)
        os.close(read_end)
        os.close(write_end)


def off():
    return Telemetry.create(Otel(), {})


# ---------------------------------------------------------------------------------------------------- requests


@pytest.mark.spec("TEL-01", "TEL-02", "TEL-10")
def test_a_request_is_counted_once_by_its_template_and_says_so_in_one_line():
    async def main():
        async with served(off()) as (here, client):
            answer = await client.get("/v1/runs/ok", headers={"X-Request-Id": "mine-1"})
            assert answer.headers.get_list("x-request-id") == ["mine-1"]
            await client.put("/v1/echo", content=b"x" * 1000)
            await client.get("/e2b/sandboxes/1")
            await client.get("/e2b/none")
            await client.get("/raw/anything/at/all")
            await client.get("/none/of/these")
            await client.get("/healthz")
            assert (await client.delete("/v1/runs/ok")).status_code == 405
            assert here.count("/v1/runs/{rid}") == 1
            assert here.count("/v1/runs/{rid}", "DELETE", "4xx") == 1
            assert here.count("/v1/echo", "PUT", "4xx") == 1
            assert here.count("/e2b/sandboxes/{sid}") == 1
            assert here.count("/e2b/*", "GET", "4xx") == 1
            assert here.count("/raw/*") == 1
            assert here.count("unmatched", "GET", "4xx") == 1
            registry = here.telemetry.metrics.registry
            assert registry.get_sample_value("onetrip_http_body_bytes_total", {"direction": "in"}) == 1000
            assert registry.get_sample_value("onetrip_http_requests_in_flight") == 0

    with log_lines() as lines:
        asyncio.run(main())
        run, echo, *_ = asked = lines("request")
        assert len(asked) == 8
        assert (run["request_id"], run["tenant"], run["run_id"], run["status"]) == ("mine-1", "acme", "run_1", 200)
        assert (run["method"], run["path"], run["route"]) == ("GET", "/v1/runs/ok", "/v1/runs/{rid}")
        assert run["duration_ms"] > 0
        assert (echo["code"], echo["status"]) == ("too_large", 413)
        assert re.fullmatch(r"req_[0-9a-f]{24}", echo["request_id"])
        assert [line["level"] for line in asked if line["path"] == "/healthz"] == ["debug"]
        assert not [line for line in lines() if line.get("logger", "").startswith("uvicorn.access")]


@pytest.mark.spec("TEL-02", "TEL-03")
def test_ids_and_paths_that_try_to_forge_a_line_do_not():
    async def main():
        async with served(off()) as (_, client):
            answer = await client.get('/v1/runs/%0A{"event":"forged"}%1b[2J%e2%80%a8', headers={"X-Request-Id": "a b;<c>"})
            assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])

    with log_lines() as lines:
        asyncio.run(main())
        assert [line["path"] for line in lines("request")] == ['/v1/runs/\n{"event":"forged"}\x1b[2J\u2028']
        assert lines("forged") == []


@pytest.mark.spec("TEL-10")
def test_a_stream_arrives_piece_by_piece_and_is_logged_at_its_end():
    async def main(lines):
        async with served(off()) as (here, client), client.stream("GET", "/v1/stream") as answer:
            pieces = answer.aiter_raw()
            assert b"data: 1" in await anext(pieces)
            assert "x-request-id" in answer.headers
            assert lines("request") == []
            here.go.set()
            assert b"data: 2" in await anext(pieces)

    with log_lines() as lines:
        asyncio.run(main(lines))
        (line,) = lines("request")
        assert (line["status"], line.get("complete")) == (200, None)


@pytest.mark.spec("TEL-10")
def test_a_client_that_goes_away_is_logged_as_such_and_counted_once():
    async def main():
        async with served(off()) as (here, client):
            async with client.stream("GET", "/v1/stream") as answer:
                await anext(answer.aiter_raw())
            async with asyncio.timeout(20):
                await here.gone.wait()
        assert here.count("/v1/stream") == 1

    with log_lines() as lines:
        asyncio.run(main())
        (line,) = lines("request")
        assert line["complete"] is False


@pytest.mark.spec("TEL-10")
def test_an_exception_that_nobody_expected_is_logged_once_with_its_request_and_counted():
    async def main():
        async with served(off()) as (here, client):
            answer = await client.get("/v1/fault")
            assert answer.status_code == 500
            assert "Traceback" not in answer.text
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/v1/broken")
            assert here.count("/v1/fault", "GET", "5xx") == 1
            registry = here.telemetry.metrics.registry
            assert registry.get_sample_value("onetrip_exceptions_total", {"type": "LookupError"}) == 2

    with log_lines() as lines:
        asyncio.run(main())
        failed, asked = lines("request_failed"), lines("request")
        assert [line["error"] for line in failed] == ["LookupError"] * 2
        assert "no such thing" in failed[0]["traceback"]
        assert [line["request_id"] for line in failed] == [line["request_id"] for line in asked]
        assert [line for line in lines() if "Exception in ASGI" in line.get("message", "")] == []


def test_what_uvicorn_has_to_say_comes_in_our_lines():
    async def main():
        async with served(off()) as (here, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(here.base.rpartition(":")[2]))
            writer.write(b"NO HTTP\r\n\r\n")
            await reader.read()
            writer.close()

    with log_lines() as lines:
        asyncio.run(main())
        assert [line["message"] for line in lines("library") if line["level"] == "warning"] == ["Invalid HTTP request received."]


# ---------------------------------------------------------------------------------------------------- OTLP


def configured(receiver, **otel):
    environ = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
    return Telemetry.create(Otel(endpoint=receiver.endpoint, headers={"api-key": "key-1"}, service_name="bot", **otel), environ)


@pytest.mark.spec("TEL-05", "TEL-06", "TEL-07")
def test_a_run_over_http_is_a_span_in_the_callers_trace_and_a_metric_with_delta_temporality():
    async def main(receiver):
        telemetry = configured(receiver)
        async with served(telemetry) as (_, client):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            for name in OUTCOMES:
                await client.post(f"/v1/runs/{name}", headers=headers)
            await client.get("/healthz", headers=headers)
        await telemetry.aclose()

    with otlp_receiver() as receiver, log_lines() as lines:
        asyncio.run(main(receiver))
        runs = [span for span in receiver.spans if span.name == "execute_tool run_python"]
        requests = {span.span_id: span for span in receiver.spans if span.name == "POST /v1/runs/{rid}"}
        assert (len(runs), len(requests), len(receiver.spans)) == (4, 4, 8)
        for span in runs:
            assert span.kind == 1  # INTERNAL
            assert span.trace_id.hex() == TRACE
            request = requests[span.parent_span_id]
            assert (request.kind, request.parent_span_id.hex()) == (2, PARENT)  # SERVER
            said = attributes(request)
            assert (said["http.request.method"], said["http.route"], said["http.response.status_code"]) == (
                "POST",
                "/v1/runs/{rid}",
                200,
            )
        said = [attributes(span) for span in runs]
        for each in said:
            assert (each["gen_ai.operation.name"], each["gen_ai.tool.name"]) == ("execute_tool", "run_python")
            assert (each["sandbox.run.id"], each["sandbox.tier"], each["sandbox.cpu_ms"]) == ("run_1", "jail", 2.0)
            assert not [name for name, value in each.items() if "secret" in str(value)]
        assert [(each.get("error.type"), span.status.code) for each, span in zip(said, runs, strict=True)] == [
            (None, 0),
            ("ZeroDivisionError", 2),
            ("timeout", 2),
            ("oom", 2),
        ]
        assert [each["sandbox.timed_out"] for each in said] == [False, False, True, False]

        durations = receiver.metric("gen_ai.execute_tool.duration").histogram
        assert durations.aggregation_temporality == 1  # delta
        assert sorted(attributes(point).get("error.type", "") for point in durations.data_points) == [
            "",
            "ZeroDivisionError",
            "oom",
            "timeout",
        ]
        assert list(durations.data_points[0].explicit_bounds)[:3] == [0.01, 0.02, 0.04]
        took = sorted((span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for span in runs)
        assert took == pytest.approx(sorted(point.sum for point in durations.data_points), rel=1e-6, abs=1e-6)
        counted = receiver.metric("onetrip.runs").sum
        assert (counted.aggregation_temporality, counted.is_monotonic) == (1, True)
        assert sum(point.as_double for point in counted.data_points) == 4
        assert receiver.metric("onetrip.sessions").gauge.data_points[0].as_double == 0
        assert receiver.metric("http.server.request.duration").histogram.aggregation_temporality == 1
        assert receiver.metric("onetrip.run_cpu_seconds").histogram.data_points[0].count == 4

        assert {resource["service.name"] for resource in receiver.resources} == {"bot"}
        for path, headers, _ in receiver.requests:
            assert path in {"/v1/traces", "/v1/metrics"}
            assert (headers["api-key"], headers["content-encoding"]) == ("key-1", "gzip")
        assert {line["trace_id"] for line in lines("request") if line["path"] != "/healthz"} == {TRACE}
        assert not [line for line in lines() if "key-1" in json.dumps(line)]


@pytest.mark.spec("TEL-06")
def test_content_is_in_spans_when_asked_for_and_cut():
    async def main(receiver):
        telemetry = configured(receiver, capture_content=True)
        with telemetry.run_span(run_id="r", session_id="ses_1", tenant="t", code="x" * 9000, call_id="call_1") as span:
            span.done(a_result(stdout="secret \ud800 \x00" * 2000))
        await telemetry.aclose()

    with otlp_receiver() as receiver:
        asyncio.run(main(receiver))
        said = attributes(receiver.span("execute_tool run_python"))
    assert (said["gen_ai.tool.call.id"], said["sandbox.id"]) == ("call_1", "ses_1")
    assert max(len(value) for value in said.values() if isinstance(value, str)) <= 4095
    assert json.loads(said["gen_ai.tool.call.arguments"])["code"].startswith("xxx")
    assert json.loads(said["gen_ai.tool.call.result"])["stdout"].startswith("secret")


@pytest.mark.spec("TEL-05")
def test_runs_that_are_not_sampled_have_no_span_but_count():
    async def main(receiver):
        telemetry = configured(receiver, sample_ratio=0.0)
        async with served(telemetry) as (_, client):
            await client.post("/v1/runs/ok")
        await telemetry.aclose()

    with otlp_receiver() as receiver:
        asyncio.run(main(receiver))
        assert receiver.spans == []
        assert receiver.metric("gen_ai.execute_tool.duration").histogram.data_points[0].count == 1


@pytest.mark.spec("TEL-05")
@pytest.mark.parametrize("header", ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01" * 50, "00-\xff-\xff-01"])
def test_a_traceparent_that_is_none_begins_a_trace_of_our_own(header):
    async def main(receiver):
        telemetry = configured(receiver)
        async with served(telemetry) as (_, client):
            answer = await client.post(
                "/v1/runs/ok", headers=[(b"traceparent", header.encode("latin-1")), (b"tracestate", b"=,;")]
            )
            assert answer.status_code == 200
        await telemetry.aclose()

    with otlp_receiver() as receiver:
        asyncio.run(main(receiver))
        assert receiver.span("POST /v1/runs/{rid}").parent_span_id == b""


@pytest.mark.spec("TEL-05")
def test_text_that_no_receiver_takes_costs_no_span():
    async def main(receiver):
        telemetry = configured(receiver)
        with telemetry.run_span(run_id="r", session_id=None, tenant="\ud800", environment="e" * 9000, call_id="\udfff\n") as span:
            span.done(a_result())
        await telemetry.aclose()

    with otlp_receiver() as receiver:
        asyncio.run(main(receiver))
        said = attributes(receiver.span("execute_tool run_python"))
    assert (said["sandbox.tenant"], said["gen_ai.tool.call.id"], len(said["sandbox.environment"])) == ("?", "?\n", 4095)


@pytest.mark.spec("TEL-05")
def test_a_run_may_be_entered_in_one_task_and_left_in_another_beside_other_runs():
    async def main(receiver):
        telemetry = configured(receiver)
        first = telemetry.run_span(run_id="r1", session_id=None, tenant="t")
        second = telemetry.run_span(run_id="r2", session_id=None, tenant="t")
        await asyncio.create_task(entered(first))
        await asyncio.create_task(entered(second))
        await asyncio.create_task(left(first))
        with pytest.raises(asyncio.CancelledError), second:
            raise asyncio.CancelledError
        await telemetry.aclose()

    async def entered(span):
        span.__enter__()

    async def left(span):
        span.done(a_result())
        span.__exit__(None, None, None)

    with otlp_receiver() as receiver:
        asyncio.run(main(receiver))
        said = {attributes(span)["sandbox.run.id"]: attributes(span).get("error.type") for span in receiver.spans}
        assert said == {"r1": None, "r2": "CancelledError"}
        assert {span.parent_span_id for span in receiver.spans} == {b""}


@pytest.mark.spec("TEL-09")
def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end():
    async def main(endpoint):
        telemetry = Telemetry.create(Otel(endpoint=endpoint), {})
        async with served(telemetry) as (here, client):
            assert (await client.post("/v1/runs/ok")).status_code == 200
            assert here.count("/v1/runs/{rid}", "POST") == 1
        started = time.monotonic()
        await telemetry.aclose(0.2)
        assert time.monotonic() - started < 5

    with socket.socket() as silent, log_lines() as lines:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # the kernel takes connections, and nobody answers
        asyncio.run(main(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert lines("telemetry_not_flushed")


@pytest.mark.spec("TEL-09")
def test_a_collector_that_is_down_costs_a_line_in_the_log():
    async def main():
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))  # and does not listen
            telemetry = Telemetry.create(Otel(endpoint=f"http://127.0.0.1:{port.getsockname()[1]}"), {})
            with telemetry.run_span(run_id="r", session_id=None, tenant="t") as span:
                span.done(a_result())
            await telemetry.aclose(0.5)

    with log_lines() as lines:
        asyncio.run(main())
        assert [line for line in lines("library") if line["logger"].startswith("opentelemetry")]
