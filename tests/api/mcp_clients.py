"""MCP clients for tests: the current one over HTTP and stdio, the 1.x one in a virtual environment of its own, and a server to speak to."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import uv
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from onetrip.settings import Settings
from onetrip.store import FILE, Store
from onetrip.tenants import Tenants

TEST_S = 120.0


def within(work):
    """Run it, with a deadline for all of it."""

    async def main():
        async with asyncio.timeout(TEST_S):
            return await work

    return asyncio.run(main())


@contextlib.contextmanager
def serving():
    """A server on a data folder of its own; `new_key` makes keys for it."""
    with tempfile.TemporaryDirectory(prefix="ot-", dir="/tmp") as folder:  # a socket's name has at most 108 bytes
        data = Path(folder) / "data"
        with open(Path(folder) / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "onetrip", "serve", "--port", "0", "--json"],
                env={**os.environ, "ONETRIP_DATA": str(data)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            told = json.loads(process.stdout.readline())
            server = SimpleNamespace(url=told["url"], data=data, process=process)
            server.token = new_key(server, "acme")  # that of a server without keys would end with the first one
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(TEST_S)
            process.stdout.close()


def new_key(server, tenant, role="user"):
    with Store.open(server.data / FILE) as store:
        tenants = Tenants(store, Settings())
        tenants.create_tenant(tenant)
        return tenants.create_key(tenant, role)[0]


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


@asynccontextmanager
async def over_stdio_to_server(server, mode="auto", token=None):
    arguments = ["-m", "onetrip", "mcp", "--url", server.url]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env={"ONETRIP_TOKEN": token or server.token})
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
    for arguments in (
        ["venv", "--python", sys.executable, folder / "venv"],
        ["pip", "install", "--python", python, *requirements],
    ):
        done = subprocess.run([uv.find_uv_bin(), *arguments], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"not tested: the MCP client 1.x; {requirements} cannot be fetched here: {done.stderr[-300:]}")
    return python
