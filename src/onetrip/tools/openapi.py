"""An OpenAPI 3 document as operations: their names, their arguments as one JSON Schema, and where each argument goes in a request.

Pure: documents are read and requests are sent elsewhere (`http_tools`). Libraries that read OpenAPI validate documents or generate clients;
none makes a flat list of arguments with one schema of them, which is what a program calls.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, cast

from onetrip.errors import BadRequest
from onetrip.model import Effect
from onetrip.tools.functions import sanitised

METHODS: Final[Mapping[str, Effect]] = {
    "get": "read",
    "head": "read",
    "post": "write",
    "put": "write",
    "patch": "write",
    "delete": "write",
}
OURS: Final = frozenset(  # headers that no argument may set: OpenAPI says so of the first three, HTTP of the others
    [
        "accept",
        "content-type",
        "authorization",
        "host",
        "cookie",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "expect",
        "idempotency-key",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-http-method-override",
    ]
)
MAX_OPERATIONS: Final = 2_000
_MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas"})
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_ONE: Final = frozenset(
    [
        "items",
        "additionalProperties",
        "not",
        "if",
        "then",
        "else",
        "contains",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_DROPPED: Final = frozenset({"xml", "discriminator", "externalDocs", "example", "examples", "nullable", "$schema", "$id"})
_TEMPLATE: Final = re.compile(r"\{([^{}]+)\}")


class Unusable(Exception):  # not part of the interface: the operation is left out, with this in the log
    """Why an operation cannot be a tool."""


class Place(NamedTuple):
    """Where an argument goes. `json`: it is sent as JSON text; `deep`: as `name[key]`; `joined`: a list as one text with commas."""

    argument: str
    where: Literal["path", "query", "header", "body"]
    name: str
    how: Literal["plain", "json", "deep", "joined"] = "plain"


class Operation(NamedTuple):
    """One tool. `body`: there is none, it is one argument, or it is an object of which each property is an argument."""

    name: str
    method: str
    path: str  # with {name} for what `places` has as `path`
    effect: Effect
    description: str
    places: tuple[Place, ...]
    body: Literal["none", "whole", "parts"]
    form: bool  # the body is a form, not JSON
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None


class Document:
    """A document that was decoded. Raises BadRequest where it is not OpenAPI 3.

    `reserved` are names of headers and query parameters that the configuration sets; no argument sets them.
    """

    def __init__(
        self, raw: object, *, reserved_headers: frozenset[str] = frozenset(), reserved_query: frozenset[str] = frozenset()
    ) -> None:
        document = _object(raw)
        version = str(document.get("openapi", ""))
        if not version.startswith("3."):
            what = "Swagger 2" if "swagger" in document else f"version {version!r:.20}"
            raise BadRequest(f"the document is not OpenAPI 3: {what}.", field="tools.openapi", hint="Convert it to OpenAPI 3.")
        self._document = document
        self._old = version.startswith("3.0")
        self._headers = OURS | {name.lower() for name in reserved_headers}
        self._query = reserved_query

    @property
    def server(self) -> str | None:
        """The first server's URL, its variables replaced by their defaults."""
        servers = self._document.get("servers")
        if not isinstance(servers, list) or not servers:
            return None
        first = _object(cast("list[Any]", servers)[0])
        variables = _object(first.get("variables"))
        return (
            _TEMPLATE.sub(lambda found: str(_object(variables.get(found[1])).get("default", "")), str(first.get("url", "")))
            or None
        )

    def operations(self) -> tuple[list[Operation], list[str]]:
        """Those that can be tools, and a line for each that cannot, which says why."""
        found: list[Operation] = []
        refused: list[str] = []
        taken: set[str] = set()
        for method, path, item, operation in self._all():
            called = str(operation.get("operationId") or f"{method}{path}")
            try:
                made = self._operation(method, path, item, operation, _free(sanitised(called)[:64], taken))
            except (Unusable, RecursionError) as err:
                refused.append(f"{method.upper()} {path}: {err}")
                continue
            taken.add(made.name)
            found.append(made)
        return found, refused

    def _all(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        count = 0
        for path, raw in _object(self._document.get("paths")).items():
            item = _object(raw)
            for method in METHODS:
                if isinstance(item.get(method), dict):
                    count += 1
                    if count > MAX_OPERATIONS:
                        raise BadRequest(f"the document has more than {MAX_OPERATIONS:,} operations.", field="tools.openapi")
                    yield method, str(path), item, cast("dict[str, Any]", item[method])

    def _operation(self, method: str, path: str, item: dict[str, Any], operation: dict[str, Any], name: str) -> Operation:
        if not path.startswith("/") or not path.isascii() or not path.isprintable() or set(path) & set("?# %"):
            raise Unusable("its path is not one")
        schemas = _Schemas(self._document, old=self._old)
        places: list[Place] = []
        properties: dict[str, Any] = {}
        required: list[str] = []
        for parameter in self._parameters(item, operation):
            place, schema, needed = self._parameter(parameter, schemas)
            if place is None:
                if needed:
                    raise Unusable(
                        f"it needs the {parameter.get('in')} parameter {parameter.get('name')!r:.60}, which no program may set"
                    )
                continue
            place = place._replace(argument=_free(place.argument, properties))
            places.append(place)
            properties[place.argument] = schema
            if needed:
                required.append(place.argument)
        if set(_TEMPLATE.findall(path)) != {place.name for place in places if place.where == "path"}:
            raise Unusable("its path and its path parameters differ")
        body, form = self._body(operation, schemas, places, properties, required)
        ordered = required + [argument for argument in properties if argument not in required]
        input_schema: dict[str, Any] = {
            "type": "object",
            "properties": {argument: properties[argument] for argument in ordered},
            "required": required,
            "additionalProperties": False,
        }
        text = "\n\n".join(str(part).strip() for part in (operation.get("summary"), operation.get("description")) if part)
        return Operation(
            name=name,
            method=method.upper(),
            path=path,
            effect=METHODS[method],
            description=text[:4000],
            places=tuple(places),
            body=body,
            form=form,
            input_schema=schemas.whole(input_schema),
            output_schema=self._output(operation),
        )

    def _parameters(self, item: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
        """Those of the path and of the operation; the latter win."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for holder in (item, operation):
            for raw in cast("list[Any]", holder.get("parameters") or []):
                parameter = _object(_resolved(self._document, raw))
                found[str(parameter.get("in")), str(parameter.get("name"))] = parameter
        return list(found.values())

    def _parameter(self, parameter: dict[str, Any], schemas: "_Schemas") -> tuple[Place | None, dict[str, Any], bool]:
        name, where = str(parameter.get("name")), str(parameter.get("in"))
        needed = parameter.get("required") is True
        content = _object(parameter.get("content"))
        media = next((key for key in content if _is_json(key)), None)
        raw = _object(content.get(media)).get("schema") if media else parameter.get("schema")
        schema = schemas.made(_object(raw))
        if parameter.get("description"):
            schema.setdefault("description", str(parameter["description"])[:1000])
        if where == "header" and name.lower() in self._headers:
            return None, schema, False  # OpenAPI: such a parameter is ignored
        if where == "query" and name in self._query:
            return None, schema, False  # the configuration sets it
        if where not in {"path", "query", "header"} or (content and not media) or not name:
            return None, schema, needed
        style = parameter.get("style", "form" if where == "query" else "simple")
        exploded = parameter.get("explode", style == "form")
        how: Literal["plain", "json", "deep", "joined"] = "plain"
        if media:
            how = "json"
        elif style == "deepObject" and where == "query":
            how = "deep"
        elif style != ("form" if where == "query" else "simple") or schemas.is_object(schema):
            return None, schema, needed
        elif where != "query" or not exploded:
            how = "joined"
        return Place(sanitised(name), cast("Any", where), name, how), schema, needed

    def _body(
        self, operation: dict[str, Any], schemas: "_Schemas", places: list[Place], properties: dict[str, Any], required: list[str]
    ) -> tuple[Literal["none", "whole", "parts"], bool]:
        body = _object(_resolved(self._document, operation.get("requestBody") or {}))
        content = _object(body.get("content"))
        if not content:
            return "none", False
        media = next((key for key in content if _is_json(key)), None)
        form = media is None and "application/x-www-form-urlencoded" in content
        if media is None and not form:
            if body.get("required") is True:
                raise Unusable(f"its body is {next(iter(content))!r:.60}")
            return "none", False
        raw = _object(content[media or "application/x-www-form-urlencoded"]).get("schema")
        schema = schemas.made(_object(raw))
        inner = schemas.target(schema)
        needed = body.get("required") is True
        parts = _object(inner.get("properties"))
        plain = parts and not inner.keys() & {"allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "minProperties"}
        if plain and all(sanitised(part) == part and part not in properties for part in parts):
            wanted = cast("list[str]", inner.get("required") or [])
            for part, part_schema in parts.items():
                places.append(Place(part, "body", part))
                properties[part] = part_schema
                if needed and part in wanted:
                    required.append(part)
            return "parts", form
        if form:
            raise Unusable("its body is a form that is no plain object")
        argument = _free("body", properties)
        places.append(Place(argument, "body", ""))
        properties[argument] = schema
        if needed:
            required.append(argument)
        return "whole", False

    def _output(self, operation: dict[str, Any]) -> dict[str, Any] | None:
        responses = _object(operation.get("responses"))
        for status in sorted(responses):
            if not status.startswith("2"):
                continue
            content = _object(_object(_resolved(self._document, responses[status])).get("content"))
            raw = next((_object(content[key]).get("schema") for key in content if _is_json(key)), None)
            if isinstance(raw, dict):
                schemas = _Schemas(self._document, old=self._old)
                try:
                    return schemas.whole(schemas.made(cast("dict[str, Any]", raw)))
                except Unusable:
                    return None
        return None


class _Schemas:
    """Schemas of a document as JSON Schemas that stand alone: what they refer to is in their own `$defs`."""

    def __init__(self, document: dict[str, Any], *, old: bool) -> None:
        self._document = document
        self._old = old
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def made(self, schema: dict[str, Any]) -> dict[str, Any]:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            beside = {} if self._old else {key: value for key, value in schema.items() if key in {"description", "default"}}
            return {"$ref": f"#/$defs/{self._defined(reference)}", **beside}
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _DROPPED or key.startswith("x-"):
                continue
            if key in _MAPS:
                made[key] = {name: self._any(part) for name, part in _object(value).items()}
            elif key in _LISTS and isinstance(value, list):
                made[key] = [self._any(part) for part in cast("list[Any]", value)]
            elif key in _ONE:
                made[key] = self._any(value)
            else:
                made[key] = value
        return self._modern(schema, made) if self._old else made

    def _any(self, value: Any) -> Any:
        return self.made(cast("dict[str, Any]", value)) if isinstance(value, dict) else value

    @staticmethod
    def _modern(schema: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
        """OpenAPI 3.0 has words of its own for what JSON Schema says otherwise."""
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(made.get(exclusive), bool) and made.pop(exclusive) and bound in made:
                made[exclusive] = made.pop(bound)
        if schema.get("nullable") is not True:
            return made
        if isinstance(made.get("type"), str):
            made["type"] = [made["type"], "null"]
            if isinstance(made.get("enum"), list):
                made["enum"] = [*made["enum"], None]
            return made
        return {"anyOf": [made, {"type": "null"}]}

    def _defined(self, reference: str) -> str:
        name = self._names.get(reference)
        if name is None:
            target = _pointed(self._document, reference)
            name = self._names[reference] = _free(sanitised(reference.rpartition("/")[2]), set(self._names.values()))
            self._definitions[name] = {}  # it may refer to itself
            self._definitions[name] = self.made(_object(target))
        return name

    def target(self, schema: dict[str, Any]) -> dict[str, Any]:
        """What a schema says, where it only refers to another."""
        for _ in range(32):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = self._definitions[reference.removeprefix("#/$defs/")]
        raise Unusable("references in a circle")

    def is_object(self, schema: dict[str, Any]) -> bool:
        inner = self.target(schema)
        return inner.get("type") == "object" or "properties" in inner

    def whole(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {**schema, "$defs": self._definitions} if self._definitions else schema


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _is_json(media: str) -> bool:
    essence = media.partition(";")[0].strip().lower()
    return essence == "application/json" or essence.endswith("+json")


def _resolved(document: dict[str, Any], value: Any) -> Any:
    for _ in range(32):
        reference = _object(value).get("$ref")
        if not isinstance(reference, str):
            return value
        value = _pointed(document, reference)
    raise Unusable("references in a circle")


def _pointed(document: dict[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        raise Unusable(f"{reference[:100]!r} leads out of the document")
    part: Any = document
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(part, dict) or name not in part:
            raise Unusable(f"{reference[:100]!r} leads nowhere")
        part = cast("dict[str, Any]", part)[name]
    return part


def _free(name: str, taken: "set[str] | dict[str, Any]") -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
