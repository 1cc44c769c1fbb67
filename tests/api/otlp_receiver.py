"""A collector in miniature: takes OTLP over HTTP, decodes it with the published protobuf types, and lets a test wait for what it expects."""

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

DECODE = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}


class OtlpReceiver:
    """What arrived so far: requests, spans and metrics, decoded. Read them under `arrived`, or by `wait`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], int]] = []  # path, headers, bytes as sent
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Any] = []
        self.metrics: list[Any] = []
        self.arrived = threading.Condition()
        self.endpoint = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        raw = DECODE[headers.get("content-encoding", "")](body)
        with self.arrived:
            self.requests.append((path, headers, len(body)))
            if path.endswith("/v1/traces"):
                for group in ExportTraceServiceRequest.FromString(raw).resource_spans:
                    self.resources.append(attributes(group.resource))
                    self.spans += [span for scope in group.scope_spans for span in scope.spans]
                answer = ExportTraceServiceResponse()
            else:
                for group in ExportMetricsServiceRequest.FromString(raw).resource_metrics:
                    self.resources.append(attributes(group.resource))
                    self.metrics += [metric for scope in group.scope_metrics for metric in scope.metrics]
                answer = ExportMetricsServiceResponse()
            self.arrived.notify_all()
        return answer.SerializeToString()

    def wait(self, found: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Until `found` returns something true; what it returned."""
        with self.arrived:
            assert self.arrived.wait_for(found, timeout_s), f"not within {timeout_s} s; there are {self.names()}"
            return found()

    def span(self, name: str) -> Any:
        """The latest span of that name, or None."""
        return next((span for span in reversed(self.spans) if span.name == name), None)

    def metric(self, name: str) -> Any:
        """The latest report of that metric, or None."""
        return next((metric for metric in reversed(self.metrics) if metric.name == name), None)

    def names(self) -> list[str]:
        return sorted({each.name for each in (*self.spans, *self.metrics)})


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span, resource or point, as plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver on a free port of the loopback, whose `endpoint` is to be configured."""
    receiver = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
