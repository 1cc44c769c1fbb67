"""`onetrip mcp`: tools for an MCP client that starts its servers itself, such as a desktop application or an editor."""

import asyncio
import sys

import click

from onetrip.embedded import alocal
from onetrip.errors import Unavailable


@click.command("mcp")
def command() -> None:
    """Serve MCP on stdin and stdout until stdin ends. For the URL of a server, see /mcp of `onetrip serve`.

    Its sessions live as long as this process, in sandboxes of this machine. Words for people go to stderr.
    """
    try:
        from onetrip.mcp_server.stdio import serve  # noqa: PLC0415 - its packages may be missing
    except ModuleNotFoundError as err:
        raise Unavailable(f"the package {err.name!r} is missing", hint="`pip install 'onetrip[serve]'`.") from err

    async def main() -> None:
        async with alocal() as ot:
            await serve(ot, sys.stdin.fileno())

    asyncio.run(main())
