"""What the server says about itself: numbers, spans and log lines. `Telemetry` is all that the layers above need.

`logs` and `context` cost nothing to import; the rest needs the packages of `onetrip[serve]`.
"""

from onetrip.telemetry.context import RequestInfo, current, note
from onetrip.telemetry.hub import Telemetry
from onetrip.telemetry.logs import Log
from onetrip.telemetry.metrics import Snapshot
from onetrip.telemetry.middleware import TelemetryMiddleware
from onetrip.telemetry.runs import RunSpan

__all__ = ["Log", "RequestInfo", "RunSpan", "Snapshot", "Telemetry", "TelemetryMiddleware", "current", "note"]
