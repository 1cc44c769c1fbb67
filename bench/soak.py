"""Half an hour of a server at 80 % load with faults on purpose; afterwards nothing is lost and nothing has leaked.

    make soak            or: .venv/bin/python bench/soak.py --minutes 30

A real `onetrip serve` process, clients over HTTP. First it is measured how many requests per second it does when asked as fast as it
can; then it is asked for 80 % of that, open-loop: late answers do not slow the asking down. Meanwhile, at random times: clients that go
away in the middle, guests that are killed, zygotes that are killed, the server that is killed (and started again), a disk that is full.

Each session keeps a counter, which each cell returns: no value is answered twice (a cell that ran twice, or was undone behind our back),
none is above the number of cells asked for, and at the end the counter is at least the number of answers. Every request has an
idempotency key and is repeated until there is an answer. Prints a table; `--json` the same for programs. Exit status: 0 nothing lost or left, 1 otherwise.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from counts import descendants, resident_mb

LOAD = 0.8
SESSIONS = 24
CALIBRATE_S = 20.0
ANSWER_S = 60.0  # a request that has no answer by then is a failure
SETTLE_S = 60.0  # for everything to come to rest before it is counted
FAULT_EVERY_S = (4.0, 12.0)
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
ONE_SHOTS = (
    ("1 + 1", "completed"),
    ("import pandas as pd\nint(pd.Series([1, 2]).sum())", "completed"),
    ("1 / 0", "failed"),
    ("print('x' * 20000)", "completed"),
    ("open('a', 'w').write('x' * 5000)", "completed"),
    ("import os\nos._exit(3)", "failed"),
)
COUNT = "n += 1\nopen('n', 'w').write(str(n))\nn"


@dataclass
class Record:
    """What happened. `wrong` are sentences about what must not happen."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.wrong.append(what)
        if len(self.wrong) <= 20:
            print(f"WRONG  {what}", file=sys.stderr, flush=True)


