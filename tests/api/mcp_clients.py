"""MCP clients for tests: the current one over HTTP and stdio, and the 1.x one in a virtual environment of its own."""

import asyncio
import contextlib
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

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


def descendants(root):
    """Every process below one, as /proc has it now."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    found, edge = set(), {root}
    while edge := {pid for pid, parent in parents.items() if parent in edge} - found:
        found |= edge
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def python_with(folder, *requirements):
    """The interpreter of a virtual environment that has these packages; the test is skipped if they cannot be had."""
    python = folder / "venv" / "bin" / "python"
    for arguments in (["venv", "--python", sys.executable, folder / "venv"], ["pip", "install", "--python", python, *requirements]):
        done = subprocess.run([uv.find_uv_bin(), *arguments], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"not tested: the MCP client 1.x; {requirements} cannot be fetched here: {done.stderr[-300:]}")
    return python
