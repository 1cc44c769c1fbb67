"""Half an hour of a server at 80 % load with faults on purpose; afterwards nothing is lost and nothing has leaked.

    make soak            or: .venv/bin/python bench/soak.py --minutes 30

A real `onetrip serve` process, clients over HTTP. First it is measured how many requests per second it does when asked as fast as it
can; then it is asked for 80 % of that, open-loop: late answers do not slow the asking down. Meanwhile, at random times: clients that go
away in the middle, processes of sandboxes that are killed, zygotes that are killed, the server that is killed (and started again), a
workspace that is full, and, for root, who can give the server a small disk, that disk.

What the clients may be told is in `soak_load`: each session and each run is judged, and what a kill explains is known from the host alone
(`soak_facts`). What may be left is in `leaks` below. Every request has an idempotency key and is repeated until there is an answer.
Prints a table; `--json` the same for programs. Exit status: 0 nothing lost or left, 1 otherwise.
"""

import argparse
import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from counts import SLACK, descendants, resident_mb
from soak_facts import Kills, command, state
from soak_load import ANSWER_S, SESSIONS, Load, Record

from onetrip.node.runs import KEEP_BYTES

LOAD = 0.8
CALIBRATE_S = 20.0
SETTLE_S = 120.0  # for everything to come to rest before it is counted
MOST_WAITING = 200
FAULT_EVERY_S = (4.0, 12.0)
SAMPLE_EVERY_S = 5.0
FULL_S = 2.0  # how long the server's disk is full
DISK = "1g"  # of the server, if it has one of its own: half an hour of results takes some 400 MB
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
# What may be in the data folder of a server that has ended.
STAYS = {"lock", "node.log", "onetrip.db", "token"}


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


# ---------------------------------------------------------------------------------------------------- faults


@dataclass
class Faults:
    """`run` until `stop`: one after the other, each at a random time."""

    server: Server
    load: Load
    dice: random.Random
    has_disk: bool  # of its own
    only: str | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.guest_killed, self.guest_killed, self.zygote_killed, self.server_killed, self.server_killed, self.workspace_full,
        ]  # fmt: skip
        kinds += [self.disk_full] if self.has_disk else []
        kinds = [kind for kind in kinds if self.only in {None, kind.__name__}]
        while not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), self.dice.uniform(*FAULT_EVERY_S))
            if not self.stop.is_set():
                await self.dice.choice(kinds)()

    async def guest_killed(self) -> None:
        of_somebody = await self.load.kills.guest(self.server.family(), self.dice)
        self.load.record.faults["process of a session or one-shot killed" if of_somebody else "waiting sandbox killed"] += 1

    async def zygote_killed(self) -> None:
        took = await self.load.kills.zygote(self.server.family(), self.dice)
        if took >= 0:
            self.load.record.faults["zygote killed"] += 1
            self.load.record.counts["sandboxes that died with a zygote"] += took

    async def server_killed(self) -> None:
        self.load.record.faults["server killed"] += 1
        await self.server.kill()

    async def workspace_full(self) -> None:
        self.load.record.faults["workspace full"] += 1
        async with self.server.client() as client:
            await self.load.fill(client)

    async def disk_full(self) -> None:
        """Of the server: for a moment its database cannot grow by a byte."""
        self.load.record.faults["disk of the server full"] += 1
        ballast = self.server.data / "ballast"
        with open(ballast, "wb") as file:  # noqa: ASYNC230 -- a file in memory
            size = 1 << 30
            while size >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                except OSError as err:
                    if err.errno != errno.ENOSPC:
                        raise
                    size //= 2
        await asyncio.sleep(FULL_S)
        ballast.unlink()


# ---------------------------------------------------------------------------------------------------- what is there


@dataclass
class Memory:
    """Of the node, while it works: MB resident, and how many of them are events that it keeps."""

    server: Server
    samples: list[tuple[float, float]] = field(default_factory=list)

    async def run(self) -> None:
        async with self.server.client() as client:
            while True:
                await self.server.up.wait()
                with contextlib.suppress(httpx.TransportError):
                    kept = told_of((await client.get("/metrics")).text, "onetrip_node_kept_bytes") / 1e6
                    self.samples += [(resident_mb(pid), kept) for pid in self.server.nodes() if kept]
                await asyncio.sleep(SAMPLE_EVERY_S)

    def quarters(self) -> list[float]:
        """What it has beside these events: the median of each quarter of the time."""
        each = len(self.samples) / 4
        parts = [self.samples[int(i * each) : int((i + 1) * each)] for i in range(4)]
        return [round(statistics.median(mb - kept for mb, kept in part), 1) for part in parts] if each >= 2 else []


