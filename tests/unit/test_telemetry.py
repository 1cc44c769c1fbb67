"""Numbers, the names of failures, and what OpenTelemetry is configured with."""

import ast
import json
import re
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from onetrip import config
from onetrip.errors import BadRequest, Unavailable
from onetrip.model import Isolation, LimitHit, ProgramError, Result, Usage
from onetrip.settings import Otel
from onetrip.telemetry import Snapshot, Telemetry, otlp_settings, runs
from onetrip.telemetry.metrics import MAX_ROUTES, MAX_TENANTS, Metrics

ROOT = Path(__file__).parents[2]
JAIL = Isolation("jail", "strict", ())


def result(status="completed", **fields):
    return Result(id="run_1", session_id="ses_1", status=status, isolation=JAIL, **fields)


def failed(name):
    return result("failed", error=ProgramError(name, "message"))


def limited(name):
    return result("limit_exceeded", limit=LimitHit(name, 1, "s"), error=ProgramError("LimitExceeded", "m"))


def sample(telemetry, name, **labels):
    return telemetry.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def telemetry():
    return Telemetry.create(Otel(), {})


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.spec("TEL-01")
def test_a_run_is_counted_by_status_limit_tier_and_level_and_timed(telemetry):
    with telemetry.run_span(run_id="run_1", session_id=None, tenant="acme") as span:
        span.done(result(usage=Usage(queue_ms=1, start_ms=2, wall_ms=30, cpu_ms=20, output_bytes=7)))
    with telemetry.run_span(run_id="run_2", session_id=None, tenant="acme") as span:
        span.done(limited("memory"))
    assert sample(telemetry, "onetrip_runs_total", status="completed", limit="none", tier="jail", level="strict") == 1
    assert sample(telemetry, "onetrip_runs_total", status="limit_exceeded", limit="memory", tier="jail", level="strict") == 1
    assert sample(telemetry, "onetrip_run_wall_seconds_sum") == pytest.approx(0.03)
    assert sample(telemetry, "onetrip_run_cpu_seconds_sum") == pytest.approx(0.02)
    assert sample(telemetry, "onetrip_run_queue_seconds_sum") == pytest.approx(0.001)
    assert sample(telemetry, "onetrip_run_start_seconds_sum") == pytest.approx(0.002)
    assert sample(telemetry, "onetrip_run_seconds_count") == 2
    assert sample(telemetry, "onetrip_run_output_bytes_total") == 7
    assert sample(telemetry, "onetrip_tenant_runs_total", tenant="acme") == 2
    assert sample(telemetry, "onetrip_tenant_cpu_seconds_total", tenant="acme") == pytest.approx(0.02)


@pytest.mark.spec("TEL-01")
def test_a_run_without_a_result_is_counted_as_aborted_and_its_exception_goes_on(telemetry):
    with pytest.raises(KeyError), telemetry.run_span(run_id="r", session_id=None, tenant="t"):
        raise KeyError
    assert sample(telemetry, "onetrip_runs_total", status="aborted", limit="none", tier="none", level="none") == 1


@pytest.mark.spec("TEL-01")
def test_no_label_grows_with_callers_or_programs(telemetry):
    for number in range(500):
        telemetry.metrics.request(telemetry.metrics.route(f"/{number}"), f"M{number}", 200 + number, 0.1)
        telemetry.refused(f"code{number}")
        telemetry.session_ended(f"reason{number}")
        telemetry.exception(type(f"E{number}", (Exception,), {})())
        telemetry.observe(Snapshot(pool={f"kind{number}": 1}))
        with telemetry.run_span(run_id="r", session_id=None, tenant=f"tenant{number}") as span:
            span.done(failed(f"Made{number}Up"))
    series = {family.name: len(family.samples) for family in parse_text(telemetry.render()[0].decode())}
    assert series["onetrip_tenant_runs"] == MAX_TENANTS + 1
    assert series["onetrip_refused"] == 1
    assert series["onetrip_sessions_ended"] == 1
    assert sample(telemetry, "onetrip_tenant_runs_total", tenant="other") == 500 - MAX_TENANTS
    assert series["onetrip_http_request_seconds"] == (MAX_ROUTES + 1) * 20  # buckets, sum and count
    assert sum(series.values()) < 3000


