"""The SDK's server with our handlers. Errors of ours are told with code and hint; what nobody expected is logged, and masked by the SDK."""

from collections.abc import Callable
from typing import Any, Final

from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp.server.caching import CacheHint
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
)

from onetrip import __version__
from onetrip.errors import OnetripError
from onetrip.mcp_server import resources
from onetrip.mcp_server.backend import Backend
from onetrip.mcp_server.content import failed
from onetrip.mcp_server.schema import decode
from onetrip.mcp_server.tools import BY_NAME, INSTRUCTIONS, SHOWN

Context = ServerRequestContext[Any, Any]
FRESH_MS: Final = 3_600_000  # the tools are the same for everybody until the server is another one


def build(backend_of: Callable[[Context], Backend], on_error: Callable[[OnetripError], None]) -> Server[Any]:
    """`backend_of` tells whose sessions a request is about; `on_error` hears of each error of ours."""

    async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        del context, params
        return ListToolsResult(tools=list(SHOWN))

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = BY_NAME.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name[:100]!r}; there are {', '.join(BY_NAME)}")
        try:
            return await tool.call(backend_of(context), decode(params.arguments, tool.takes), context)
        except OnetripError as err:
            on_error(err)
            return failed(err)

    async def list_resources(context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        del params
        try:
            return await resources.listed(backend_of(context))
        except OnetripError as err:
            on_error(err)
            raise resources.as_protocol_error(err, resources.TEMPLATE) from err

    async def list_templates(context: Context, params: PaginatedRequestParams | None) -> ListResourceTemplatesResult:
        del context, params
        return resources.templates()

    async def read_resource(context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            return await resources.read(backend_of(context), params.uri)
        except OnetripError as err:
            on_error(err)
            raise resources.as_protocol_error(err, params.uri) from err

    def input_schema(name: str) -> dict[str, Any] | None:
        return next((tool.input_schema for tool in SHOWN if tool.name == name), None)

    return Server(
        "onetrip",
        version=__version__,
        title="Onetrip",
        description="Runs Python in isolated sandboxes.",
        instructions=INSTRUCTIONS,
        cache_hints={"tools/list": CacheHint(FRESH_MS, "public")},
        get_tool_input_schema=input_schema,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
