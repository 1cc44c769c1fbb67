"""An MCP server for tests: on stdio, or over HTTP with a port as its argument; `legacy` after it: without the protocol of 2026."""

import os
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp_types import CallToolResult, TextContent, ToolAnnotations

server = MCPServer("shop", version="1")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="find-item")
def find_item(name: str) -> dict[str, int]:
    return {name: len(name)}


@server.tool(structured_output=False)
def as_text(text: str) -> str:
    return text


@server.tool(structured_output=False)
def picture() -> Image:
    return Image(data=b"\x89PNG", format="png")


@server.tool()
def nothing() -> CallToolResult:
    return CallToolResult(content=[])


@server.tool()
def fails(why: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=why)], isError=True)


@server.tool()
def variables() -> list[str]:
    return sorted(os.environ)


@server.tool()
def variable(name: str) -> str:
    return os.environ[name]


@server.tool()
def pid() -> int:
    return os.getpid()


@server.tool()
def die() -> int:
    os._exit(3)


@server.tool()
async def hang(entered: str) -> int:
    import anyio

    await anyio.Path(entered).write_text("x")  # a pipe that a test reads
    await anyio.sleep_forever()
    return 0


@server.tool()
async def grow(ctx: Context) -> int:
    """From now on there is a tool more, and everybody is told."""
    server.add_tool(lambda: 7, name="grown", structured_output=False)
    await ctx.notify_tools_changed()
    if ctx.request_context.protocol_version < "2026":
        await ctx.session.send_tool_list_changed()
    return 1


@server.tool()
def large(size: int) -> str:
    return "x" * size


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import uvicorn

        app = server.streamable_http_app(streamable_http_path="/mcp", host="127.0.0.1")

        async def guarded(scope, receive, send):
            if scope["type"] == "http":
                headers = dict(scope["headers"])
                unknown = "legacy" in sys.argv and headers.get(b"mcp-protocol-version", b"") >= b"2026"
                if unknown or headers.get(b"authorization") != b"Bearer tok-secret-1":
                    await send({"type": "http.response.start", "status": 400 if unknown else 401, "headers": []})
                    await send({"type": "http.response.body", "body": b""})
                    return
            await app(scope, receive, send)

        config = uvicorn.Config(guarded, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="on")
        uvicorn.Server(config).run()
    else:
        server.run("stdio")
