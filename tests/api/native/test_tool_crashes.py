"""Programs with tools while everything around them dies: the server, whoever answers, the client. Each call once, each result right."""

import asyncio
import contextlib
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

import onetrip
import tool_programs
from onetrip.client import core
from onetrip.errors import Conflict

TESTS = Path(tool_programs.__file__).parent
CONFIG = f'warm = 2\n[tools]\nfunctions = ["tool_programs:compute"]\npython_path = ["{TESTS}"]\n[tools.options.compute]\neffect = "pure"\n'
SECONDS = 300.0  # for all of it, on a machine that does much else
TYPES = {ValueError: "error", PermissionError: "denied", TimeoutError: "timeout"}
LIMITS = {"wall_s": 240}


class Steps:
    """Counts what clients do, so that the server dies in the middle of it, on every machine."""

    def __init__(self) -> None:
        self._count, self._more = 0, asyncio.Event()

    def step(self) -> None:
        self._count += 1
        self._more.set()

    async def reach(self, more: int) -> None:
        goal = self._count + more
        while self._count < goal:
            self._more.clear()
            await self._more.wait()


async def kill_often(server, steps, rng, *, every, deaths):
    """Until it is cancelled. A moment of chance after a step: before the request is there, while it is served, before its answer."""
    while True:
        await steps.reach(rng.randint(1, every))
        await asyncio.sleep(rng.random() * 0.03)
        server.kill()
        deaths.append(1)
        await asyncio.shield(asyncio.to_thread(server.start))


async def insist(api, path, body, key):
    """Ask until there is an answer: after each death the same again."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = await api.post(path, json=body, headers={"Idempotency-Key": key})
            if answer.status_code != 503:
                return answer
        await asyncio.sleep(0.05)


def told(call):
    given = tool_programs.answer(call.tool, **call.arguments)
    if isinstance(given, Exception):
        return {"id": call.id, "error": {"message": str(given), "type": TYPES[type(given)]}}
    return {"id": call.id, "value": given}


async def drive(api, program, rng, steps):
    """By requests: answer some of what waits, in any order, sometimes twice under one key. Nothing may be refused."""
    body = {"code": program.code, "tools": [tool_programs.CLIENT], "limits": LIMITS}
    answer = await insist(api, "/v1/runs", body, f"run {program.seed}")
    seen = {}
    while True:
        assert answer.status_code == 200, answer.text
        result = core.result(answer.content)
        if result.status != "waiting":
            return result, seen
        seen |= {call.id: (call.tool, call.arguments["n"], call.arguments["x"]) for call in result.pending}
        ours = [call for call in result.pending if not tool_programs.is_held(call.arguments)]
        some = rng.sample(ours, rng.randint(1, len(ours))) if ours else []
        steps.step()
        path, key = f"/v1/runs/{result.id}/tool_results", f"answers {program.seed} {rng.random()}"
        if some:
            body = {"results": [told(call) for call in some], "wait": True}
            asking = [insist(api, path, body, key) for _ in range(rng.choice([1, 1, 2]))]
            answer = (await asyncio.gather(*asking))[-1]
        else:  # a timeout of the program's is next
            await asyncio.sleep(0.05)
            with contextlib.suppress(httpx.TransportError):
                answer = await api.get(f"/v1/runs/{result.id}")
                while answer.status_code in (202, 503):
                    answer = await api.get(f"/v1/runs/{result.id}", params={"wait_s": 30})


@pytest.mark.spec("TOL-82")
def test_a_server_killed_at_any_moment_loses_no_call_and_no_answer_and_takes_none_twice(make_server):
    server, deaths, seed = make_server(CONFIG), [], 1_000_000

    async def main():
        rng, steps = random.Random(seed), Steps()
        programs = [tool_programs.program(seed + i) for i in range(5)]
        async with asyncio.timeout(SECONDS), server.aclient() as api:
            killing = asyncio.create_task(kill_often(server, steps, rng, every=10, deaths=deaths))
            try:
                driven = (drive(api, program, random.Random(program.seed), steps) for program in programs)
                return programs, await asyncio.gather(*driven)
            finally:
                await ended(killing)

    programs, results = asyncio.run(main())
    for program, (result, seen) in zip(programs, results, strict=True):
        assert program.problems(result, seen) == [], f"tool_programs.program({program.seed}) after {len(deaths)} deaths"
    assert deaths


async def ended(task):
    """A server that is being started is started: the test ends it."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.spec("TOL-83")