class Server:
    """The process under test, and how to reach it. Restarted on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.up = asyncio.Event()
        (folder / "data").mkdir(mode=0o700)

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
            raise SystemExit(f"the server did not start; {self.folder}/serve.log")
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

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)
            self.process.stdout.close()


@dataclass
class Counter:
    opened_at: float = 0.0  # when it was asked for
    asked: int = 0
    values: set[int] = field(default_factory=set)


class Load:
    def __init__(self, server: Server, record: Record, dice: random.Random) -> None:
        self.server, self.record, self.dice = server, record, dice
        self.sessions: dict[str, Counter] = {}
        self.fault_at = 0.0  # the last one that may take sessions or cells with it

    async def ask(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], *, tries_s: float = ANSWER_S
    ) -> httpx.Response | None:
        """Until there is an answer, with one idempotency key. None: the client gave up."""
        key, give_up = secrets.token_hex(8), time.monotonic() + tries_s
        while time.monotonic() < give_up:
            await self.server.up.wait()
            try:
                answer = await client.post(path, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                self.record.counts["asked again: connection lost"] += 1
                await asyncio.sleep(0.05)
                continue
            if answer.status_code in (429, 503):
                self.record.counts[f"asked again: {answer.status_code}"] += 1
                await asyncio.sleep(float(answer.headers.get("retry-after", "1")) * self.dice.random())
                continue
            return answer
        self.record.fail(f"no answer to POST {path} within {tries_s:.0f} s")
        return None

    async def one_shot(self, client: httpx.AsyncClient) -> None:
        code, wanted = self.dice.choice(ONE_SHOTS)
        start = time.perf_counter()
        answer = await self.ask(client, "/v1/runs", {"code": code})
        if answer is None:
            return
        self.record.ms.append((time.perf_counter() - start) * 1e3)
        if answer.status_code != 200:
            self.record.fail(f"a one-shot: {answer.status_code} {answer.text[:200]}")
            return
        result = answer.json()
        status = result["status"]
        self.record.counts[f"one-shot {status}"] += 1
        if status not in (wanted, "lost"):
            self.record.fail(f"a one-shot that should be {wanted} is {status}: {result['error']}")
        again = await client_get(client, f"/v1/runs/{result['id']}") if self.dice.random() < 0.05 else None
        if again is not None and again.status_code == 200 and again.json()["status"] != status:
            self.record.fail(f"run {result['id']} has two results")

    async def open_session(self, client: httpx.AsyncClient) -> None:
        asked_at = time.monotonic()
        answer = await self.ask(client, "/v1/sessions", {"limits": {"memory_mb": 256}})
        if (
            answer is not None
            and answer.status_code == 500
            and self.fault_at >= asked_at
            and answer.json()["code"] == "sandbox_failed"
        ):
            self.record.counts["session not begun: its zygote died"] += 1  # said so, nothing was begun: to be asked for again
            return
        if answer is None or answer.status_code != 201:
            self.record.fail(f"a session: {answer and answer.text[:200]}")
            return
        session = answer.json()["id"]
        first = await self.ask(client, f"/v1/sessions/{session}/runs", {"code": "n = 0"})
        if first is not None and first.status_code == 200:
            self.sessions[session] = Counter(asked_at)

    async def count(self, client: httpx.AsyncClient, session: str, *, last: bool = False) -> None:
        """One more."""
        state = self.sessions[session]
        state.asked += 1
        answer = await self.ask(client, f"/v1/sessions/{session}/runs", {"code": COUNT})
        if answer is None or session not in self.sessions:
            return
        if answer.status_code in (404, 410):
            if state.opened_at > self.fault_at:
                self.record.fail(f"session {session} is gone without a fault: {answer.json().get('detail')}")
            self.record.counts["session gone, with the reason"] += 1
            self.sessions.pop(session, None)
            return
        result = answer.json()
        self.record.counts[f"cell {result.get('status', answer.status_code)}"] += 1
        if result.get("status") == "lost" or not result.get("session", {}).get("survived", False):
            if state.opened_at > self.fault_at:
                self.record.fail(f"session {session} was lost without a fault: {result.get('error')}")
            self.sessions.pop(session, None)
            return
        if result["status"] == "completed":
            value = result["value"]
            if value in state.values and state.opened_at > self.fault_at:
                self.record.fail(f"session {session} has counted to {value} twice")
            if value > state.asked:
                self.record.fail(f"session {session} has counted {value}, and {state.asked} were asked: one ran twice")
            state.values.add(value)
            if last and value < len(state.values) and state.opened_at > self.fault_at:
                self.record.fail(f"session {session} has counted {value}, and {len(state.values)} were answered")

    async def leave(self, client: httpx.AsyncClient) -> None:
        """A client that goes away in the middle of a stream."""
        self.record.faults["client gone"] += 1
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(0.2), client.stream(
                "POST", "/v1/runs", json={"code": "import time\nfor i in range(30): print(i); time.sleep(0.05)", "stream": True,
                                          "on_disconnect": self.dice.choice(["interrupt", "continue"])},
            ) as answer:  # fmt: skip
                async for _ in answer.aiter_lines():
                    pass

    async def work(self, client: httpx.AsyncClient) -> None:
        dice = self.dice.random()
        if dice < 0.02:
            await self.leave(client)
        elif dice < 0.5 and self.sessions:
            await self.count(client, self.dice.choice(list(self.sessions)))
        elif len(self.sessions) < SESSIONS:
            await self.open_session(client)
        else:
            await self.one_shot(client)


async def client_get(client: httpx.AsyncClient, path: str) -> httpx.Response | None:
    try:
        return await client.get(path)
    except httpx.TransportError:
        return None


# ---------------------------------------------------------------------------------------------------- faults


async def faults(server: Server, load: Load, record: Record, dice: random.Random, stop: asyncio.Event, only: str | None) -> None:
    kinds = [guest_killed, guest_killed, zygote_killed, server_killed, server_killed, disk_full]
    kinds = [kind for kind in kinds if only in (None, kind.__name__)]
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), dice.uniform(*FAULT_EVERY_S))
        if not stop.is_set():
            kind = dice.choice(kinds)
            record.faults[kind.__name__.replace("_", " ")] += 1
            await kind(server, load, dice)


async def guest_killed(server: Server, load: Load, dice: random.Random) -> None:
    """A random sandbox's process, from outside: its cell is taken back, or its session is gone."""
    guests = [pid for pid in server.family() if len(numbers(pid)) > 2 and numbers(pid)[-1] > 1]
    load.fault_at = time.monotonic()
    if guests:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(guests), signal.SIGKILL)
    load.fault_at = time.monotonic()  # also for what was opened meanwhile


async def zygote_killed(server: Server, load: Load, dice: random.Random) -> None:
    zygotes = [pid for pid in server.family() if len(numbers(pid)) == 2 and numbers(pid)[-1] == 1]
    load.fault_at = time.monotonic()
    if zygotes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(zygotes), signal.SIGKILL)
    load.fault_at = time.monotonic()  # also for what was opened meanwhile


async def server_killed(server: Server, load: Load, dice: random.Random) -> None:
    del load, dice
    await server.kill()


async def disk_full(server: Server, load: Load, dice: random.Random) -> None:
    """A session that fills its workspace."""
    del dice
    async with server.client() as client:
        answer = await load.ask(client, "/v1/runs", {"code": "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
                                                     "limits": {"disk_mb": 4, "memory_mb": 64}})  # fmt: skip
        if answer is not None and answer.status_code == 200 and answer.json()["status"] not in ("limit_exceeded", "lost"):
            load.record.fail(f"a full workspace ends with {answer.json()['status']}: {answer.json()['error']}")


