"""What the soak may leave behind: what is there of a server at rest, before and after, and what outlives it."""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from counts import SLACK, descendants, resident_mb
from soak_facts import command
from soak_server import Server

from onetrip.node.runs import KEEP_BYTES
from onetrip.pool import MAX_WARM

SETTLE_S = 120.0  # for everything to come to rest before it is counted
SAMPLE_EVERY_S = 5.0
WARM_PROCESSES = 2  # init and the runner
WARM_DESCRIPTORS = 12  # of the node's, per sandbox
# What may be in the data folder of a server that has ended.
STAYS = {"lock", "node.log", "onetrip.db", "token"}


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
            warm = told_of(told, 'onetrip_pool_sandboxes{kind="warm"}')
            now = {
                "warm sandboxes": warm,
                "processes beside them": len(family) - WARM_PROCESSES * warm,
                "nodes": len(nodes),
                "server descriptors": len(os.listdir(f"/proc/{server.process.pid}/fd")),
                "node descriptors beside theirs": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in nodes)
                - WARM_DESCRIPTORS * warm,
                "sessions": told_of(told, "onetrip_sessions"),
                "server memory, MB": round(resident_mb(server.process.pid)),
                "node memory, MB": round(sum(map(resident_mb, nodes)), 1),
                "node: events kept, MB": round(told_of(told, "onetrip_node_kept_bytes") / 1e6, 1),
            }
            counted = {name: value for name, value in now.items() if "MB" not in name}
            same, last = (same + 1, now) if {k: v for k, v in last.items() if "MB" not in k} == counted else (0, now)
    return last


def told_of(metrics: str, name: str) -> float:
    """0 where they are not told, such as by a server that is just beginning."""
    return next((float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"{name} ")), 0.0)


# By how much more there may be at rest than before the load. Counts of processes and sessions: by nothing.
MORE = {
    # Their number follows how fast they were asked for last, for each of two kinds (`pool.MAX_WARM`); so what they hold is taken out of the rest.
    "warm sandboxes": 2 * MAX_WARM,
    # Groups that were used and wait to be used again, up to eight; how many they are is a matter of chance (`counts.SLACK`).
    "node descriptors beside theirs": SLACK["descriptors"][1],
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
