"""A zygote without its host: it keeps the live sandboxes for its lease, the next host takes them over, and then it is gone."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onetrip import environments, wire
from onetrip.errors import PlatformError, SandboxFailed
from onetrip.jail import cgroup, control
from onetrip.model import Cell, Done, Limits, Policy, Result
from onetrip.tiers.base import LaunchSpec
from onetrip.tiers.jail import JailTier
from onetrip.tiers.jail_zygote import ZygoteHandle
from onetrip.worker import Worker

SPEC = LaunchSpec(id="one", environment="default", node="bare", limits=Limits(), meta={"session": "ses_1"})
# A host that starts a zygote with a lease, runs one cell in one sandbox, and then waits to be killed.
HOST = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_adoption import SPEC, execute
from onetrip import environments
from onetrip.model import Limits, Policy
from onetrip.tiers.jail import JailTier
from onetrip.worker import Worker

async def main():
    tier = JailTier(environments.find, level="strict", lease_s=float(sys.argv[2]), run_dir=Path(sys.argv[1]))
    worker = Worker(await tier.launch(SPEC))
    await worker.start()
    worker.greet(Limits(), Policy())
    assert (await execute(worker, "kept = 41")).status == "completed"
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def execute(worker: Worker, code: str) -> Result:
    events = worker.execute(Cell(code=code), Limits(wall_s=20), "run_1", session_id=None, queue_ms=0, start_ms=0)
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.result
    raise AssertionError("no result")


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory(prefix="adopt-") as folder:
        yield Path(folder)


def killed_host(run_dir: Path, lease_s: float, descendants) -> set[int]:
    """Start a host, kill it, and give what it left running."""
    command = [sys.executable, "-c", HOST, str(run_dir), str(lease_s), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
        assert host.stdout.readline() == b"ready\n"
        tree = descendants(host.pid)
        host.kill()
    return tree


def alive(tree: set[int]) -> list[int]:
    found = []
    for pid in tree:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


class Adopted:
    """The next host: takes over what there is, and speaks to the guests by the protocol."""

    def __init__(self, path: Path) -> None:
        self.messages: list[tuple[dict, list[int]]] = []
        self.all = asyncio.Event()
        self.handle = ZygoteHandle.adopt(path)
        self.handle.on_event = self._event
        self.handle.tell({"do": "adopt"})

    def _event(self, message, fds) -> None:
        self.messages.append((dict(message), fds))
        if message["event"] == "adopted_all":
            self.all.set()

    async def run(self, fds: list[int], code: str) -> dict:
        """One cell over the descriptors that came along; the guest's account of it."""
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(fds[0])) as channel:
            channel.setblocking(False)
            protocol = wire.HostProtocol(state="idle")
            for packet in protocol.execute(wire.Execute(secrets.token_hex(8), 2, False, (code.encode(), b"{}"))):
                await loop.sock_sendall(channel, packet)
            while True:
                message = protocol.receive(await loop.sock_recv(channel, wire.PACKET_BYTES))
                if message is not None:
                    return json.loads(message.parts[0])

    def close(self) -> None:
        for _, fds in self.messages:
            control.close_all(fds)


@pytest.mark.spec("END-02")
def test_the_next_host_adopts_the_sandboxes_of_one_that_was_killed(run_dir, descendants, wait_until):
    tree = killed_host(run_dir, 20, descendants)
    (path,) = run_dir.glob("*.sock")

    async def main() -> None:
        host = Adopted(path)
        async with asyncio.timeout(10):
            await host.all.wait()
        adopted = [(message["id"], message["meta"], len(fds)) for message, fds in host.messages if message["event"] == "adopted"]
        assert adopted == [("one", {"session": "ses_1"}, 7)]
        fds = next(fds for message, fds in host.messages if message["event"] == "adopted")
        account = await host.run(fds, "print('still here'); kept + 1")
        assert (account["text"], account["error"]) == ("42", None)
        assert os.read(fds[1], 100) == b"still here\n"
        host.close()
        await host.handle.aclose()

    asyncio.run(main())
    assert wait_until(lambda: alive(tree) == [])