def numbers(pid: int) -> list[int]:
    """Of a process, in each PID namespace from ours down: a zygote is the first of the second, a sandbox's are in the third."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


# ---------------------------------------------------------------------------------------------------- the course


async def capacity(server: Server, load: Load) -> float:
    """Requests per second when 16 clients ask as fast as they can, after which what they did does not count."""
    done = 0
    end = time.monotonic() + CALIBRATE_S
    async with server.client() as client:
        for _ in range(SESSIONS):
            await load.open_session(client)

        async def ask() -> None:
            nonlocal done
            while time.monotonic() < end:
                await load.work(client)
                done += 1

        await asyncio.gather(*(ask() for _ in range(16)))
    return done / CALIBRATE_S


async def at_rate(server: Server, load: Load, rate: float, seconds: float, progress: Any) -> None:
    """Open-loop: begun at the times that the rate says, whatever becomes of those before."""
    begun = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    number = 0
    async with server.client() as client:
        while (now := time.monotonic()) < begun + seconds:
            if now < begun + number / rate:
                await asyncio.sleep(begun + number / rate - now)
            number += 1
            task = asyncio.create_task(load.work(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            progress(now - begun, len(tasks))
        while tasks:
            await asyncio.wait(tasks, timeout=ANSWER_S)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


async def main(minutes: float, seed: int, *, only: str | None, as_json: bool) -> int:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: nodes that outlive their server come to us, and are seen
    dice, record = random.Random(seed), Record()
    shown = 0.0

    def progress(at_s: float, waiting: int) -> None:
        nonlocal shown
        if at_s >= shown:
            shown = at_s + 30
            print(f"{at_s / 60:5.1f} min  {sum(record.counts.values())} answers, {waiting} on their way, "
                  f"{sum(record.faults.values())} faults, {len(record.wrong)} wrong", file=sys.stderr, flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="onetrip-soak-") as name:
        server = Server(Path(name))
        try:
            await server.start()
            warm = Load(server, Record(), dice)
            most = await capacity(server, warm)
            print(f"capacity: {most:.0f} requests per second; asking for {most * LOAD:.0f}", file=sys.stderr, flush=True)
            await close_all(server, warm)
            before = await at_rest(server)
            load, stop = Load(server, record, dice), asyncio.Event()
            troubles = asyncio.create_task(faults(server, load, record, dice, stop, only))
            await at_rate(server, load, most * LOAD, minutes * 60, progress)
            stop.set()
            await troubles
            async with server.client() as client:  # what was counted is there, in memory and in files
                for session in list(load.sessions):
                    await load.count(client, session, last=True)
            await close_all(server, load)
            after = await at_rest(server)
        finally:
            await asyncio.to_thread(server.stop)
        give_up = time.monotonic() + SETTLE_S
        while descendants(os.getpid()) and time.monotonic() < give_up:  # the node's process ends a moment after it has said so
            await asyncio.sleep(0.1)
            reap()
        left = sorted(describe(pid) for pid in descendants(os.getpid()))
    report = {
        "minutes": minutes, "seed": seed, "capacity_per_s": round(most, 1), "load_per_s": round(most * LOAD, 1),
        "p50_ms": round(percentile(record.ms, 0.5), 2), "p99_ms": round(percentile(record.ms, 0.99), 2),
        "answers": dict(record.counts), "faults": dict(record.faults), "before": before, "after": after,
        "left": left, "wrong": record.wrong[:20], "wrong_count": len(record.wrong),
    }  # fmt: skip
    grown = [name for name in before if after[name] > before[name] * 1.2 + 8]
    if as_json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:16} {value}")
    for what in (*left, *(f"{name}: {before[name]} before, {after[name]} after" for name in grown)):
        print(f"WRONG  left: {what}", file=sys.stderr)
    return 1 if record.wrong or left or grown else 0


async def close_all(server: Server, load: Load) -> None:
    async with server.client() as client:
        for session in load.sessions:
            await client.delete(f"/v1/sessions/{session}")
    load.sessions.clear()


async def at_rest(server: Server) -> dict[str, float]:
    """Counts when nothing moves any more."""
    give_up, last, same = time.monotonic() + SETTLE_S, {}, 0
    while same < 5 and time.monotonic() < give_up:
        await asyncio.sleep(1)
        reap()
        family = server.family()
        now = {
            "processes": len(family),
            "server descriptors": len(os.listdir(f"/proc/{server.process.pid}/fd")),
            "server memory, MB": round(resident_mb(server.process.pid)),
            "node memory, MB": round(sum(resident_mb(pid) for pid in family if "onetrip.node" in command(pid))),
        }
        counted = {name: value for name, value in now.items() if "memory" not in name}
        same, last = (same + 1, now) if {k: v for k, v in last.items() if "memory" not in k} == counted else (0, now)
    return last


def reap() -> None:
    """Collect orphans that ended; the server is waited for elsewhere and is still alive."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if state[0] == "Z" and int(state[1]) == os.getpid():
                os.waitpid(pid, os.WNOHANG)


def describe(pid: int) -> str:
    return f"{pid} {command(pid)[:120]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="only this kind of fault, such as server_killed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.seed, only=given.only, as_json=given.json)))
