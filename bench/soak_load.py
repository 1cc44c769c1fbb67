"""The clients of the soak, and what they may be told. Nobody is exempt: each answer is right, or explained by something that we killed.

A session keeps a counter, in a variable and in a file. Each cell checks the one by the other, adds one to both, and returns them. So of a
session of which nothing was killed it is known exactly what every answer must be: its cells return 1, 2, 3 …, each once, and the last
one as many as there were cells. What is allowed beyond, and only for a session that died with a zygote or whose process was killed
(`soak_facts.Kills`, from the host alone), is what docs/serve.md and the README promise:

- its zygote was killed: the cell that ran is `lost`, later ones get 410, and both say why;
- one of its processes was killed: at most one cell per kill comes to nothing, and is taken back. If the process was a checkpoint, cells
  before it may be taken back with it, but then a note says how many, and the counter is behind by exactly so many. Where there was
  nothing to go back to, the session has ended and says why.
"""

import asyncio
import collections
import contextlib
import random
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from soak_facts import MARK, Kills

SESSIONS = 24
ANSWER_S = 120.0  # a request that has no answer by then is a failure: some queues (30 s each), one after the other
SAMPLE = 0.02  # of the results are fetched again at the end: saved once, and as they were told
# What a session and a one-shot do. `was`: the file and the variable tell the same, or one of them was lost alone.
COUNT = "was = int(open('n').read())\nn = globals().get('n', 0) + 1\nopen('n', 'w').write(str(n))\n[n, was]"
ONE_SHOTS = (
    ("1 + 1", "completed"),
    ("import pandas as pd\nint(pd.Series([1, 2]).sum())", "completed"),
    ("1 / 0", "failed"),
    ("print('x' * 20000)", "completed"),
    ("open('a', 'w').write('x' * 5000)", "completed"),
    ("import os\nos._exit(3)", "failed"),
)
FILL = "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"
LEAVE = "import time\nfor i in range(30): print(i); time.sleep(0.05)"
TAKEN_BACK = re.compile(r"(\d+) (?:more )?cells (?:before it )?are lost")


class Reachable(Protocol):
    up: asyncio.Event

    def client(self) -> httpx.AsyncClient: ...


