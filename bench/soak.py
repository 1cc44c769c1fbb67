"""Half an hour of a server at 80 % load with faults on purpose; afterwards nothing is lost and nothing has leaked.

    make soak            or: .venv/bin/python bench/soak.py --minutes 30

A real `onetrip serve` process, clients over HTTP. It is measured how many requests per second it does when asked as fast as it can;
then it is asked for 80 % of that, open-loop: late answers do not slow the asking down. Meanwhile, at random times: clients that go
away in the middle, processes of sandboxes that are killed, zygotes that are killed, the server that is killed (and started again), a
workspace that is full, and, for root, who can give the server a small disk, that disk.

What the clients may be told is in `soak_load`: each session and each run is judged, and what a kill explains is known from the host alone
(`soak_facts`). What may be left is in `soak_left`. Every request has an idempotency key and is repeated until there is an answer.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from soak_facts import Kills
from soak_left import Memory, at_rest, leaks, remains, temporary_folders
from soak_load import SESSIONS, Load, Record
from soak_server import Server

LOAD = 0.8
CALIBRATE_S = 15.0
ROUND_S = 240.0
MOST_WAITING = 200
FAULT_EVERY_S = (4.0, 12.0)
ALL_FAULTS_MIN = 10.0  # in so many minutes each kind of fault comes up, or the dice are loaded
FULL_S = 2.0  # how long the server's disk is full
DISK = "1g"  # of the server, if it has one of its own: half an hour of results takes some 400 MB


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
    calm: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by who wants none for a while

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
                async with self.calm:
                    await self.dice.choice(kinds)()

    def kinds(self) -> list[str]:
        """What is to happen at least once, as it is counted."""
        own = ["disk of the server full"] if self.has_disk else []
        return [
            "client gone",
            "process of a session or one-shot killed",
            "zygote killed",
            "server killed",
            "workspace full",
            *own,
        ]

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


# ---------------------------------------------------------------------------------------------------- the course


async def capacity(load: Load, client: httpx.AsyncClient, seconds: float) -> float:
    """Requests per second when 16 clients ask as fast as they can, in sessions that there are."""
    for _ in range(SESSIONS - len(load.sessions)):
        await load.open_session(client)
    done, end = 0, time.monotonic() + seconds

    async def ask() -> None:
        nonlocal done
        while time.monotonic() < end:
            await load.work(client)
            done += 1

    await asyncio.gather(*(ask() for _ in range(16)))
    return done / seconds


@dataclass
class Course:
    """`run` for so long: in rounds, since others may use the machine, too, and what it can do changes with what they do.

    Each round measures its capacity anew, without faults, and then asks for 80 % of it, open-loop: at the times that the rate says, whatever
    becomes of those before. What is not begun is counted (`held_back`): it is due while `MOST_WAITING` are on their way, when a server and
    a zygote are being started, or the machine has become slower since. It is then loaded in full; more who wait would only show how long
    a queue can become that nobody works off.
    """

    server: Server
    load: Load
    faults: Faults
    calibrate_s: float
    progress: Callable[[float, int], None]
    rates: list[float] = field(default_factory=list)
    begun: int = 0
    held_back: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        async with self.server.client() as client:
            while (left := end - time.monotonic()) > 0:
                async with self.faults.calm:
                    await self.rest()
                    self.rates.append(await capacity(self.load, client, min(self.calibrate_s, left)) * LOAD)
                await self.round(client, self.rates[-1], min(ROUND_S, end - time.monotonic()), end - seconds)
            await self.rest()

    async def round(self, client: httpx.AsyncClient, rate: float, seconds: float, since: float) -> None:
        start, number = time.monotonic(), 0
        while (now := time.monotonic()) < start + seconds:
            if now < start + number / rate:
                await asyncio.sleep(start + number / rate - now)
            number += 1
            self.progress(now - since, len(self._tasks))
            if len(self._tasks) >= MOST_WAITING:
                self.held_back += 1
                await asyncio.sleep(0)
                continue
            self.begun += 1
            task = asyncio.create_task(self.load.work(client))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if (err := task.exception()) is not None:  # what could not be judged is not right
            self.load.record.fail(f"the client failed: {err!r}")

    async def rest(self) -> None:
        """Until nothing is on its way."""
        while self._tasks:
            await asyncio.wait(self._tasks)


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


async def main(minutes: float, seed: int, calibrate_s: float, *, only: str | None, as_json: bool) -> int:
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
                async with server.client() as client:
                    await capacity(warm, client, calibrate_s)  # first things are done: code is loaded, pools are filled
                    await warm.finish(client)
                record.wrong += warm.record.wrong  # nothing had been killed yet
                before = await at_rest(server)
                load = Load(server, record, kills, dice)
                faults = Faults(server, load, dice, has_disk, only)
                troubles, sampling = asyncio.create_task(faults.run()), asyncio.create_task(memory.run())
                course = Course(server, load, faults, calibrate_s, progress)
                await course.run(minutes * 60)
                if not sampling.cancel():
                    sampling.result()  # raises why there are no more samples
                faults.stop.set()
                await troubles
                async with server.client() as client:
                    await load.finish(client)
                    await load.look_again(client, say)
                after = await at_rest(server)
                folders = temporary_folders(node)
                if server.nodes() != [node]:
                    record.fail("the node died")
                if minutes >= ALL_FAULTS_MIN and only is None:
                    record.wrong += [f"there was no fault “{kind}”" for kind in faults.kinds() if not record.faults[kind]]
            finally:
                await asyncio.to_thread(server.stop)
            left = [*leaks(before, after, memory), *await remains(server, node, folders, mounts)]
    report = {
        "minutes": minutes, "seed": seed, "asked_per_s": [round(rate, 1) for rate in course.rates], "begun": course.begun, "held_back": course.held_back,
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
    parser.add_argument(
        "--calibrate", type=float, default=CALIBRATE_S, metavar="S", help="seconds for which its capacity is measured"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.seed, given.calibrate, only=given.only, as_json=given.json)))
