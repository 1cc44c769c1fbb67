"""Tools that are requests to an HTTP interface: the operations of an OpenAPI document, sent with the server's own secrets.

A program chooses values of arguments, and nothing else: not the host, not the names of headers, not where a redirect leads.
"""

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, cast
from urllib.parse import quote, unquote

import httpx
import msgspec

from onetrip.errors import BadRequest, Unavailable
from onetrip.model import Tool
from onetrip.schemas import Validator
from onetrip.tools.base import ServerTool, ToolFailed, current_call, too_large
from onetrip.tools.functions import encode
from onetrip.tools.openapi import Document, Operation, Place

CONNECT_S: Final = 10.0
DOCUMENT_S: Final = 30.0
MAX_DOCUMENT_BYTES: Final = 16 << 20
MAX_REDIRECTS: Final = 5
_MAX_EXCERPT: Final = 1_000  # characters of an error's body
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_DENIED: Final = frozenset({401, 403})


class Service:
    """What a request is made of beside its arguments: where to, and what is always sent."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        base_url: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        secrets: Iterable[str] = (),
    ) -> None:
        self.client = client
        self.base = httpx.URL(base_url.rstrip("/"))
        if self.base.scheme not in {"http", "https"} or not self.base.host:
            raise BadRequest(f"base_url: {base_url!r:.200} is not the address of an HTTP service.", field="tools.openapi")
        self.headers = dict(headers)
        self.query = dict(query)
        self._secrets = [secret.encode() for secret in secrets]

    def told(self, text: bytes) -> bytes:
        """What a service said, without our secrets, should it say them back."""
        for secret in self._secrets:
            text = text.replace(secret, b"***")
        return text


@asynccontextmanager
async def http_client() -> AsyncGenerator[httpx.AsyncClient]:
    """A client that takes nothing from the environment (proxies, .netrc) and follows no redirect by itself."""
    timeout = httpx.Timeout(None, connect=CONNECT_S, pool=None)  # the toolbox ends what takes too long
    nothing = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # a cookie of one program's call is no other's
    async with httpx.AsyncClient(
        timeout=timeout, limits=httpx.Limits(max_connections=256), follow_redirects=False, trust_env=False, cookies=nothing
    ) as client:
        yield client


async def read_document(where: str, client: httpx.AsyncClient) -> Any:
    """The document at a path or an http(s) address, JSON or YAML, decoded. Raises Unavailable or BadRequest that name it."""
    raw = await _fetched(where, client) if where.startswith(("http://", "https://")) else _read(where)
    if raw.lstrip()[:1] != b"{":
        return _yaml(raw, where)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as err:
        raise BadRequest(f"{where}: not JSON: {err}", field="tools.openapi") from err


def _yaml(raw: bytes, where: str) -> Any:
    import yaml  # noqa: PLC0415 -- only with the extra `serve`, and only for such a file

    parse = cast("Callable[..., Iterable[object]]", yaml.parse)  # pyright: ignore[reportUnknownMemberType] -- its types are bare
    try:
        # an alias may stand for a text that has aliases: a page of them is gigabytes
        if any(isinstance(event, yaml.AliasEvent) for event in parse(raw, Loader=yaml.CSafeLoader)):
            raise BadRequest(f"{where}: YAML aliases are not read.", field="tools.openapi", hint="Write `$ref` instead.")
        # numbers as keys (`200:`) and dates are texts in JSON
        return msgspec.to_builtins(yaml.load(raw, Loader=yaml.CSafeLoader), str_keys=True)
    except (yaml.YAMLError, TypeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRequest(f"{where}: not YAML: {str(err)[:300]}", field="tools.openapi") from err


def base_url_of(document: Document, where: str, configured: str | None) -> str:
    """Where requests go. A document that was fetched may not send our secrets to another host than its own. Raises BadRequest."""
    if configured is not None:
        return configured
    server = document.server or "/"
    if not where.startswith(("http://", "https://")):
        if not server.startswith(("http://", "https://")):
            raise BadRequest(f"{where}: it does not say where its server is.", field="tools.openapi", hint="Set `base_url`.")
        return server
    joined = httpx.URL(where).join(server)
    if _origin(joined) != _origin(httpx.URL(where)):
        raise BadRequest(
            f"{where}: its server is another host, {joined.host!r}.",
            field="tools.openapi",
            hint="Set `base_url`, if that is meant.",
        )
    return str(joined)


def tool_of(operation: Operation, namespace: str, service: Service) -> ServerTool:
    """The tool that an operation is. Raises BadRequest for a schema that cannot be used."""
    name = f"{namespace}.{operation.name}"
    validator = Validator(operation.input_schema, field=f"{name}.input_schema")

    async def invoke(arguments: bytes, most: int) -> bytes:
        try:
            given = msgspec.json.decode(arguments, type=dict[str, Any])
        except msgspec.DecodeError as err:
            raise ToolFailed(f"arguments: {err}", type="arguments") from None
        problem = validator.problem(given)
        if problem is not None:
            raise ToolFailed(problem, type="arguments")
        return await _asked(service, operation, given, most)

    return ServerTool(
        tool=Tool(
            name=name,
            description=operation.description,
            input_schema=operation.input_schema,
            output_schema=operation.output_schema,
            effect=operation.effect,
            side="server",
        ),
        invoke=invoke,
    )


async def _asked(service: Service, operation: Operation, given: dict[str, Any], most: int) -> bytes:
    request = _request(service, operation, given)
    try:
        for _ in range(MAX_REDIRECTS):
            response = await service.client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    return await _answered(service, response, most)
                request = _redirected(request, response)
            finally:
                await response.aclose()
    except httpx.TimeoutException as err:
        raise ToolFailed(f"The service did not answer in time ({type(err).__name__}).", type="timeout", retryable=True) from err
    except httpx.ConnectError as err:
        raise ToolFailed("The service cannot be reached. The request was not made.", retryable=True, code="unreachable") from err
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        message = f"The connection to the service failed ({type(err).__name__})."
        raise ToolFailed(message, retryable=operation.effect == "read", code="unreachable") from err
    raise ToolFailed("The service redirects without end.", code="redirect")


def _request(service: Service, operation: Operation, given: dict[str, Any]) -> httpx.Request:
    path = operation.path
    query: list[tuple[str, str]] = []
    headers: dict[str, str] = {"Accept": "application/json, */*;q=0.5"}
    parts: dict[str, Any] = {}
    whole: Any = msgspec.UNSET
    for place in operation.places:
        if place.argument not in given:
            continue
        value = given[place.argument]
        if place.where == "body":
            if place.name:
                parts[place.name] = value
            else:
                whole = value
        elif place.where == "query":
            query += _pairs(place, value)
        elif value is not None:
            text = _text(place, value)
            if place.where == "path":
                if not text:
                    raise ToolFailed(f"arguments.{place.argument}: an empty text cannot stand in a path", type="arguments")
                path = path.replace(f"{{{place.name}}}", quote(text, safe=""))
            else:
                if not text.isascii() or not text.isprintable():
                    raise ToolFailed(f"arguments.{place.argument}: a header holds printable ASCII only", type="arguments")
                headers[place.name] = text
        elif place.where == "path":
            raise ToolFailed(f"arguments.{place.argument}: null cannot stand in a path", type="arguments")
    if not {".", ".."}.isdisjoint(unquote(path).replace("\\", "/").split("/")):
        raise ToolFailed("arguments: '.' and '..' would make another path of it", type="arguments")
    headers |= service.headers
    if operation.effect == "write":
        headers["Idempotency-Key"] = current_call().id
    content: bytes | None = None
    if operation.form:
        pairs = [pair for name, value in parts.items() for pair in _pairs(Place(name, "query", name), value)]
        content = str(httpx.QueryParams(tuple(pairs))).encode()
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    elif operation.body == "parts" or whole is not msgspec.UNSET:
        content = msgspec.json.encode(parts if operation.body == "parts" else whole)
        headers["Content-Type"] = "application/json"
    base = service.base
    asked = (*base.params.multi_items(), *query, *service.query.items())
    target = base.copy_with(raw_path=base.raw_path.partition(b"?")[0].rstrip(b"/") + path.encode("ascii", "strict"))
    return service.client.build_request(
        operation.method, target.copy_with(params=httpx.QueryParams(asked)) if asked else target, headers=headers, content=content
    )


def _pairs(place: Place, value: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    if place.how == "deep":
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return [(f"{place.name}[{key}]", _scalar(inner)) for key, inner in fields.items() if inner is not None]
    if isinstance(value, list) and place.how == "plain":
        return [(place.name, _scalar(inner)) for inner in cast("list[Any]", value)]
    return [(place.name, _text(place, value))]


def _text(place: Place, value: Any) -> str:
    if place.how == "json":
        return msgspec.json.encode(value).decode()
    if isinstance(value, list):
        return ",".join(_scalar(inner) for inner in cast("list[Any]", value))
    return _scalar(value)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _answered(service: Service, response: httpx.Response, most: int) -> bytes:
    failed = response.status_code >= 400
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if failed and len(body) > 4 * _MAX_EXCERPT:
            break
        if len(body) > most:
            raise too_large(None, most)
    said = service.told(bytes(body))
    if failed:
        raise _failure(response, said)
    media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not said:
        return b"null"
    if media == "application/json" or media.endswith("+json"):
        try:
            msgspec.json.decode(said)
        except (msgspec.DecodeError, RecursionError) as err:
            raise ToolFailed(f"The service's answer is not the JSON that it says: {err}", code="result_not_json") from err
        return said
    try:
        return encode(said.decode(response.charset_encoding or "utf-8"), most)
    except (UnicodeDecodeError, LookupError):
        return encode({"media_type": media[:100], "base64": said}, most)


def _failure(response: httpx.Response, said: bytes) -> ToolFailed:
    status = response.status_code
    message = f"HTTP {status} {response.reason_phrase[:60]}"
    if said:
        message += f": {said.decode('utf-8', 'replace')[:_MAX_EXCERPT]}"
    later = response.headers.get("retry-after", "")[:40]
    if later and status in _RETRYABLE:
        message += f" (retry after {later}{' s' if later.isdecimal() else ''})"
    return ToolFailed(
        message, type="denied" if status in _DENIED else "error", retryable=status in _RETRYABLE, code=f"http_{status}"
    )


def _redirected(request: httpx.Request, response: httpx.Response) -> httpx.Request:
    following = response.next_request
    if request.method not in {"GET", "HEAD"} or following is None:
        raise ToolFailed(f"The service answers {request.method} with a redirect, which is not followed.", code="redirect")
    if _origin(following.url) != _origin(request.url):
        raise ToolFailed("The service redirects to another host, which is not followed.", code="redirect")
    return following


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as err:
        raise Unavailable(
            f"the OpenAPI document {os.fspath(path)!r} cannot be read: {err.strerror}", field="tools.openapi"
        ) from err
    return _bounded(raw, path)


def _bounded(raw: bytes, where: str) -> bytes:
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise BadRequest(f"the OpenAPI document {where!r} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB.", field="tools.openapi")
    return raw


async def _fetched(where: str, client: httpx.AsyncClient) -> bytes:
    raw = bytearray()
    try:
        async with client.stream("GET", where, timeout=DOCUMENT_S) as response:
            if response.status_code != 200:
                raise Unavailable(f"the OpenAPI document {where}: HTTP {response.status_code}.", field="tools.openapi")
            async for piece in response.aiter_bytes():
                raw += piece
                _bounded(bytes(raw) if len(raw) > MAX_DOCUMENT_BYTES else b"", where)
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise Unavailable(
            f"the OpenAPI document {where} cannot be fetched: {type(err).__name__}.", field="tools.openapi"
        ) from err
    return bytes(raw)
