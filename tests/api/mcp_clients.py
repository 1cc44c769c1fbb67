"""MCP clients for tests: the current one over HTTP and stdio, and the 1.x one in a virtual environment of its own."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx2
import pytest
import uv
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

TEST_S = 120.0


def within(work):
    """Run it, with a deadline for all of it."""

    async def main():
        async with asyncio.timeout(TEST_S):
            return await work

    return asyncio.run(main())


@asynccontextmanager
async def over_http(server, mode="auto", token=None):
    headers = {"Authorization": f"Bearer {token or server.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=TEST_S) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def over_stdio(server, mode="auto", token=None):
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "onetrip", "mcp"])
    async with Client(parameters, mode=mode) as client:
        yield client


def python_with(folder, *requirements):
    """The interpreter of a virtual environment that has these packages; the test is skipped if they cannot be had."""
    binary = uv.find_uv_bin()
    python = folder / "venv" / "bin" / "python"
    for arguments in (["venv", "--python", sys.executable, str(folder / "venv")], ["pip", "install", "--python", str(python), *requirements]):
        done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"not tested: the MCP client 1.x; {requirements} cannot be fetched here: {done.stderr[-300:]}")
    return python