async def at_rest(server: Server) -> dict[str, float]:
    """Counts when nothing moves any more."""
    give_up, last, same = time.monotonic() + SETTLE_S, {}, 0
    async with server.client() as client:
        while same < 5 and time.monotonic() < give_up:
            await asyncio.sleep(1)
            reap()
            told = (await client.get("/metrics")).text
            family, nodes = server.family(), server.nodes()
            now = {
                "processes": len(family),
                "nodes": len(nodes),
                "server descriptors": len(os.listdir(f"/proc/{server.process.pid}/fd")),
                "node descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in nodes),
                "sessions": told_of(told, "onetrip_sessions"),
                "server memory, MB": round(resident_mb(server.process.pid)),
                "node memory, MB": round(sum(map(resident_mb, nodes)), 1),
                "node: events kept, MB": round(told_of(told, "onetrip_node_kept_bytes") / 1e6, 1),
            }
            counted = {name: value for name, value in now.items() if "MB" not in name}
            same, last = (same + 1, now) if {k: v for k, v in last.items() if "MB" not in k} == counted else (0, now)
    return last


def told_of(metrics: str, name: str) -> float:
    return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"{name} "))


# By how much more there may be at rest than before the load. Counts of processes and sessions: by nothing.
MORE = {
    # Groups that were used and wait to be used again, up to eight; how many they are is a matter of chance (`counts.SLACK`).
    "node descriptors": SLACK["descriptors"][1],
    # Connections of clients that went away in this moment, one file of the database.
    "server descriptors": 8,
    # Each server lives for a minute or two, so a leak could not show here; a hundred or a thousand who waited at once after a fault do,
    # as the allocator does not give back what they needed.
    "server memory, MB": 48,
}
# The node's memory is what it is made of, and the events of saved runs that it keeps for readers who come back. These are bounded by a
# constant (`node.runs.KEEP_BYTES`), are counted by the node, and are dropped as new ones come, so after a load there are as many as may be.
# So its memory at rest, less what it counts, is to be what it was; by so much it may be more: what the allocator does not give back
# of the most that was in use at once, and what an event costs beyond what is counted for it.
NODE_TOLERANCE_MB = 24.0
# And a leak goes on: what the node has beside these events does not grow from the second quarter of the time to the last. The first
# quarter does not count, as memory that was needed once stays. The samples are taken under load, so what runs at that moment is in them.
NODE_GROWTH_MB = 8.0


def leaks(before: dict[str, float], after: dict[str, float], memory: Memory) -> Iterator[str]:
    """What has been left by the load, in words."""
    for name, was in before.items():
        more = MORE.get(name, 0)
        if not name.startswith("node memory") and "kept" not in name and after[name] > was + more:
            yield f"{name}: {was:g} before, {after[name]:g} after; {more:g} more may be"
    if after["nodes"] != 1:
        yield f"{after['nodes']:g} nodes"
    kept = after["node: events kept, MB"]
    if kept > KEEP_BYTES / 1e6:
        yield f"the node keeps {kept} MB of events; its bound is {KEEP_BYTES / 1e6:.1f} MB"
    was, now = (count["node memory, MB"] - count["node: events kept, MB"] for count in (before, after))
    if now > was + NODE_TOLERANCE_MB:
        yield f"the node's memory without the events that it keeps: {was:.1f} MB before, {now:.1f} MB after"
    quarters = memory.quarters()
    if quarters and quarters[3] > quarters[1] + NODE_GROWTH_MB:
        yield f"the node's memory grows, MB without events by quarters of the time: {quarters}"


def temporary_folders(pid: int) -> set[str]:
    """Those that a process holds by a lock (`onetrip.removal.RunFolder`)."""
    found: set[str] = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            folder, file = os.path.split(os.readlink(f"/proc/{pid}/fd/{name}"))
            if file == "owner.lock" and os.path.dirname(folder) == tempfile.gettempdir():
                found.add(folder)
    return found


def groups_of(pid: int) -> list[str]:
    """Control groups of its sandboxes: their names begin with its number."""
    return [
        os.path.join(folder, name)
        for folder, folders, _ in os.walk("/sys/fs/cgroup")
        if os.path.basename(folder).startswith("onetrip")
        for name in folders
        if name.startswith(f"{pid}-")
    ]


async def remains(server: Server, node: int, folders: set[str], mounts: str) -> list[str]:
    """What outlives a server that was stopped, in words."""
    give_up = time.monotonic() + SETTLE_S
    while descendants(os.getpid()) and time.monotonic() < give_up:  # the node's process ends a moment after it has said so
        await asyncio.sleep(0.1)
        reap()
    left = [f"process {pid} {command(pid)[:120]}" for pid in sorted(descendants(os.getpid()))]
    left += [f"control group {name}" for name in groups_of(node)]
    left += [f"folder {name}" for name in folders if os.path.exists(name)]  # noqa: ASYNC240 -- nothing else is at work any more
    left += [f"file {name} in the data folder" for name in sorted(set(os.listdir(server.data)) - STAYS)]
    now = Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240 -- the same
    left += [
        f"mount {line}"
        for line in set(now.splitlines()) - set(mounts.splitlines())
        if str(server.folder) in line or "onetrip" in line
    ]
    return left


