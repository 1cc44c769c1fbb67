"""`onetrip mcp`: tools for an MCP client that starts its servers itself, such as a desktop application or an editor."""

import asyncio
import sys

import click

from onetrip.embedded import alocal
from onetrip.errors import Unavailable
from onetrip.remote import aconnect


@click.command("mcp")
@click.option("--url", help="Run programs on this server instead of this machine.", metavar="URL")
@click.option("--token", help="The key for it.  [default: that of ONETRIP_TOKEN]", metavar="KEY")
def command(url: str | None, token: str | None) -> None:
    """Serve MCP on stdin and stdout until stdin ends. A client that speaks HTTP needs none of this: see /mcp of `onetrip serve`.

    Its sessions live as long as this process, in sandboxes of this machine or, with --url, of a server. Words for people go to stderr.
    """
    try:
        from onetrip.mcp_server.stdio import serve  # noqa: PLC0415 - its packages may be missing
    except ModuleNotFoundError as err:
        raise Unavailable(f"the package {err.name!r} is missing", hint="`pip install 'onetrip[serve]'`.") from err

    async def main() -> None:
        async with alocal() if url is None and token is None else aconnect(url, token) as ot:
            await serve(ot, sys.stdin.fileno())

    asyncio.run(main())
