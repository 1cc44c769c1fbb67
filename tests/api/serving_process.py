"""A server of `servers` as the tests of the native interface want it: the node behind it, raw sockets, keys, and who is left at its end."""

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx

import servers
from onetrip.settings import Quota, Role, Settings
from onetrip.store import FILE, Store
from onetrip.tenants import Tenants

Condition = Callable[[], Any]


def wait_for(condition: Condition, seconds: float = 30.0, what: str = "it did not happen in time") -> Any:
    """Poll for what gives no event, such as the end of a process that is not our child; gives what `condition` gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.01)
    return found


async def async_wait_for(condition: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> Any:
    """The same for what is asked for over a connection of the test's own event loop."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110 -- another process says it, and only when it is asked
            await asyncio.sleep(0.01)
    return found


class Server(servers.Server):
    """A server, the node behind it, and who speaks to it."""

    def __init__(self, config: str = "") -> None:
        super().__init__(config=config)
        self.nodes: set[int] = set()

    def start(self) -> Self:
        super().start()
        wait_for(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, servers.START_S, self.log)
        self.nodes.add(self.node)
        return self

    @property
    def environ(self) -> dict[str, str]:
        """For another command on the same data."""
        return {**os.environ, "ONETRIP_DATA": str(self.data)}

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGINT)
        for node in self.nodes | self.find_nodes():  # of a server that was killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(node, signal.SIGTERM)
        wait_for(lambda: not any(alive(node) for node in self.nodes), 30, "the node did not end")
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ what there is of it

    @property
    def node(self) -> int:
        """The node's process: what writes to this folder's node.log."""
        return next(iter(self.find_nodes()))

    def find_nodes(self) -> set[int]:
        log = str(self.data / "node.log")
        return {pid for pid in _processes() if "-m onetrip.node" in cmdline(pid) and _link(f"/proc/{pid}/fd/2") == log}

    def tree(self) -> set[int]:
        """The node and everything below it."""
        return {self.node} | descendants(self.node)

    def groups(self, node: int) -> set[str]:
        found: set[str] = set()
        for folder, folders, _ in os.walk("/sys/fs/cgroup"):
            if os.path.basename(folder) == f"onetrip-{os.geteuid()}":
                found |= {f"{folder}/{name}" for name in folders if name.startswith(f"{node}-")}
                folders.clear()
        return found

    # ------------------------------------------------------------------ who speaks to it

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=options.pop("timeout", 60.0), **options)

    def aclient(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60.0, **options)

    def begin(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None, *, token: str | None = None) -> str:
        """Ask for a run, and let go of the connection when it has begun: it goes on. Gives its id."""
        with self.client(token) as api, api.stream("POST", path, json=body | {"stream": True}, headers=headers) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: "):
                    return json.loads(line[6:])["run_id"]
        raise AssertionError("no event came")

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """Its database, as another process sees it, such as `onetrip keys`."""
        with Store.open(self.data / FILE) as store:
            yield store

    def key(self, tenant: str = "acme", role: Role = "user", quota: Quota | None = None) -> str:
        with self.store() as store:
            tenants = Tenants(store, Settings())
            tenants.create_tenant(tenant, quota)
            return tenants.create_key(tenant, role)[0]

    def raw(self, room_bytes: int | None = None) -> socket.socket:
        """A connection of bytes. `room_bytes`: of the kernel's buffer for what we do not read, which else grows to tens of megabytes."""
        sock = socket.socket()
        if room_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", self.port))
        return sock


def parse(text: str) -> list[tuple[int, str, Any]]:
    """Events as (number, name, data); what is no event by the rules of SSE is a failure."""
    found: list[tuple[int, str, Any]] = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        match = re.fullmatch(r"id: (\d+)\nevent: (\w+)\ndata: (.*)", block)
        assert match, block
        found.append((int(match[1]), match[2], json.loads(match[3])))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def cmdline(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def rss_bytes(pid: int, what: str = "VmHWM") -> int:
    """What a process has in memory, or (`VmHWM`) had at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(what)


def descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for pid in _processes():
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    found: set[int] = set()
    edge = {root}
    while edge:
        edge = {pid for pid, parent in parents.items() if parent in edge} - found
        found |= edge
    return found


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""
