"""`/docs`: the OpenAPI document as one page for people. It needs no script, no font and no other server, so it works anywhere."""

import functools
import re
from collections.abc import Iterator
from html import escape
from typing import Any, Final

import msgspec

from onetrip.api.openapi import document

PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --get: #1a7f37; --post: #0969da; --put: #9a6700; --delete: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --get: #3fb950; --post: #58a6ff; --put: #d29922; --delete: #ff7b72; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
code, pre { font: 14px/1.45 ui-monospace, monospace; } pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin: 2rem 0 .3rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem; } summary { cursor: pointer; }
.verb { display: inline-block; min-width: 5rem; font-weight: 700; } .get { color: var(--get); } .post { color: var(--post); }
.put { color: var(--put); } .delete { color: var(--delete); } .what { opacity: .75; margin-left: 1rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .3rem 0; }
td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td:first-child { width: 28%; } tr:last-child td { border-bottom: 0; }
@media (max-width: 40rem) { .what { display: block; margin-left: 0; } td { padding-right: .5rem; } td:first-child { width: 34%; } }
"""
_SCHEMAS: Final = "#/components/schemas/"


@functools.cache
def page() -> bytes:
    """As HTML."""
    found = msgspec.json.decode(document())
    info = found["info"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(info['title'])} API</title>",
        f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_text(info['description'])}</p>",
        "<p>Send <code>Authorization: Bearer KEY</code> with every request that does not say otherwise.</p>",
        "<p>The same as a document for programs: <a href='openapi.json'>openapi.json</a>.</p>",
        "<pre>curl -s $URL/v1/runs -H 'Authorization: Bearer KEY' -d '{\"code\": \"sum(range(10))\"}'</pre><h2>Requests</h2>",
    ]
    for path, operations in found["paths"].items():
        parts += [_operation(path, verb, operation) for verb, operation in operations.items()]
    parts.append("<h2>Types</h2><p>What has a * must be there.</p>")
    parts += [_type(name, schema) for name, schema in found["components"]["schemas"].items()]
    return "".join(parts).encode()


def _text(text: str) -> str:
    """Escaped; what is between backticks is code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _operation(path: str, verb: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(one['name'])}</code><td>{escape(one['in'])}, {_kind(one['schema'])}<td>{_text(one.get('description', ''))}"
        for one in operation.get("parameters", ())
    ]
    if (body := operation.get("requestBody")) is not None:
        rows.append(f"<tr><td>the body<td colspan=2>{'' if body['required'] else 'may be empty; '}{_content(body)}")
    answers: dict[str, list[str]] = {}  # by what is said of them: errors differ in their status only
    for status, response in sorted(operation["responses"].items()):
        content = _content(response)
        said = f"{_text(response['description'])}{': ' if content else ''}{content}"
        answers.setdefault(said, []).append(status)
    rows += [f"<tr><td>{escape(', '.join(statuses))}<td colspan=2>{said}" for said, statuses in answers.items()]
    no_key = "<p>Needs no key.</p>" if operation.get("security") == [] else ""
    return (
        f"<details id='{escape(operation['operationId'])}-{escape(verb)}'><summary><span class='verb {escape(verb)}'>{escape(verb.upper())}</span>"
        f"<code>{escape(path)}</code><span class=what>{escape(operation['summary'])}</span></summary>{no_key}"
        f"<table>{''.join(rows)}</table></details>"
    )


def _content(holder: dict[str, Any]) -> str:
    return ", or ".join(
        f"<code>{escape(media)}</code> {_kind(content['schema']) if 'schema' in content else ''}".rstrip()
        for media, content in holder.get("content", {}).items()
    )


def _type(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(field)}</code>{' *' if field in required else ''}<td>{_kind(one)}<td>{_default(one)}"
        for field, one in schema.get("properties", {}).items()
    ]
    said = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    return f"<h3 id='{escape(name)}'>{escape(name)}</h3>{said}<table>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_SCHEMAS))
        return f"<a href='#{name}'>{name}</a>"
    return " or ".join(_kinds(schema))


def _kinds(schema: dict[str, Any]) -> Iterator[str]:
    if "anyOf" in schema:
        yield from map(_kind, schema["anyOf"])
    elif "enum" in schema:
        yield from (f"<code>{escape(msgspec.json.encode(value).decode())}</code>" for value in schema["enum"])
    elif schema.get("type") == "array":
        yield f"list of {_kind(schema['items'])}" if schema.get("items") else "list"
    elif schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        yield f"object of {_kind(schema['additionalProperties']) or 'anything'}"
    elif "properties" in schema:  # such as an event
        yield f"with {', '.join(f'<code>{escape(name)}</code>' for name in schema['properties'])}"
    else:
        yield escape(str(schema.get("type", "anything")))


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    return f"default: <code>{escape(msgspec.json.encode(schema['default']).decode())}</code>"
