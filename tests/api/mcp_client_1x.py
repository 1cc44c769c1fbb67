"""A program for the 1.x client, which has an interpreter of its own: `mcp_client_1x.py URL TOKEN`, or `mcp_client_1x.py PYTHON` for stdio."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from importlib.metadata import version

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from pydantic import AnyUrl


@asynccontextmanager
async def connected():
    if len(sys.argv) == 3:
        async with streamablehttp_client(f"{sys.argv[1]}/mcp", headers={"Authorization": f"Bearer {sys.argv[2]}"}) as (
            read,
            write,
            _,
        ):
            yield read, write
    else:
        async with stdio_client(StdioServerParameters(command=sys.argv[1], args=["-m", "onetrip", "mcp"])) as (read, write):
            yield read, write


async def main():
    printed = []

    async def progress(_done, _total, message):
        printed.append(message)

    async with connected() as (read, write), ClientSession(read, write) as session:
        hello = await session.initialize()
        tools = await session.list_tools()
        first = await session.call_tool("execute_python", {"code": "x = 41\nprint('hi')"}, progress_callback=progress)
        session_id = first.structuredContent["session_id"]
        code = "import matplotlib.pyplot as plt\nplt.plot([1, x])\nplt.show()\nopen('a.txt', 'w').write('text')\nprint(x + 1)"
        second = await session.call_tool("execute_python", {"code": code, "session_id": session_id})
        failed = await session.call_tool("execute_python", {"code": "1/0", "session_id": session_id})
        refused = await session.call_tool("close_session", {"session_id": "ses_none"})
        templates = await session.list_resource_templates()
        resource = await session.read_resource(AnyUrl(f"sandbox://{session_id}/files/a.txt"))
        print(
            json.dumps(
                {
                    "client": version("mcp"),
                    "protocol": hello.protocolVersion,
                    "tools": [tool.name for tool in tools.tools],
                    "printed": printed,
                    "second": second.structuredContent,
                    "types": [content.type for content in second.content],
                    "failed": [failed.isError, failed.structuredContent["error"]["type"], failed.structuredContent["exit_code"]],
                    "refused": [refused.isError, refused.content[0].text],
                    "templates": [str(template.uriTemplate) for template in templates.resourceTemplates],
                    "resource": resource.contents[0].text,
                }
            )
        )


asyncio.run(main())
