"""The same measures over HTTP on loopback: a server of its own, a bare echo on the same stack, and a client that costs little.

The client is a few lines over asyncio's streams and not one of the well-known libraries, which take more time per request than what
is measured here; it keeps its connection.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from onetrip.errors import PlatformError

from . import proctree
from .figures import Figure, of_samples, ratio
from .ours import BARE, CELL, GAP_S, PANDAS, SETTLE_S
from .peers import end

FILE_BYTES: Final = 10_000_000
CLIENTS: Final = 16
START_S: Final = 60.0
ECHO_BODY: Final = json.dumps({"code": CELL, "padding": "x" * 1000}).encode()  # about what a result has
MB: Final = 1_000_000


class Connection:
    """One kept connection to a server."""

    def __init__(self, port: int, token: str = "") -> None:
        self._port, self._token = port, token

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)

    async def __aexit__(self, *_exc: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer. Raises PlatformError for any status but 2xx."""
        if self._reader.at_eof():  # closed by the server, as nothing was asked for long
            self._writer.close()
            await self._open()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        answer = await self._reader.readexactly(length)
        if not 200 <= status < 300:
            raise PlatformError(f"{method} {path}: {status}: {answer[:300].decode(errors='replace')}")
        return answer

    async def run(self, path: str, code: str) -> dict[str, Any]:
        """A run that completed. Raises PlatformError for another one: a failed program is fast, and no measurement."""
        result: dict[str, Any] = json.loads(await self.ask("POST", path, json.dumps({"code": code}).encode()))
        if result["status"] != "completed":
            raise PlatformError(f"a measured program ended with {result['status']}: {result['error']}")
        return result


