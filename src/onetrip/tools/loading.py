"""The toolbox that a configuration describes: functions, entry points, OpenAPI documents and MCP servers, while the server runs."""

import asyncio
import importlib
import importlib.metadata
import inspect
import logging
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any, Final

from onetrip import config
from onetrip.errors import BadRequest, OnetripError
from onetrip.settings import McpTools, OpenApiTools, Settings, ToolOptions
from onetrip.tools.base import Options
from onetrip.tools.functions import check_name, marked
from onetrip.tools.toolbox import Observer, Toolbox

GROUP: Final = "onetrip.tools"  # of entry points
_MIN_SECRET: Final = 6  # characters; shorter ones are in every text
_NAMED_SECRET: Final = re.compile("auth|key|token|secret|password", re.IGNORECASE)

_log: Final = logging.getLogger("onetrip.tools")


@asynccontextmanager
async def load_toolbox(settings: Settings, *, observer: Observer | None = None) -> AsyncGenerator[Toolbox]:
    """All tools of the configuration. MCP servers that are not there yet are waited for once, and come later.

    Raises BadRequest or Unavailable for what cannot be: modules, functions, documents, variables that are not set.
    """
    asked = settings.tools
    overrides = {pattern: _options(options) for pattern, options in asked.options.items()}
    async with AsyncExitStack() as stack:
        box = Toolbox(overrides=overrides, observer=observer)
        stack.callback(box.close)
        for function in _functions(asked.functions, asked.python_path):
            box.add(function)
        if asked.entry_points:
            for function in _entry_points():
                box.add(function)
        if asked.openapi:
            await _add_openapi(box, asked.openapi, stack)
        if asked.mcp:
            await stack.enter_async_context(_mcp_servers(box, asked.mcp))
        names = [tool.name for tool in box.tools]
        for pattern, options in overrides.items():
            if options is not None and not any(fnmatchcase(name, pattern) for name in names):
                _log.warning("tools.options: there is no tool %r", pattern)
        yield box


def _options(options: ToolOptions) -> Options | None:
    if not options.enabled:
        return None
    return Options(
        effect=options.effect,
        approval=options.approval,
        timeout_s=options.timeout_s,
        concurrency=options.concurrency,
        rate=options.rate,
        max_result_bytes=options.max_result_bytes,
    )


# ---------------------------------------------------------------------------------------------------- functions


def _functions(names: tuple[str, ...], path: tuple[str, ...]) -> Iterator[Callable[..., Any]]:
    for folder in reversed(path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for name in names:
        module_name, _, attribute = name.partition(":")
        yield from _of(_loaded(name, lambda module_name=module_name: importlib.import_module(module_name)), attribute, name)


def _entry_points() -> Iterator[Callable[..., Any]]:
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        yield from _of(_loaded(f"entry point {point.name}", point.load), "", point.value)


def _loaded(name: str, load: Callable[[], object]) -> object:
    try:
        return load()
    except Exception as err:  # somebody else's module: whatever it raises
        raise BadRequest(
            f"tools.functions: {name}: cannot be imported: {type(err).__name__}: {str(err)[:300]}",
            field="tools.functions",
            hint="It must be installed, or lie in a folder of `tools.python_path`.",
        ) from err


def _of(found: object, attribute: str, name: str) -> Iterator[Callable[..., Any]]:
    if not attribute:
        if not inspect.ismodule(found):
            if not callable(found):
                raise BadRequest(f"tools.functions: {name}: {found!r:.100} is no function.", field="tools.functions")
            yield found
            return
        functions = {id(value): value for value in vars(found).values() if marked(value) is not None}
        if not functions:
            hint = "Mark functions with @onetrip.tool, or name one: module:function."
            raise BadRequest(f"tools.functions: {name}: no function of it is marked.", field="tools.functions", hint=hint)
        yield from functions.values()
        return
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise BadRequest(f"tools.functions: {name}: there is no {step!r}.", field="tools.functions")
        found = getattr(found, step)
    if not callable(found):
        raise BadRequest(f"tools.functions: {name}: it is no function.", field="tools.functions")
    yield found


# ---------------------------------------------------------------------------------------------------- services


async def _add_openapi(box: Toolbox, asked: tuple[OpenApiTools, ...], stack: AsyncExitStack) -> None:
    from onetrip.tools import http_tools, openapi  # noqa: PLC0415 -- httpx is there only with an extra

    client = await stack.enter_async_context(http_tools.http_client())
    for one in asked:
        check_name(one.name)
        headers, query = _expanded(one.headers, f"{one.name}.headers"), _expanded(one.query, f"{one.name}.query")
        document = openapi.Document(
            await http_tools.read_document(one.document, client),
            reserved_headers=frozenset(headers),
            reserved_query=frozenset(query),
        )
        service = http_tools.Service(
            client,
            http_tools.base_url_of(document, one.document, one.base_url),
            headers=headers,
            query=query,
            secrets=_secrets(one.headers, one.query),
        )
        operations, refused = document.operations()
        for operation in operations:
            if one.only and not any(fnmatchcase(operation.name, pattern) for pattern in one.only):
                continue
            try:
                box.add(http_tools.tool_of(operation, one.name, service))
            except OnetripError as err:
                refused.append(f"{operation.method} {operation.path}: {err}")
        for why in refused:
            _log.warning("tools of %s: left out: %s", one.name, why)


@asynccontextmanager
async def _mcp_servers(box: Toolbox, asked: tuple[McpTools, ...]) -> AsyncGenerator[None]:
    try:
        from onetrip.tools import mcp_servers  # noqa: PLC0415 -- the SDK is there only with an extra
    except ImportError as err:
        raise BadRequest(
            f"tools.mcp: {err.name} is not installed.", field="tools.mcp", hint="Install Onetrip with its extra `serve`."
        ) from err
    servers: list[mcp_servers.McpServer] = []
    for one in asked:
        check_name(one.name)
        if bool(one.command) == bool(one.url):
            raise BadRequest(f"tools.mcp: {one.name}: it needs either `command` or `url`.", field="tools.mcp")
        env, headers = _expanded(one.env, f"{one.name}.env"), _expanded(one.headers, f"{one.name}.headers")
        connect = mcp_servers.over_http(one.url, headers) if one.url else mcp_servers.over_stdio(one.command, env, one.cwd)
        servers.append(mcp_servers.McpServer(one.name, connect, box, only=one.only, secrets=_secrets(one.env, one.headers)))
    try:
        for server in servers:
            server.start()
        await asyncio.gather(*(server.tried.wait() for server in servers))  # each attempt has a deadline
        yield
    finally:
        await asyncio.gather(*(server.aclose() for server in servers))


def _expanded(values: Mapping[str, str], field: str) -> dict[str, str]:
    return {name: config.expanded(text, field=f"tools.{field}.{name}") for name, text in values.items()}


def _secrets(*written: Mapping[str, str]) -> tuple[str, ...]:
    """What must not come back from a service: values of variables, and of what is named as a secret. Others, such as a version or
    a path, may stand in an answer by right.
    """
    found: set[str] = set()
    for one in written:
        for name, text in one.items():
            if "${" in text or _NAMED_SECRET.search(name):
                whole = config.expanded(text, field=f"tools.{name}")
                found |= {whole, whole.rpartition(" ")[2]}  # "Bearer …": the key alone, too
    return tuple(sorted((part for part in found if len(part) >= _MIN_SECRET), key=len, reverse=True))
