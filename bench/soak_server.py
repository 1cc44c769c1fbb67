"""The server of the soak: a real process, that is killed and started again on the same port and data."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
from counts import descendants
from soak_facts import command, state
from soak_load import ANSWER_S

SETTINGS = """
data_dir = "{folder}/data"
port = {port}
lease_s = 120
log_level = "warning"
max_queue = 400
queue_timeout_s = 30
idle_timeout_s = 3600
min_free_memory_mb = 0
"""


class Server:
    """The process under test, and how to reach it. Restarted on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.up = asyncio.Event()
        self.data.mkdir(mode=0o700)

    async def start(self) -> None:
        (self.folder / "onetrip.toml").write_text(SETTINGS.format(folder=self.folder, port=self.port))
        log = open(self.folder / "serve.log", "ab")  # noqa: SIM115, ASYNC230 -- it is the child's
        with log:
            self.process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "onetrip", "serve", "--config", str(self.folder / "onetrip.toml"), "--json"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            raise SystemExit(f"the server did not start: {(self.folder / 'serve.log').read_text()[-2000:]}")
        said = json.loads(line)
        self.port, self.token = int(said["url"].rpartition(":")[2]), said["token"]
        async with self.client() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
        self.up.set()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=ANSWER_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def kill(self) -> None:
        self.up.clear()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)
        self.process.stdout.close()
        await self.start()

    def family(self) -> set[int]:
        """Node, zygotes, sandboxes: they are our descendants, as this process takes over orphans."""
        return descendants(os.getpid())

    def nodes(self) -> list[int]:
        return [pid for pid in self.family() if "onetrip.node" in command(pid) and state(pid) != "Z"]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)
            self.process.stdout.close()