class Http:
    """A server, an echo, a connection to each. `async with` ends them."""

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._held = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-bench-")))
            settings = folder / "onetrip.toml"
            settings.write_text(
                f'data_dir = "{folder}/data"\nport = 0\nenvironment = "{self._environment}"\nlog_level = "warning"\n'
                f"lease_s = 5\nmin_free_memory_mb = 0\n"
            )
            (folder / "data").mkdir(0o700)
            self._server = held.enter_context(_process("onetrip", "serve", "--config", str(settings), "--json"))
            echo = held.enter_context(_process("onetrip.bench.http_echo"))
            said = json.loads(await asyncio.to_thread(_line, self._server))
            self._port, self._token = int(said["url"].rpartition(":")[2]), said["token"]
            self.echo = await held.enter_async_context(Connection(int(await asyncio.to_thread(_line, echo))))
            self.server = await held.enter_async_context(Connection(self._port, self._token))
            self.pids = {self._server.pid, echo.pid}
            await self._wait_ready()
            request = json.dumps({"environment": self._environment, "checkpoints": 0}).encode()
            self._session = json.loads(await self.server.ask("POST", "/v1/sessions", request))["id"]
            self._cells = f"/v1/sessions/{self._session}/runs"
            await self.server.run(self._cells, "x = 0")
            self._held = held.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._held.aclose()

    async def _wait_ready(self) -> None:
        """Until ten one-shots in a row were fast: then every zygote has its imports."""
        give_up, row = time.monotonic() + START_S, 0
        while row < 10:
            start = time.perf_counter()
            with contextlib.suppress(PlatformError):
                await self.server.run("/v1/runs", PANDAS)
            row = row + 1 if time.perf_counter() - start < 0.05 else 0
            if time.monotonic() > give_up:
                raise PlatformError(f"one-shots over HTTP still take over 50 ms after {START_S:.0f} s")

    async def echoes(self, count: int) -> list[float]:
        return [await _timed(self.echo.ask("POST", "/", ECHO_BODY)) for _ in range(count)]

    async def warm_cells(self, count: int) -> list[float]:
        return [await _timed(self.server.run(self._cells, CELL)) for _ in range(count)]

    async def oneshots(self, count: int) -> list[float]:
        taken = list[float]()
        for _ in range(count):
            await asyncio.sleep(GAP_S)
            taken.append(await _timed(self.server.run("/v1/runs", PANDAS)))
        return taken

    async def oneshot_rate(self, seconds: float) -> float:
        """One-shots per second of `CLIENTS` connections, each asking again as soon as it has its answer."""
        async with contextlib.AsyncExitStack() as held:
            connections = [await held.enter_async_context(Connection(self._port, self._token)) for _ in range(CLIENTS)]
            start = time.perf_counter()

            async def call_on(connection: Connection) -> int:
                count = 0
                while time.perf_counter() < start + seconds:
                    await connection.run("/v1/runs", PANDAS)
                    count += 1
                return count

            counts = await asyncio.gather(*map(call_on, connections))
            rate = sum(counts) / (time.perf_counter() - start)
        await asyncio.sleep(SETTLE_S)
        return rate

    async def file_mb_s(self) -> tuple[float, float]:
        """A file of `FILE_BYTES` up and down: MB per second."""
        path, content = f"/v1/sessions/{self._session}/files/f", os.urandom(FILE_BYTES)
        up = await _timed(self.server.ask("PUT", path, content))
        start = time.perf_counter()
        back = await self.server.ask("GET", path)
        down = (time.perf_counter() - start) * 1e3
        if back != content:
            raise PlatformError("the file that came back is another one")
        await self.server.ask("DELETE", path)
        return FILE_BYTES / MB / up * 1e3, FILE_BYTES / MB / down * 1e3

    async def many_sessions(self, count: int, checkpoints: int) -> float:
        """GB that the machine has less to give while so many sessions with pandas imported are live."""
        await asyncio.sleep(SETTLE_S)
        before = _available_bytes()
        sessions = list[str]()
        try:
            async with self._several(4) as connections:
                waiting = list(range(count))

                async def open_on(connection: Connection) -> None:
                    while waiting:
                        waiting.pop()
                        request = json.dumps({"environment": self._environment, "checkpoints": checkpoints}).encode()
                        session = json.loads(await connection.ask("POST", "/v1/sessions", request))["id"]
                        sessions.append(session)
                        await connection.run(f"/v1/sessions/{session}/runs", "import pandas")

                await asyncio.gather(*map(open_on, connections))
                await asyncio.sleep(SETTLE_S)
                used = before - _available_bytes()
                for session in sessions[:: max(1, count // 20)]:  # they are there
                    await self.server.run(f"/v1/sessions/{session}/runs", BARE)
        finally:
            for session in sessions:
                await self.server.ask("DELETE", f"/v1/sessions/{session}")
        return used / 1e9

    @contextlib.asynccontextmanager
    async def _several(self, count: int) -> AsyncGenerator[list[Connection]]:
        async with contextlib.AsyncExitStack() as held:
            yield [await held.enter_async_context(Connection(self._port, self._token)) for _ in range(count)]

    def processes(self) -> set[int]:
        return {pid for root in self.pids for pid in proctree.pids(root)}


def figures(samples: Mapping[str, Sequence[float]], sessions: int, fork_rate: Figure | None) -> list[Figure | None]:
    echo = of_samples(
        "http_echo", "HTTP: a bare echo on the same stack", "ms", samples["http_echo"], "1 KB there and back: the limit"
    )
    warm = of_samples("http_warm", f"HTTP: warm cell `{CELL}`, no undo", "ms", samples["http_warm"], "one after the other")
    rate = of_samples("http_rate", "HTTP: one-shots, sustained", "1/s", samples["http_rate"], f"{CLIENTS} clients")
    return [
        echo,
        warm,
        ratio("http_warm_ratio", "HTTP: warm cell : echo", warm, echo),
        of_samples("http_oneshot", "HTTP: one-shot from the pool", "ms", samples["http_oneshot"], "numpy and pandas imported"),
        rate,
        ratio("http_rate_ratio", "HTTP: sustained, one-shots : bare forks", rate, fork_rate),
        of_samples("http_up", "HTTP: a file of 10 MB up", "MB/s", samples["http_up"]),
        of_samples("http_down", "HTTP: a file of 10 MB down", "MB/s", samples["http_down"]),
        of_samples("http_sessions", f"HTTP: {sessions:,} live sessions, no undo", "GB", samples["http_sessions"], "pandas imported; all that the machine has less"),
        of_samples("http_sessions_undo", f"HTTP: {sessions:,} live sessions, undo", "GB", samples["http_sessions_undo"], "the same"),
    ]  # fmt: skip


async def _timed(work: Any) -> float:
    start = time.perf_counter()
    await work
    return (time.perf_counter() - start) * 1e3


@contextlib.contextmanager
def _process(module: str, *arguments: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        end(process)


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise PlatformError(f"it ended with status {process.wait()} instead of serving")
    return line


def _available_bytes() -> int:
    """What the kernel thinks can be had without swapping (proc_meminfo(5))."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise PlatformError("the kernel does not say how much memory is free")