def test_a_function_of_a_connected_client_is_called_once_for_each_call_whatever_dies(make_server):
    server, deaths, made, steps = make_server(CONFIG), [], Counter(), Steps()

    async def ask(n: int, x: int) -> int:
        made[("ask", n, x)] += 1
        steps.step()
        if n % 10 == tool_programs.HELD:
            await asyncio.Event().wait()
        await asyncio.sleep(random.Random(n).random() * 0.05)  # answers come in an order of their own
        given = tool_programs.answer("ask", n, x)
        if isinstance(given, Exception):
            raise given
        return given

    async def main():
        programs = [tool_programs.program(seed) for seed in range(500, 503)]
        async with asyncio.timeout(SECONDS), onetrip.aconnect(server.url, server.token, retry_s=SECONDS) as ot:
            killing = asyncio.create_task(kill_often(server, steps, random.Random(3), every=30, deaths=deaths))
            try:
                return programs, await asyncio.gather(*(ot.run(one.code, tools=[ask], limits=LIMITS) for one in programs))
            finally:
                await ended(killing)

    programs, results = asyncio.run(main())
    expected = Counter()
    for program, result in zip(programs, results, strict=True):
        waited = {
            call.id: (call.tool, call.arguments["n"], call.arguments["x"]) for call in result.tool_calls if call.tool == "ask"
        }
        assert program.problems(result, waited) == [], f"tool_programs.program({program.seed}) after {len(deaths)} deaths"
        expected += Counter(key for key in program.calls if key[0] == "ask")
    assert not made - expected  # none twice, none that was not made
    assert all(key[1] % 10 == tool_programs.HELD for key in expected - made)  # those may have been given up before
    assert deaths


@pytest.mark.spec("TOL-83")
def test_functions_that_wait_for_each_other_or_that_the_program_gave_up_cost_no_answer(server):
    async def main():
        may = asyncio.Event()

        @onetrip.tool(timeout_s=2 * SECONDS)  # so that no deadline helps
        async def first() -> str:
            await may.wait()
            return "first"

        async def second() -> str:
            may.set()
            return "second"

        @onetrip.tool(timeout_s=2 * SECONDS)
        async def never() -> None:
            await asyncio.Event().wait()

        code = (
            "import asyncio\nt = asyncio.create_task(first())\ntry:\n    await asyncio.wait_for(never(), 0.1)\n"
            "except TimeoutError:\n    pass\n[await second(), await t]"
        )
        async with asyncio.timeout(SECONDS), onetrip.aconnect(server.url, server.token) as ot:
            return await ot.run(code, tools=[first, second, never])

    assert asyncio.run(main()).value == ["second", "first"]


@pytest.mark.spec("TOL-82")
def test_a_refusal_is_one_the_first_time_and_loses_no_other_answer(api):
    body = {"code": "[ask(n=0, x=0), ask(n=0, x=1)]", "tools": [tool_programs.CLIENT]}
    run = api.post("/v1/runs", json=body).json()
    path, first = f"/v1/runs/{run['id']}/tool_results", run["pending"][0]["id"]

    def answer(key, *ids):
        results = [{"id": name, "value": number} for number, name in enumerate(ids)]
        return api.post(path, json={"results": results, "wait": True}, headers={"Idempotency-Key": key})

    one = answer("one", first)
    second = one.json()["pending"][0]["id"]
    for key in ("two", "two", "three"):
        refused = answer(key, first, second)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert api.get(f"/v1/runs/{run['id']}").json()["pending"][0]["id"] == second  # it waits, and says so
    assert answer("one", first).json()["pending"] == one.json()["pending"]  # taken before: the same again
    assert answer("one", second).status_code == 409  # the key of another request
    done = answer("four", second)
    assert done.json()["value"] == [0, 0]
    assert answer("four", second).json() == done.json()
    assert answer("one", first).json() == done.json()
    assert answer("five", second).status_code == 409


CLIENT_THAT_DIES = """
import sys, time, onetrip
def hang(question: str) -> str:
    print("called", question, flush=True)
    time.sleep(600)
with onetrip.connect(sys.argv[1], sys.argv[2]) as ot:
    for event in ot.stream("kept = [1]\\nkept.append(hang('q'))\\nkept", tools=[hang]):
        if hasattr(event, "run_id"):
            print(event.run_id, flush=True)
"""


@pytest.mark.spec("TOL-84")
def test_another_client_answers_for_one_that_died_while_the_run_waited(server):
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT_THAT_DIES, server.url, server.token],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    with client, onetrip.connect(server.url, server.token) as ot:
        try:
            run_id = client.stdout.readline().strip()
            assert client.stdout.readline() == "called q\n"
        finally:
            client.kill()
        client.wait()
        server.kill()
        server.start()
        waiting = ot.answer(run_id, {})
        assert [(call.tool, call.arguments) for call in waiting.pending] == [("hang", {"question": "q"})]
        done = ot.answer(run_id, {waiting.pending[0].id: "another's"})
        assert (done.status, done.value) == ("completed", [1, "another's"])
        with pytest.raises(Conflict):
            ot.answer(run_id, {waiting.pending[0].id: "late"})
