"""The OpenAPI 3.1 document, made from the routes and from the very types that decode requests."""

import functools
from typing import Any, Final

import msgspec

from onetrip import __version__, schema
from onetrip.api.problems import MEDIA_TYPE
from onetrip.api.routes import BYTES, EVENTS, ROUTES, TEXT, Route

_PROBLEM: Final = {
    "description": "See `code` and `hint`",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_EVENT: Final[dict[str, Any]] = {  # of each one in the stream
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"enum": ["started", "stdout", "stderr", "display", "tool_call", "tool_result", "done"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}
_SAID: Final = {200: "Done", 201: "Made", 202: "Not yet", 204: "Done", 206: "A part", 304: "Unchanged", 503: "Not now"}
_ALWAYS: Final = (401, 403, 429)  # of every path that needs a key


@functools.cache
def document() -> bytes:
    """As JSON."""
    types = {kind for route in ROUTES for kind in (route.takes, *(given for _, given in route.gives)) if isinstance(kind, type)}
    ordered = [schema.Problem, *sorted(types, key=lambda kind: kind.__name__)]
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    references = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Onetrip",
            "version": __version__,
            "description": "Runs the Python that a model writes. A program that fails is a result with status 200; see `status` in it.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }
    return msgspec.json.encode(found)


def _operation(route: Route, references: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": meaning, "schema": {"type": kind}}
        for name, kind, meaning in route.query
    ]
    parameters += [
        {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in route.headers
    ]
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.endpoint.__name__,
        "parameters": parameters,
        "responses": _responses(route, references),
    }
    if route.takes is not None:
        content: dict[str, Any] = (
            {"application/octet-stream": {}}
            if route.takes == BYTES
            else {"application/json": {"schema": references[route.takes]}}
        )
        found["requestBody"] = {"required": not route.body_optional, "content": content}
    if route.is_open:
        found["security"] = []
    return found


def _responses(route: Route, references: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, kind in route.gives:
        response = found.setdefault(str(status), {"description": _SAID.get(status, "")})
        if kind is None:
            continue
        content = response.setdefault("content", {})
        match kind:
            case "bytes":
                content["application/octet-stream"] = {}
            case "events":
                content["text/event-stream"] = {"schema": _EVENT}
            case "text":
                content["text/plain"] = {"schema": {"type": "string"}}
            case _:
                content["application/json"] = {"schema": references[kind]}
    for status in (*route.errors, *(() if route.is_open else _ALWAYS)):
        found.setdefault(str(status), _PROBLEM)
    return found


__all__ = ["BYTES", "EVENTS", "TEXT", "document"]
