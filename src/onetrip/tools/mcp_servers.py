"""Tools of MCP servers: each is kept connected by a task of its own, and started or connected again when it is gone.

The servers are configured by whoever runs us, and yet what they say is checked: schemas, results, and how much of them. The client is
the official SDK's.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Final, Self, cast

import anyio
import httpx2
import msgspec
import pydantic
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT, CallToolResult, TextContent, ToolListChangedNotification
from mcp_types import Tool as McpTool

from onetrip.errors import OnetripError
from onetrip.model import Tool
from onetrip.schemas import Validator
from onetrip.tools.base import ServerTool, ToolFailed, current_call
from onetrip.tools.functions import check_name, encode, sanitised
from onetrip.tools.toolbox import Toolbox

START_S: Final = 30.0  # for a server to answer its first requests
CONNECT_S: Final = 10.0
CANCEL_S: Final = 1.0  # for a connection to end; then it is told again …
CANCELS: Final = 10  # … so often
AGAIN_S: Final = 2.0  # how long a call waits for a server that is being started again
FIRST_DELAY_S: Final = 0.1  # before the second attempt; each failure doubles it
MAX_DELAY_S: Final = 30.0
STEADY_S: Final = 30.0  # a connection that lived so long was none that failed
MAX_TOOLS: Final = 1_000
_MAX_PAGES: Final = 100
_MAX_SSE_BYTES: Final = 64 << 20  # of one event: a result; the toolbox bounds what of it is passed on
_MAX_TEXT: Final = 2_000

# The SDK adds variables of ours (HOME, PATH, USER …) to those that are configured; a program between removes them again.
_LAUNCH: Final = (
    "import os,sys; i=sys.argv.index('--'); os.execve(sys.argv[i+1],sys.argv[i+1:],{n:os.environ[n] for n in sys.argv[1:i]})"
)
_GONE: Final = (httpx2.HTTPError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)

_log: Final = logging.getLogger("onetrip.tools")
Connect = Callable[[], AbstractAsyncContextManager[Any]]  # gives the SDK's pair of streams


def over_stdio(command: tuple[str, ...], env: Mapping[str, str], cwd: str | None) -> Connect:
    """A program that speaks MCP on stdin and stdout. It gets the variables of `env` and no other; its stderr is ours."""

    def connect() -> AbstractAsyncContextManager[Any]:
        found = shutil.which(command[0])
        if found is None:
            raise FileNotFoundError(f"there is no program {command[0]!r}")
        args = ["-I", "-S", "-c", _LAUNCH, *env, "--", found, *command[1:]]
        parameters = StdioServerParameters(command=sys.executable, args=args, env=dict(env), cwd=cwd)
        return stdio_client(parameters, sys.__stderr__ or sys.stderr)

    return connect


def over_http(url: str, headers: Mapping[str, str]) -> Connect:
    """A server at an address, by streamable HTTP. Redirects to other hosts are not followed (the SDK sees to that)."""

    @asynccontextmanager
    async def connect() -> AsyncGenerator[Any]:
        timeout = httpx2.Timeout(None, connect=CONNECT_S)  # the toolbox ends what takes too long
        async with (
            httpx2.AsyncClient(headers=dict(headers), timeout=timeout, trust_env=False) as client,
            streamable_http_client(url, http_client=client, max_sse_event_size=_MAX_SSE_BYTES) as streams,
        ):
            yield streams

    return connect


class McpServer:
    """One server, its tools in a toolbox from `start` to `aclose`. Calls to a server that is gone fail, and may be tried again."""

    def __init__(
        self, name: str, connect: Connect, toolbox: Toolbox, *, only: tuple[str, ...] = (), secrets: tuple[str, ...] = ()
    ) -> None:
        """`only`: names or patterns of the tools to take, as the server or as we name them; (): all."""
        self._name = name
        self._connect = connect
        self._toolbox = toolbox
        self._only = only
        self._secrets = secrets
        self._names: set[str] = set()  # of our tools in the toolbox
        self._client: Client | None = None
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()
        self._changed = asyncio.Event()
        self.tried = asyncio.Event()  # the first attempt is over, well or not
        self._keeping: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Connect, and connect again whenever the connection ends, until `aclose`."""
        self._keeping = asyncio.create_task(self._keep())

    async def aclose(self) -> None:
        """End the connection, and the program where it is one."""
        self._closing = True
        for _ in range(CANCELS):  # one that meets an end of the SDK's own is lost in there
            if self._keeping is None or self._keeping.done():
                return
            self._keeping.cancel()
            await asyncio.wait([self._keeping], timeout=CANCEL_S)
        _log.warning("MCP server %s: its connection does not end; it is left", self._name)

    async def _keep(self) -> None:
        delay = 0.0
        while not self._closing:
            began = time.monotonic()
            try:
                await self._once()
                why = "the connection ended"
            except Exception as err:  # noqa: BLE001 -- a server of somebody else, through a library that raises whatever it meets
                why = _said(err)
                _log.debug("MCP server %s", self._name, exc_info=err)
            finally:
                self._client = None
                self._ready.clear()
                self.tried.set()
            if self._closing:
                return
            delay = 0.0 if time.monotonic() - began > STEADY_S else min(MAX_DELAY_S, delay * 2 or FIRST_DELAY_S)
            _log.warning("MCP server %s: %s; the next attempt is in %.1f s", self._name, why, delay)
            await asyncio.sleep(delay)

    async def _once(self) -> None:
        self._broken.clear()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(START_S):
                client = await stack.enter_async_context(
                    Client(cast("Any", _watched(self._connect(), self._broken.set)), message_handler=self._heard)
                )
                # the SDK would check results with a validator that fetches what schemas refer to, and takes any pattern; ours does not
                client.session.validate_tool_result = _unchecked  # pyright: ignore[reportAttributeAccessIssue]
                await self._list(client)
            self._client = client
            self._ready.set()
            self.tried.set()
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen(client))
                refreshing = group.create_task(self._refresh(client))
                await self._broken.wait()
                listening.cancel()
                refreshing.cancel()
            self._client = None
            self._ready.clear()

    async def _heard(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._changed.set()
        elif isinstance(message, Exception):
            _log.debug("MCP server %s", self._name, exc_info=message)

    async def _listen(self, client: Client) -> None:
        """Servers of 2026 say that their list changed only to who listens."""
        tools = client.server_capabilities.tools
        if tools is None or not tools.list_changed:
            return
        delay = FIRST_DELAY_S
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    self._changed.set()  # it may have changed since it was read
                    async for _ in events:
                        delay = FIRST_DELAY_S
                        self._changed.set()
                return  # the server does not want to be listened to
            except SubscriptionLost:  # a proxy's time-out, or the server was started anew
                await asyncio.sleep(delay)
                delay = min(MAX_DELAY_S, delay * 2)
            except Exception as err:  # noqa: BLE001 -- older servers do not know it: they say it unasked
                _log.debug("MCP server %s: not listening: %s", self._name, _said(err))
                return

    async def _refresh(self, client: Client) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with asyncio.timeout(START_S):
                    await self._list(client)
            except Exception as err:  # noqa: BLE001 -- as in `keep`; the old list stays
                _log.warning("MCP server %s: its list of tools cannot be read: %s", self._name, _said(err))

    async def _list(self, client: Client) -> None:
        found: list[McpTool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) > MAX_TOOLS:
                break
        made: dict[str, ServerTool] = {}
        for one in found[:MAX_TOOLS]:
            if self._only and not any(
                fnmatchcase(called, only) for only in self._only for called in (one.name, sanitised(one.name))
            ):
                continue
            name = base = f"{self._name}.{sanitised(one.name)}"
            number = 1
            while name in made:
                number += 1
                name = f"{base}_{number}"
            try:
                made[name] = self._tool(check_name(name), one)
            except OnetripError as err:
                _log.warning("MCP server %s: its tool %r is left out: %s", self._name, one.name[:100], err)
        self._toolbox.replace(self._names, made.values())
        self._names = set(made)

    def _tool(self, name: str, declared: McpTool) -> ServerTool:
        validator = Validator(declared.input_schema, field=f"{name}.input_schema")
        output = declared.output_schema
        wrapped = output is not None and list(cast("dict[str, Any]", output.get("properties") or {})) == ["result"]
        if output is not None and wrapped:
            output = {**output["properties"]["result"], **({"$defs": output["$defs"]} if "$defs" in output else {})}
        checks = None if output is None else Validator(output, root="result", field=f"{name}.output_schema")

        reads = declared.annotations is not None and declared.annotations.read_only_hint is True

        async def invoke(arguments: bytes, most: int) -> bytes:
            try:
                given = msgspec.json.decode(arguments, type=dict[str, Any])
            except msgspec.DecodeError as err:
                raise ToolFailed(f"arguments: {err}", type="arguments") from None
            problem = validator.problem(given)
            if problem is not None:
                raise ToolFailed(problem, type="arguments")
            value = self._value(await self._called(declared.name, given, changes=not reads), wrapped=wrapped)
            encoded = encode(value, most)
            if checks is not None and (problem := checks.problem(value)) is not None:
                raise ToolFailed(f"The MCP server's answer is not what it promised: {problem}", code="result_invalid")
            return encoded

        return ServerTool(
            tool=Tool(
                name=name,
                description=(declared.description or declared.title or "")[:8_000],
                input_schema=declared.input_schema,
                output_schema=output,
                effect="read" if reads else "write",
                side="server",
            ),
            invoke=invoke,
        )

    async def _called(self, name: str, given: dict[str, Any], *, changes: bool) -> CallToolResult:
        if self._client is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._ready.wait()
        client = self._client
        if client is None:
            message = f"The MCP server {self._name!r} cannot be reached; it is being connected again. The call was not made."
            raise ToolFailed(message, retryable=True, code="unavailable")
        try:
            return await client.call_tool(name, given, meta=cast("Any", {"onetrip/callId": current_call().id}))
        except MCPError as err:
            if err.code == CONNECTION_CLOSED:
                raise self._gone(changes=changes) from err
            if err.code == REQUEST_TIMEOUT:
                raise ToolFailed("The MCP server did not answer in time.", type="timeout", retryable=True) from err
            if err.message.startswith(("Session terminated", "Session not found")):  # it was started anew and knows us no more
                raise self._gone(changes=changes) from err
            raise ToolFailed(self._told(err.message), code=f"mcp_{err.code}") from err
        except pydantic.ValidationError as err:
            raise ToolFailed("The MCP server's answer is not MCP.", code="result_invalid") from err
        except _GONE as err:
            raise self._gone(changes=changes) from err

    def _gone(self, *, changes: bool) -> ToolFailed:
        self._broken.set()
        message = f"The connection to the MCP server {self._name!r} ended in the middle of the call; it is being connected again."
        if changes:
            message += " What the call does may be done all the same."
        return ToolFailed(message, retryable=True, code="unavailable")

    def _value(self, result: CallToolResult, *, wrapped: bool) -> Any:
        texts = [part.text for part in result.content if isinstance(part, TextContent)]
        if result.is_error:
            raise ToolFailed(self._told("\n".join(texts)) or "The MCP server says that the call failed, and not why.")
        structured: Any = result.structured_content
        if structured is not None:
            if wrapped and isinstance(structured, dict) and "result" in structured:
                return cast("dict[str, Any]", structured)["result"]
            return cast("Any", structured)
        if len(texts) < len(result.content):  # pictures, sounds, links
            return [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]
        if not texts:
            return None
        text = "\n".join(texts)
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text

    def _told(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_MAX_TEXT]


@asynccontextmanager
async def _watched(transport: AbstractAsyncContextManager[Any], ended: Callable[[], None]) -> AsyncGenerator[Any]:
    async with transport as (read, write):
        yield _Watched(read, ended), write


class _Watched:
    """The SDK's stream of what a server says, with word of its end: the SDK itself tells only who waits for an answer."""

    def __init__(self, read: Any, ended: Callable[[], None]) -> None:
        self._read = read
        self._ended = ended

    @property
    def last_context(self) -> Any:
        return getattr(self._read, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._read.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._ended()
            raise

    async def aclose(self) -> None:
        await self._read.aclose()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._read.__anext__()
        except (StopAsyncIteration, anyio.ClosedResourceError):
            self._ended()
            raise

    async def __aenter__(self) -> Self:
        await self._read.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._read.__aexit__(kind, error, trace)


async def _unchecked(name: str, result: CallToolResult) -> None:
    """Instead of the SDK's check of a result."""


def _said(err: BaseException) -> str:
    while isinstance(err, BaseExceptionGroup):
        err = cast("BaseExceptionGroup[BaseException]", err).exceptions[0]
    return f"{type(err).__name__}: {str(err)[:300]}"
