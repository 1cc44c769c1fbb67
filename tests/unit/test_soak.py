"""The judgement of the soak (`bench/soak_load.py`): an honest server passes, and each thing that it must find it finds."""

import asyncio
import json
import random
import time
from pathlib import Path

import httpx
import pytest

BENCH = Path(__file__).parents[2] / "bench"
ZYGOTE = "the zygote that it was forked from died"


@pytest.fixture(autouse=True)
def bench_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


class Server:
    """Counts as `soak_load.COUNT` does, for one session; `answers` are given instead, one after the other, where they are not None."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.n = self.file = 0
        self.answers: list[httpx.Response | None] = []
        self.marks: list[str] = []

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="http://soak", transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        body = json.loads(request.content)
        self.marks += [file["content"] for file in body.get("files", ()) if file["path"] == "mark"]
        if request.url.path == "/v1/sessions":
            return httpx.Response(201, json={"id": "ses_1"})
        given = self.answers.pop(0) if self.answers else None
        if given is not None:
            return given
        was, self.n = self.file, self.n + 1
        self.file = self.n
        return ran("completed", value=[self.n, was])


def ran(status, *, value=None, error=None, **state):
    session = {"survived": True, "rolled_back": False, "note": None, **state}
    told = error and {"type": error[0], "message": error[1]}
    return httpx.Response(200, json={"id": "run_1", "status": status, "value": value, "error": told, "session": session})


def killed(**state):
    return ran("failed", error=("ProcessDied", "the interpreter was killed by SIGKILL"), rolled_back=True, **state)


def gone(detail, status=410):
    return httpx.Response(status, json={"code": "session_gone", "detail": detail})


def lost(why=ZYGOTE, **state):
    return ran("lost", error=("SandboxLost", why), **{"survived": False, **state})


@pytest.fixture
def play():
    """Opens a session, counts to 3 in it, does `middle(server, kills, mark)`, counts on to 7, and judges it; gives what was wrong."""

    def run(middle=lambda server, kills, mark: None):
        from soak_facts import Kills
        from soak_load import Load, Record

        async def main():
            server, kills = Server(), Kills()
            load = Load(server, Record(), kills, random.Random(1))
            async with server.client() as client:
                await load.open_session(client)
                (session,) = load.sessions.values()
                for _ in range(2):
                    await load.count(client, session)
                middle(server, kills, session.mark)
                for _ in range(3):
                    if not session.is_over:
                        await load.count(client, session)
                await load.finish(client)
            return load.record.wrong

        return asyncio.run(main())

    return run


def test_an_honest_server_passes(play):
    assert play() == []


def counts(file, variable):
    def middle(server, kills, mark):
        server.file, server.n = server.file + file, server.n + variable

    return middle


@pytest.mark.parametrize(
    ("middle", "found"),
    [
        (counts(1, 1), "stands at 8 and should at 7"),  # a cell ran twice
        (counts(-1, -1), "stands at 6 and should at 7"),  # a cell was undone behind our back
        (counts(-1, 0), "its file said 2 when its variable said 3"),
        (counts(0, -3), "its file said 3 when its variable said 0"),
    ],
)
def test_what_ran_twice_or_was_undone_or_lost_alone_is_found(play, middle, found):
    assert found in "; ".join(play(middle))


def answered(*answers, zygote=False, guests=0):
    """With these, after the kills that are named."""

    def middle(server, kills, mark):
        server.answers += answers
        if zygote:
            kills.zygotes[mark] = time.monotonic()
        if guests:
            kills.guests[mark] = guests

    return middle


@pytest.mark.parametrize(
    ("middle", "found"),
    [
        (answered(gone(f"the session ended: {ZYGOTE}"), zygote=True), None),
        (answered(gone(f"the session ended: {ZYGOTE}")), "zygote killed: False"),
        (answered(gone("the session ended: idle"), zygote=True), "ended: idle"),
        (answered(gone("there is no session 'ses_1'", 404), zygote=True), "404"),
        (answered(lost(), zygote=True), None),
        (answered(lost()), "zygote killed: False"),
        (answered(lost(), guests=1), "zygote killed: False"),
        (answered(lost("its end was not reported in time"), zygote=True), "not reported in time"),
        (answered(zygote=True), "goes on, and its zygote was killed"),
        (answered(killed(), guests=1), None),
        (answered(killed(), None, killed(), guests=2), None),
        (answered(killed(), killed(), guests=1), "2 cells came to nothing"),
        (answered(killed()), "1 cells came to nothing"),
        (answered(ran("failed", error=("NameError", "n")), guests=1), "NameError"),
        (answered(ran("limit_exceeded", error=("LimitExceeded", "wall"))), "limit_exceeded"),
        (answered(killed(survived=False, note="the guest's process ended"), guests=1), None),
        (answered(killed(survived=False), guests=1), "does not say why"),
        (answered(gone("the session ended: the guest's process ended"), guests=1), None),
        (answered(gone("the session ended: "), guests=1), "zygote killed: False, itself: True"),
    ],
)
def test_only_what_was_killed_may_be_lost_and_says_why(play, middle, found):
    wrong = "; ".join(play(middle))
    assert (wrong == "") if found is None else (found in wrong), wrong


@pytest.mark.parametrize(
    ("note", "cells", "found"),
    [
        ("2 more cells are lost: the checkpoint is gone", 2, None),
        ("1 cells before it are lost, too: they had no checkpoint; 1 more cells are lost: the checkpoint is gone", 2, None),
        (None, 2, "stands at 4 and should at 6"),
        ("1 more cells are lost: the checkpoint is gone", 2, "stands at 4 and should at 5"),
        ("2 more cells are lost: the checkpoint is gone", 1, "stands at 5 and should at 4"),
    ],
)
def test_cells_that_are_taken_back_with_a_killed_one_are_those_that_the_note_names(play, note, cells, found):
    def middle(server, kills, mark):
        answered(killed(note=note), guests=1)(server, kills, mark)
        counts(-cells, -cells)(server, kills, mark)

    wrong = "; ".join(play(middle))
    assert (wrong == "") if found is None else (found in wrong), wrong


@pytest.mark.parametrize(("kills_met", "found"), [(2, None), (1, "a session: 500"), (0, "a session: 500")])
def test_a_session_is_refused_only_to_who_met_two_kills(kills_met, found):
    from soak_facts import Kills
    from soak_load import Load, Record

    async def main():
        server, kills = Server(), Kills()
        load = Load(server, Record(), kills, random.Random(1))

        def refuse(request):
            kills.times += [time.monotonic()] * kills_met
            return httpx.Response(500, json={"code": "sandbox_failed"})

        server.answer = refuse
        async with server.client() as client:
            await load.open_session(client)
        return "; ".join(load.record.wrong)

    wrong = asyncio.run(main())
    assert (wrong == "") if found is None else (found in wrong)