@pytest.mark.spec("END-02")
def test_an_adopted_zygote_launches_more(run_dir, descendants, wait_until):
    tree = killed_host(run_dir, 20, descendants)
    (path,) = run_dir.glob("*.sock")

    async def main() -> None:
        host = Adopted(path)
        await host.all.wait()
        request = {
            "id": "two", "node": "bare", "meta": {}, "disk_bytes": 512 << 20, "inodes": 16384, "cpu": None,
            "workspace": "/workspace", "scratch": None, "uid": None,
        }  # fmt: skip
        with pytest.raises(SandboxFailed, match="a host of another kind"):
            await host.handle.launch({**request, "id": "odd"}, [0] * 7)
        hierarchy = cgroup.probe()
        with contextlib.ExitStack() as stack:
            joined: tuple[int, ...] = ()
            if hierarchy.version != "none":
                group = cgroup.Group.create(hierarchy, "two", memory_bytes=1 << 30, processes=64)
                stack.callback(group.remove)
                joined = group.procs_fds
            fds, node = await host.handle.launch(request, joined)
            assert (len(fds), node) == (7, "bare")
            host.handle.tell({"do": "forget", "id": "two"})
        control.close_all(fds)
        host.close()
        await host.handle.aclose()

    asyncio.run(main())
    assert wait_until(lambda: alive(tree) == [])


@pytest.mark.spec("END-02", "END-01")
def test_without_another_host_everything_ends_with_the_lease(run_dir, descendants, wait_until):
    tree = killed_host(run_dir, 0.5, descendants)
    assert wait_until(lambda: alive(tree) == [])
    (path,) = run_dir.glob("*.sock")

    async def main() -> None:
        with pytest.raises(PlatformError, match="no zygote listens"):
            ZygoteHandle.adopt(path)

    asyncio.run(main())


@pytest.mark.spec("END-02")
def test_a_host_that_detaches_can_be_followed_by_another(run_dir):
    async def main() -> None:
        tier = JailTier(environments.find, level="strict", lease_s=20, run_dir=run_dir)
        worker = Worker(await tier.launch(SPEC))
        await worker.start()
        worker.greet(Limits(), Policy())
        assert (await execute(worker, "kept = 41")).status == "completed"
        zygote = await tier.zygote("default")
        tier.detach()
        (path,) = run_dir.glob("*.sock")
        host = Adopted(path)
        await host.all.wait()
        fds = next(fds for message, fds in host.messages if message["event"] == "adopted")
        assert (await host.run(fds, "kept + 1"))["text"] == "42"
        host.close()
        await host.handle.aclose()
        await worker.aclose()
        await zygote.aclose()
        await tier.aclose()

    asyncio.run(main())


@pytest.mark.spec("END-02")
def test_a_second_host_beside_the_first_is_turned_away(run_dir):
    async def main() -> None:
        tier = JailTier(environments.find, level="strict", run_dir=run_dir)
        sandbox = await tier.launch(SPEC)
        (path,) = run_dir.glob("*.sock")
        lost = asyncio.Event()
        intruder = ZygoteHandle.adopt(path)
        intruder.on_lost = lost.set
        intruder.tell({"do": "adopt"})
        async with asyncio.timeout(10):
            await lost.wait()
        worker = Worker(sandbox)
        await worker.start()
        worker.greet(Limits(), Policy())
        assert (await execute(worker, "1 + 1")).text == "2"
        await worker.aclose()
        await tier.aclose()

    asyncio.run(main())


@pytest.mark.spec("ISO-11")
def test_a_house_that_cannot_be_built_names_its_step(run_dir, monkeypatch):
    async def main() -> None:
        tier = JailTier(environments.find, level="strict", run_dir=run_dir)
        monkeypatch.setattr("onetrip.tiers.jail.ENVIRON", {"PATH": "/usr/bin"})
        real = ZygoteHandle.start

        async def broken(house, config, path):
            return await real({**house, "argv": ["/no/such/python"]}, config, path)

        monkeypatch.setattr(ZygoteHandle, "start", broken)
        with pytest.raises(SandboxFailed, match="start the zygote.*No such file"):
            await tier.launch(SPEC)
        await tier.aclose()

    asyncio.run(main())