@dataclass
class Record:
    """What happened. `wrong` are sentences about what must not happen."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    kept: dict[str, tuple[str, Any]] = field(default_factory=dict)  # run → status and value, as told

    def fail(self, what: str) -> None:
        self.wrong.append(what)
        if len(self.wrong) <= 20:
            print(f"WRONG  {what}", flush=True)


@dataclass
class Session:
    id: str
    mark: str
    opened_at: float  # when we had the answer
    asked: int = 0
    on_their_way: int = 0
    values: list[int] = field(default_factory=list)
    came_to_nothing: int = 0  # cells whose process was killed
    taken_back: int = 0  # cells that had been answered, and a note says that they were taken back
    is_over: bool = False


class Load:
    """`work` does one thing, at random. `finish` asks every session for the last time and closes it."""

    def __init__(self, server: Reachable, record: Record, kills: Kills, dice: random.Random) -> None:
        self.server, self.record, self.kills, self.dice = server, record, kills, dice
        self.sessions: dict[str, Session] = {}
        self._opening = 0

    async def ask(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response | None:
        """Until there is an answer, with one idempotency key."""
        key, give_up = secrets.token_hex(8), time.monotonic() + ANSWER_S
        while time.monotonic() < give_up:
            await self.server.up.wait()
            try:
                answer = await client.post(path, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                self.record.counts["asked again: connection lost"] += 1
                await asyncio.sleep(0.05)
                continue
            if answer.status_code in {429, 503}:
                self.record.counts[f"asked again: {answer.json().get('code')}"] += 1
                await asyncio.sleep(float(answer.headers.get("retry-after", "1")) * self.dice.random())
                continue
            return answer
        self.record.fail(f"no answer to POST {path} within {ANSWER_S:.0f} s")
        return None

    def _is_refusal(self, answer: httpx.Response, asked_at: float) -> bool:
        """What dies while it is opened is opened again, once: only who met two kills may have been refused, and says so."""
        kills = self.kills.between(asked_at, time.monotonic())
        if answer.status_code == 500 and answer.json()["code"] == "sandbox_failed" and kills >= 2:
            self.record.counts["refused, with the reason: two kills while it was opened"] += 1
            return True
        return False

    # ------------------------------------------------------------------ one-shots

    async def one_shot(self, client: httpx.AsyncClient) -> None:
        code, wanted = self.dice.choice(ONE_SHOTS)
        await self._shot(client, {"code": code}, wanted)

    async def fill(self, client: httpx.AsyncClient) -> None:
        """Until its workspace is full."""
        await self._shot(client, {"code": FILL, "limits": {"disk_mb": 4, "memory_mb": 64}}, "limit_exceeded")

    async def _shot(self, client: httpx.AsyncClient, body: dict[str, Any], wanted: str) -> None:
        mark = secrets.token_hex(8)
        start, asked_at = time.perf_counter(), time.monotonic()
        answer = await self.ask(client, "/v1/runs", {**body, "files": [{"path": MARK, "content": mark}]})
        if answer is None:
            return
        self.record.ms.append((time.perf_counter() - start) * 1e3)
        if answer.status_code != 200:
            if not self._is_refusal(answer, asked_at):
                self.record.fail(f"a one-shot: {answer.status_code} {answer.text[:300]}")
            return
        result = answer.json()
        status, error = result["status"], result["error"]
        self.record.counts[f"one-shot {status}"] += 1
        if status != wanted:
            async with self.kills.lock:  # until it is known what has just been killed
                by_zygote, by_guest = mark in self.kills.zygotes, mark in self.kills.guests
            is_lost = status == "lost" and by_zygote and "zygote" in error["message"]
            if not (is_lost or (status == "failed" and by_guest and error["type"] == "ProcessDied")):
                self.record.fail(
                    f"a one-shot that should be {wanted} is {status}, zygote killed: {by_zygote}, itself: {by_guest}: {error}"
                )
        self._keep(result)

    def _keep(self, result: dict[str, Any]) -> None:
        if self.dice.random() < SAMPLE:
            self.record.kept[result["id"]] = result["status"], result["value"]

    # ------------------------------------------------------------------ sessions

    async def open_session(self, client: httpx.AsyncClient) -> None:
        mark, asked_at = secrets.token_hex(8), time.monotonic()
        files = [{"path": MARK, "content": mark}, {"path": "n", "content": "0"}]
        self._opening += 1
        try:
            answer = await self.ask(client, "/v1/sessions", {"limits": {"memory_mb": 256}, "files": files})
        finally:
            self._opening -= 1
        if answer is None:
            return
        if answer.status_code != 201:
            if not self._is_refusal(answer, asked_at):
                self.record.fail(f"a session: {answer.status_code} {answer.text[:300]}")
            return
        self.record.counts["sessions opened"] += 1
        session = Session(answer.json()["id"], mark, time.monotonic())
        self.sessions[session.id] = session
        await self.count(client, session)

    async def count(self, client: httpx.AsyncClient, session: Session) -> None:
        """One more."""
        session.asked += 1
        session.on_their_way += 1
        asked_at = time.monotonic()
        try:
            answer = await self.ask(client, f"/v1/sessions/{session.id}/runs", {"code": COUNT})
        finally:
            session.on_their_way -= 1
        if answer is None:
            return
        if answer.status_code in {404, 410} or answer.status_code != 200:
            await self._gone(session, answer)
            return
        result = answer.json()
        self.record.counts[f"cell {result['status']}"] += 1
        self._keep(result)
        if result["status"] == "completed":
            self._counted(session, result, asked_at)
        else:
            await self._came_to_nothing(session, result)

    def _counted(self, session: Session, result: dict[str, Any], asked_at: float) -> None:
        value, was = result["value"]
        session.values.append(value)
        if was != value - 1:
            self.record.fail(f"session {session.id}: its file said {was} when its variable said {value - 1}")
        killed_at = self.kills.zygotes.get(session.mark)
        if killed_at is not None and session.opened_at < killed_at < asked_at:  # our own facts are wrong, then
            self.record.fail(f"session {session.id} goes on, and its zygote was killed")

    async def _gone(self, session: Session, answer: httpx.Response) -> None:
        async with self.kills.lock:
            by_zygote, by_guest = session.mark in self.kills.zygotes, session.mark in self.kills.guests
        detail = str(answer.json().get("detail", ""))
        is_said = ("zygote" in detail and by_zygote) or (by_guest and len(detail) > len("the session ended: "))
        if answer.status_code != 410 or not is_said:
            self.record.fail(
                f"session {session.id}: {answer.status_code} {detail!r}; zygote killed: {by_zygote}, itself: {by_guest}"
            )
        self._over(session, "with its zygote" if by_zygote else "with its process")

    async def _came_to_nothing(self, session: Session, result: dict[str, Any]) -> None:
        async with self.kills.lock:
            by_zygote, kills = session.mark in self.kills.zygotes, self.kills.guests.get(session.mark, 0)
        status, error, state = result["status"], result["error"] or {}, result["session"]
        said = (
            f"{status} {error.get('type')}: {error.get('message')!r}, {state}; zygote killed: {by_zygote}, its processes: {kills}"
        )
        if status == "lost":
            if not by_zygote or state["survived"] or "zygote" not in error["message"]:
                self.record.fail(f"session {session.id}: {said}")
            self._over(session, "with its zygote")
            return
        session.came_to_nothing += 1
        if status != "failed" or error["type"] != "ProcessDied" or session.came_to_nothing > kills:
            self.record.fail(f"session {session.id}: {said}; {session.came_to_nothing} cells came to nothing")
        if not state["survived"]:
            if not state["note"]:
                self.record.fail(f"session {session.id} does not say why it ended: {said}")
            self._over(session, "with its process")
            return
        if not state["rolled_back"]:
            self.record.fail(f"session {session.id} was not taken back: {said}")
        self.record.counts["cell taken back"] += 1
        session.taken_back += sum(int(number) for number in TAKEN_BACK.findall(state["note"] or ""))

    def _over(self, session: Session, how: str) -> None:
        if not session.is_over:
            session.is_over = True
            self.record.counts[f"session ended {how}"] += 1
            self.sessions.pop(session.id, None)

    async def retire(self, client: httpx.AsyncClient, session: Session, *, patience_s: float = ANSWER_S) -> None:
        """Judge it as a whole, and close it."""
        self.sessions.pop(session.id, None)  # nobody asks it any more
        give_up = time.monotonic() + patience_s
        while session.on_their_way and time.monotonic() < give_up:  # noqa: ASYNC110 -- many wait for it, and none for long
            await asyncio.sleep(0.05)
        answered = len(session.values)
        for _ in range(3):  # a process of it may be killed in this moment, too
            if not session.is_over and len(session.values) == answered:
                await self.count(client, session)
        if session.is_over:
            return
        self.judge(session)
        await self._close(client, session)
        session.is_over = True
        self.record.counts["session judged whole and closed"] += 1
        self.record.counts["… of which a process was killed"] += session.mark in self.kills.guests

    async def _close(self, client: httpx.AsyncClient, session: Session) -> None:
        while True:
            await self.server.up.wait()
            with contextlib.suppress(httpx.TransportError):
                answer = await client.delete(f"/v1/sessions/{session.id}")
                if answer.status_code not in {
                    204,
                    410,
                }:  # the latter: asked before, by the connection that was lost, or killed since
                    self.record.fail(f"session {session.id} could not be closed: {answer.status_code} {answer.text[:200]}")
                return
            await asyncio.sleep(0.05)

    def judge(self, session: Session) -> None:
        """It lives, and nothing of it is on its way: each cell that was asked for has been answered once, and has counted once."""
        values, answered = session.values, len(session.values) + session.came_to_nothing
        if answered != session.asked:
            self.record.fail(f"session {session.id}: {session.asked} cells were asked for, {answered} answered")
        if not values:
            return
        stands_at = len(values) - session.taken_back
        if values[-1] != stands_at:  # the last one was asked for after all others had been answered
            self.record.fail(f"session {session.id} stands at {values[-1]} and should at {stands_at}: {session}")
        twice = len(values) - len(set(values))
        if twice > session.taken_back or max(values) > len(values):
            self.record.fail(f"session {session.id} has answered {twice} values twice: {session}")

    # ------------------------------------------------------------------ what is asked for

    async def leave(self, client: httpx.AsyncClient) -> None:
        """A client that goes away in the middle of a stream."""
        self.record.faults["client gone"] += 1
        body = {"code": LEAVE, "stream": True, "on_disconnect": self.dice.choice(["interrupt", "continue"])}
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(0.2), client.stream("POST", "/v1/runs", json=body) as answer:
                async for _ in answer.aiter_lines():
                    pass

    async def work(self, client: httpx.AsyncClient) -> None:
        dice = self.dice.random()
        if dice < 0.02:
            await self.leave(client)
        elif dice < 0.025 and self.sessions:
            await self.retire(client, self.dice.choice(list(self.sessions.values())))
        elif dice < 0.5 and self.sessions:
            await self.count(client, self.dice.choice(list(self.sessions.values())))
        elif len(self.sessions) + self._opening < SESSIONS:
            await self.open_session(client)
        else:
            await self.one_shot(client)

    async def finish(self, client: httpx.AsyncClient) -> None:
        """Afterwards every session has been judged, and no one is open."""
        while self.sessions:
            await self.retire(client, next(iter(self.sessions.values())))

    async def look_again(self, client: httpx.AsyncClient, progress: Callable[[str], None]) -> None:
        """Results that were told are in the database, as they were told."""
        progress(f"{len(self.record.kept)} results are fetched again")
        for run, told in self.record.kept.items():
            answer = await client.get(f"/v1/runs/{run}")
            found = (answer.json()["status"], answer.json()["value"]) if answer.status_code == 200 else answer.text[:200]
            if found != told:
                self.record.fail(f"run {run} was {told} and is {found}")
        self.record.counts["results fetched again"] = len(self.record.kept)
