"""docs/serve.md says of the server what its code says: every setting with its default, every endpoint, every error."""

import re
import tomllib
from pathlib import Path

import msgspec

from onetrip.api.routes import ROUTES
from onetrip.errors import STATUS
from onetrip.settings import Settings

TEXT = (Path(__file__).parents[3] / "docs" / "serve.md").read_text("utf-8")


def defaults(of, prefix=""):
    found = {}
    for name in of.__struct_fields__:
        value = getattr(of, name)
        if isinstance(value, msgspec.Struct):
            found |= defaults(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def test_every_setting_is_there_with_its_default_and_no_other():
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`(.+?)`)? ?\|", TEXT.partition("## Settings")[2], re.MULTILINE))
    shown = {name: tomllib.loads(f"x = {text}")["x"] if text else None for name, text in rows.items()}
    assert shown == defaults(Settings())


def test_every_endpoint_is_there_and_no_other():
    table = TEXT.partition("## Endpoints")[2].partition("## Errors")[0]
    shown = set(re.findall(r"(GET|POST|PUT|DELETE) (/[^`\s]*)`", table))
    files = "/v1/sessions/{sid}/files/{path}"
    assert "`PUT …`, `DELETE …`" in table
    assert shown | {("PUT", files), ("DELETE", files)} == {(route.method, route.path) for route in ROUTES}


def test_every_error_is_there_with_its_status_and_no_other():
    table = TEXT.partition("## Errors")[2].partition("## What survives")[0]
    assert {code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", table, re.MULTILINE)} == {
        code: status for code, (status, _) in STATUS.items()
    }
