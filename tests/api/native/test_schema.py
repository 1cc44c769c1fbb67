"""The OpenAPI document: what the server does is what it says, and what it says changes only on purpose. And `/docs`, made from it."""

import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir
from schemathesis.checks import CHECKS, load_all_checks

from onetrip.api.openapi import document
from onetrip.api.routes import ROUTES

SNAPSHOT = Path(__file__).with_name("openapi.json")
load_all_checks()
set_hypothesis_home_dir(tempfile.gettempdir())  # schemathesis asks whether the default one can be used, also where none is wanted
WANTED = [
    CHECKS.get_one(name)
    for name in ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
]
schema = schemathesis.openapi.from_dict(json.loads(document()))


@pytest.fixture(scope="module")
def real(server):
    """Ids that exist: random ones are 404 and no more."""
    with server.client() as api:
        sid = api.post("/v1/sessions", json={"limits": {"wall_s": 2}}).json()["id"]
        run = api.post(f"/v1/sessions/{sid}/runs", json={"code": "1"}).json()
        api.put(f"/v1/sessions/{sid}/files/f", content=b"0123456789")
        return {"sid": sid, "rid": run["id"], "path": "f"}


@pytest.mark.spec("HTT-13")
@schema.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
def test_whatever_fits_the_schema_is_answered_by_the_schema(case, server, real):
    number = len(json.dumps(case.path_parameters or {}, default=str)) + len(str(case.query)) + len(str(case.body))
    is_closing = (case.method, case.path) == ("DELETE", "/v1/sessions/{sid}")
    for name in case.path_parameters or {}:
        if number % 3 and not is_closing:
            case.path_parameters[name] = real[name]
    if case.path.endswith("/fork") and isinstance(case.body, dict) and isinstance(case.body.get("count"), int):
        case.body["count"] = min(case.body["count"], 2)  # without control groups all branches share one limit of processes
    response = case.call(
        base_url=server.url, headers={"Authorization": f"Bearer {server.token}", "Host": "localhost"}, timeout=60
    )
    case.validate_response(response, checks=WANTED)
    assert "Traceback (most recent call last)" not in response.text or response.status_code == 200  # a program's own


@pytest.mark.spec("HTT-13")
def test_the_document_changes_only_on_purpose(api):
    served = api.get("/openapi.json")
    assert served.headers["content-type"] == "application/json"
    now = json.dumps(served.json(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert now == SNAPSHOT.read_text("utf-8"), (
        "the interface changed. If it is meant to, write it down in CHANGELOG.md and run: python -c 'import json; "
        "from onetrip.api.openapi import document; print(json.dumps(json.loads(document()), indent=1, sort_keys=True, ensure_ascii=False))' "
        "> tests/api/native/openapi.json"
    )


@pytest.mark.spec("HTT-13")
def test_the_document_is_whole(api):
    found = api.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert {(path, verb.upper()) for path, verbs in found["paths"].items() for verb in verbs} == {
        (r.path, r.method) for r in ROUTES
    }
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert named <= set(found["components"]["schemas"])


@pytest.mark.spec("HTT-14")
def test_the_page_for_people_needs_nothing_from_elsewhere_and_shows_every_path_and_type(server):
    with server.client() as api:
        page = api.get("/docs", headers={"Authorization": ""})  # no key, like the document
        found = api.get("/openapi.json").json()
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    fetched, ids, anchors = [], set(), set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            attributes = dict(attrs)
            assert tag not in {"script", "link", "img", "iframe"}
            assert not [name for name in attributes if name.startswith("on")]
            ids.add(attributes.get("id"))
            if (target := attributes.get("href", "")).startswith("#"):
                anchors.add(target[1:])
            elif target:
                fetched.append(target)

    Reader().feed(page.text)
    assert fetched == ["openapi.json"]
    assert anchors <= ids
    assert set(found["components"]["schemas"]) <= ids
    for path in found["paths"]:
        assert path.replace("&", "&amp;") in page.text


@pytest.mark.spec("HTT-14")
def test_the_page_for_people_can_be_read(api):
    page, found = api.get("/docs").text, api.get("/openapi.json").json()
    assert "`" not in page  # what the document has between backticks is shown as code
    for verb in ("get", "post", "put", "delete"):
        assert len(re.findall(rf"--{verb}: #", page)) == 2  # a colour on white, and one on black
    shown = re.findall(r"<details id='([^']+)'>(.*?)</details>", page)
    for operations in found["paths"].values():
        for verb, operation in operations.items():
            text = dict(shown)[f"{operation['operationId']}-{verb}"]
            rows = re.findall(r"<tr><td>([\d, ]+)<td", text)
            statuses = [status for row in rows for status in row.split(", ")]
            assert sorted(statuses) == sorted(operation["responses"])
            assert len(rows) <= 4, rows  # errors, of which the same is said, are one row
