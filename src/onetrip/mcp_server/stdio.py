"""MCP on stdin and stdout: one client, whoever started us, with an engine in this process."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio
from mcp.server.stdio import stdio_server

from onetrip.asynchronous import AsyncLocal
from onetrip.errors import OnetripError
from onetrip.mcp_server.local import LocalBackend
from onetrip.mcp_server.server import build

READ_BYTES: Final = 64 << 10


async def serve(ot: AsyncLocal, stdin: int) -> None:
    """Until stdin ends, or SIGTERM or SIGINT; then nothing is left. `ot` is closed by its owner."""
    backend = LocalBackend(ot)
    server = build(lambda _: backend, _ignore)
    try:
        with _lines(stdin) as (reader, end):
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, end)
            try:
                with reader.makefile("r", encoding="utf-8", errors="replace") as file:
                    async with stdio_server(stdin=anyio.wrap_file(file)) as (read, write):
                        await server.run(read, write, server.create_initialization_options())
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
    finally:
        await backend.aclose()


def _ignore(_: OnetripError) -> None:
    """The client is told; nobody else listens here."""


@contextmanager
def _lines(stdin: int) -> Generator["tuple[socket.socket, EndOfInput]"]:
    """stdin as a socket that can be ended. A thread that reads a pipe cannot be called back: only its own end wakes it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        threading.Thread(target=_pump, args=(stdin, theirs.dup()), daemon=True).start()
        yield ours, EndOfInput(ours)


class EndOfInput:
    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    def __call__(self) -> None:
        self._reader.shutdown(socket.SHUT_RD)


def _pump(stdin: int, to: socket.socket) -> None:
    with to:
        try:
            while data := os.read(stdin, READ_BYTES):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # nobody reads any more