def reap() -> None:
    """Collect orphans that ended; the server is waited for elsewhere and is still alive."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                os.waitpid(pid, os.WNOHANG)


# ---------------------------------------------------------------------------------------------------- the course


async def capacity(server: Server, load: Load) -> float:
    """Requests per second when 16 clients ask as fast as they can."""
    done = 0
    async with server.client() as client:
        for _ in range(SESSIONS):
            await load.open_session(client)
        end = time.monotonic() + CALIBRATE_S

        async def ask() -> None:
            nonlocal done
            while time.monotonic() < end:
                await load.work(client)
                done += 1

        await asyncio.gather(*(ask() for _ in range(16)))
        await load.finish(client)
    return done / CALIBRATE_S


async def at_rate(server: Server, load: Load, rate: float, seconds: float, progress: Callable[[float, int], None]) -> int:
    """Open-loop: begun at the times that the rate says, whatever becomes of those before. Gives how many were not begun.

    That is so while `MOST_WAITING` are on their way: the machine has become slower than it was when its capacity was measured, by
    others' work, or by a server and a zygote that are being started. It is then loaded in full, and not to 80 %; more who wait would only
    show how long a queue can become that nobody works off.
    """
    begun = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    number = held_back = 0
    async with server.client() as client:
        while (now := time.monotonic()) < begun + seconds:
            if now < begun + number / rate:
                await asyncio.sleep(begun + number / rate - now)
            number += 1
            if len(tasks) >= MOST_WAITING:
                held_back += 1
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(load.work(client))
            tasks.add(task)
            task.add_done_callback(lambda task: (tasks.discard(task), task.result()))
            progress(now - begun, len(tasks))
        while tasks:
            await asyncio.wait(tasks, timeout=ANSWER_S)
    return held_back


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Put a small file system there, if we may."""
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)]
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.call(["umount", "--lazy", str(folder)])


async def main(minutes: float, seed: int, *, only: str | None, as_json: bool) -> int:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: nodes that outlive their server come to us, and are seen
    dice, record = random.Random(seed), Record()
    shown = 0.0

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    def progress(at_s: float, waiting: int) -> None:
        nonlocal shown
        if at_s >= shown:
            shown = at_s + 30
            mb = memory.samples[-1][0] if memory.samples else 0
            say(f"{at_s / 60:5.1f} min  {sum(record.counts.values())} answers, {waiting} on their way, "
                f"{sum(record.faults.values())} faults, {len(record.wrong)} wrong; node {mb:.0f} MB")  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="onetrip-soak-") as name:
        server, kills = Server(Path(name)), Kills()
        memory = Memory(server)
        with disk(server.data) as has_disk:
            mounts = Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240 -- nothing is at work yet
            try:
                await server.start()
                (node,) = server.nodes()
                warm = Load(server, Record(), kills, dice)
                most = await capacity(server, warm)
                record.wrong += warm.record.wrong  # nothing had been killed yet
                say(f"capacity: {most:.0f} requests per second; asking for {most * LOAD:.0f}")
                before = await at_rest(server)
                load = Load(server, record, kills, dice)
                faults = Faults(server, load, dice, has_disk, only)
                troubles, sampling = asyncio.create_task(faults.run()), asyncio.create_task(memory.run())
                held_back = await at_rate(server, load, most * LOAD, minutes * 60, progress)
                sampling.cancel()
                faults.stop.set()
                await troubles
                async with server.client() as client:
                    await load.finish(client)
                    await load.look_again(client, say)
                after = await at_rest(server)
                folders = temporary_folders(node)
                if server.nodes() != [node]:
                    record.fail("the node died")
            finally:
                await asyncio.to_thread(server.stop)
            left = [*leaks(before, after, memory), *await remains(server, node, folders, mounts)]
    report = {
        "minutes": minutes, "seed": seed, "capacity_per_s": round(most, 1), "load_per_s": round(most * LOAD, 1), "held_back": held_back,
        "p50_ms": round(percentile(record.ms, 0.5), 2), "p99_ms": round(percentile(record.ms, 0.99), 2),
        "answers": dict(sorted(record.counts.items())), "faults": dict(sorted(record.faults.items())), "before": before, "after": after,
        "node_mb_by_quarter": memory.quarters(), "node_mb_most": max((mb for mb, _ in memory.samples), default=0),
        "left": left, "wrong": record.wrong[:20], "wrong_count": len(record.wrong),
    }  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:20} {value}")
    for what in left:
        say(f"WRONG  left: {what}")
    return 1 if record.wrong or left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="only this kind of fault, such as server_killed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.seed, only=given.only, as_json=given.json)))