@pytest.mark.spec("TEL-01")
def test_how_things_stand_is_what_was_observed_last(telemetry):
    telemetry.observe(Snapshot(sessions=3, running=2, queued=1, node_restarts=1, pool={"default": 4, "plots": 1}))
    telemetry.observe(
        Snapshot(sessions=5, node_up=False, node_restarts=1, node_memory_bytes=50_000, node_kept_bytes=7, pool={"default": 2})
    )
    assert sample(telemetry, "onetrip_sessions") == 5
    assert sample(telemetry, "onetrip_runs_running") == 0
    assert sample(telemetry, "onetrip_runs_queued") == 0
    assert sample(telemetry, "onetrip_node_up") == 0
    assert sample(telemetry, "onetrip_node_restarts_total") == 1
    assert sample(telemetry, "onetrip_node_memory_bytes") == 50_000
    assert sample(telemetry, "onetrip_node_kept_bytes") == 7
    assert sample(telemetry, "onetrip_pool_sandboxes", kind="default") == 2
    assert sample(telemetry, "onetrip_pool_sandboxes", kind="plots") == 0


def test_the_metrics_are_text_or_openmetrics_as_asked_and_parse_as_such(telemetry):
    telemetry.session_opened()
    telemetry.session_ended("idle")
    body, kind = telemetry.render()
    assert kind.startswith("text/plain")
    assert "_created" not in body.decode()
    assert "onetrip_sessions_opened" in {family.name for family in parse_text(body.decode())}
    body, kind = telemetry.render("application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert kind.startswith("application/openmetrics-text")
    assert "onetrip_sessions_opened" in {family.name for family in parse_openmetrics(body.decode())}


@pytest.mark.spec("TEL-01")
@pytest.mark.parametrize("name", ["\ud800", 'a"b\n', "x" * 200, "\x00"])
def test_a_name_that_cannot_be_shown_does_not_spoil_the_page(telemetry, name):
    with telemetry.run_span(run_id="r", session_id=None, tenant=name) as span:
        span.done(result())
    assert sample(telemetry, "onetrip_tenant_runs_total", tenant="other") == 1
    telemetry.render()


def test_two_servers_in_one_process_count_apart():
    one, two = Telemetry.create(Otel(), {}), Telemetry.create(Otel(), {})
    one.refused("not_found")
    assert sample(one, "onetrip_refused_total", code="not_found") == 1
    assert sample(two, "onetrip_refused_total", code="not_found") is None


def test_every_metric_is_in_the_document_and_no_other():
    text = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(onetrip_\w+)`", text, re.MULTILINE))
    assert listed == exposed()


def test_the_dashboard_asks_for_metrics_that_exist():
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
    asked = {target["expr"] for panel in board["panels"] for target in panel.get("targets", [])}
    assert len(asked) > 10
    known = {f"{name}{suffix}" for name in exposed() for suffix in ("", "_bucket", "_sum", "_count")}
    assert {name for expr in asked for name in re.findall(r"\bonetrip_\w+", expr)} <= known


def exposed():
    """Names as they are scraped: counters with `_total`."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics().registry.collect()
        if family.name.startswith("onetrip_")
    }


# ---------------------------------------------------------------------------------------------------- names of failures


@pytest.mark.spec("TEL-05")
@pytest.mark.parametrize(
    ("ended", "name"),
    [
        (result(), None),
        (result("waiting"), None),
        (failed("ZeroDivisionError"), "ZeroDivisionError"),
        (failed("ProcessDied"), "ProcessDied"),
        (limited("wall"), "timeout"),
        (limited("memory"), "oom"),
        (limited("cpu"), "cpu"),
        (limited("output"), "output"),
        (result("interrupted", error=ProgramError("KeyboardInterrupt", "")), "interrupted"),
        (result("lost", error=ProgramError("SandboxLost", "")), "lost"),
    ],
)
def test_a_failure_has_a_name_of_few(ended, name):
    assert runs.error_type(ended) == runs.known_error(ended) == name


@pytest.mark.spec("TEL-05")
@given(name=st.text(max_size=300))
def test_a_class_that_a_program_made_up_is_no_label_and_what_is_no_name_is_nowhere(name):
    said, label = runs.error_type(failed(name)), runs.known_error(failed(name))
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,127}", said)
    assert label in {runs.OTHER_ERROR, name}


@pytest.mark.spec("TEL-06")
@given(texts=st.dictionaries(st.sampled_from("abc"), st.text(max_size=6000), min_size=1))
def test_content_is_cut_to_json_that_every_receiver_takes_whole(texts):
    said = runs.fitted(texts)
    assert len(said) <= runs.MAX_ATTRIBUTE
    assert json.loads(said).keys() == texts.keys()
    said.encode("utf-8")


# ---------------------------------------------------------------------------------------------------- configuration


def resolve(environ, **otel):
    return otlp_settings.resolve(Otel(**otel), config.otel(environ))


@pytest.mark.spec("TEL-08")
def test_nothing_is_sent_unless_an_endpoint_is_configured():
    assert resolve({}) is None
    assert resolve({"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=1"}) is None
    assert resolve({"OTEL_SDK_DISABLED": "true"}, endpoint="http://c:4318") is None
    assert Telemetry.create(Otel(), {}).otlp is None


@pytest.mark.spec("TEL-08")
def test_an_endpoint_comes_from_the_file_or_from_the_standard_variables_which_win():
    found = resolve({}, endpoint="http://file:4318/", headers={"api-key": "a"})
    assert (found.traces_endpoint, found.metrics_endpoint) == ("http://file:4318/v1/traces", "http://file:4318/v1/metrics")
    assert (found.compression, found.temporality, found.service_name, found.capture_content) == (
        "gzip",
        "cumulative",
        "onetrip",
        False,
    )
    found = resolve(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://env",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://other/x",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=b%20c, x-scope=1",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "DELTA",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
            "OTEL_SERVICE_NAME": "mine",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
        },
        endpoint="http://file:4318",
        headers={"api-key": "a"},
    )
    assert (found.traces_endpoint, found.metrics_endpoint) == ("https://env/v1/traces", "https://other/x")
    assert found.headers == {"api-key": "b c", "x-scope": "1"}
    assert (found.compression, found.temporality, found.interval_ms, found.service_name) == ("none", "delta", 5000, "mine")
    assert found.capture_content
    only = resolve({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/v1/traces"})
    assert (only.traces_endpoint, only.metrics_endpoint) == ("http://t/v1/traces", None)


@pytest.mark.spec("TEL-08")
@pytest.mark.parametrize(
    ("environ", "otel", "field"),
    [
        ({}, {"endpoint": "collector:4318"}, "otel.endpoint"),
        ({}, {"endpoint": "http://"}, "otel.endpoint"),
        ({}, {"endpoint": "http://h:99999"}, "otel.endpoint"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://h"}, {}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"endpoint": "http://h"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, {"endpoint": "http://h"}, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, {"endpoint": "http://h"}, "OTEL_METRIC_EXPORT_INTERVAL"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "0"}, {"endpoint": "http://h"}, "OTEL_METRIC_EXPORT_INTERVAL"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, {"endpoint": "http://h"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({}, {"endpoint": "http://h", "headers": {"api-key": "secret\n"}}, "otel.headers"),
        ({}, {"endpoint": "http://h", "sample_ratio": 2}, "otel.sample_ratio"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_no_key_is_shown(environ, otel, field):
    with pytest.raises(BadRequest) as caught:
        resolve(environ, **otel)
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_the_settings_show_no_keys():
    assert "secret" not in repr(resolve({}, endpoint="http://h", headers={"api-key": "secret"}))


@pytest.mark.spec("TEL-08")
def test_an_endpoint_without_the_packages_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "onetrip.telemetry.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(Unavailable, match="opentelemetry") as caught:
        Telemetry.create(Otel(endpoint="http://127.0.0.1:1"), {})
    assert "onetrip[otel]" in caught.value.hint
    assert Telemetry.create(Otel(), {}).otlp is None  # unconfigured, they are not missed


def test_only_one_file_imports_opentelemetry():
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if any(name.partition(".")[0] == "opentelemetry" for name in names):
                found.add(path.name)
    assert found == {"otlp.py"}


def test_settings_are_decoded_from_the_configuration():
    assert msgspec.convert({"endpoint": "http://c:4318", "headers": {"api-key": "x"}}, Otel).headers == {"api-key": "x"}
