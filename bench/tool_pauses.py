"""Random programs with tools on a server that is killed every few seconds; every call exactly once, every result right.

    make endurance-tools     or: .venv/bin/python bench/tool_pauses.py --minutes 3 --seed 1 --clients 6

Programs are those of tests/tool_programs.py. Half of the clients speak HTTP, answer some of what waits in any order, each time under a key of
its own and now and then twice, and ask again after each death; half are `onetrip.aconnect()` with a function of theirs. Prints counts. Exit
status: 0 everything was right, 1 otherwise; each wrong program is printed with its seed.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import onetrip
import servers
import tool_programs
from onetrip.client import core

TESTS = Path(__file__).resolve().parent.parent / "tests"
CONFIG = f'warm = 2\n[tools]\nfunctions = ["tool_programs:compute"]\npython_path = ["{TESTS}"]\n[tools.options.compute]\neffect = "pure"\n'
TYPES: dict[type, str] = {ValueError: "error", PermissionError: "denied", TimeoutError: "timeout"}
LIMITS = {"wall_s": 240}
RETRY_S = 120.0
HANG_S = 300.0  # no program takes so long, deaths of the server included
LIFE_S = (0.5, 4.0)  # of a server, from when it is ready


class Load:
    def __init__(self, server: servers.Server, seed: int, minutes: float) -> None:
        self.server, self.rng = server, random.Random(seed)
        self.end = time.monotonic() + 60 * minutes
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest = 0.0

    async def kill_often(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(*LIFE_S))
            self.server.kill()
            self.counts["server killed, and started again"] += 1
            await asyncio.shield(asyncio.to_thread(self.server.start))

    async def client(self, run: Any) -> None:
        while time.monotonic() < self.end:
            program = tool_programs.program(self.rng.getrandbits(32))
            began = time.monotonic()
            try:
                async with asyncio.timeout(HANG_S):
                    problems = await run(program)
            except Exception as err:  # whatever it is: it is counted, and the others go on
                problems = [f"{type(err).__name__}: {err}"]
            self.longest = max(self.longest, time.monotonic() - began)
            self.counts["programs"] += 1
            self.counts["their calls"] += len(program.calls)
            self.counts["of these, given up by the program"] += sum(key[1] % 10 == tool_programs.HELD for key in program.calls)
            if problems:
                self.wrong.append(f"tool_programs.program({program.seed}): {problems}")
                print(self.wrong[-1], flush=True)

    # ------------------------------------------------------------------ by requests

    async def by_requests(self, api: httpx.AsyncClient, program: tool_programs.Program) -> list[str]:
        body = {"code": program.code, "tools": [tool_programs.CLIENT], "limits": LIMITS}
        answer = await self.insist(api, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": f"run {program.seed}"})
        seen: dict[str, tool_programs.Key] = {}
        while True:
            if answer.status_code != 200:
                return [answer.text]
            result = core.result(answer.content)
            if result.status != "waiting":
                return program.problems(result, seen)
            self.counts["times that a run waited"] += 1
            seen |= {call.id: (call.tool, call.arguments["n"], call.arguments["x"]) for call in result.pending}
            ours = [call for call in result.pending if not tool_programs.is_held(call.arguments)]
            some = self.rng.sample(ours, self.rng.randint(1, len(ours))) if ours else []
            path = f"/v1/runs/{result.id}"
            if some:
                body = {"results": [told(call) for call in some], "wait": True}
                key = {"Idempotency-Key": f"answers {self.rng.getrandbits(64)}"}
                asking = [self.insist(api, "POST", path + "/tool_results", json=body, headers=key)]
                if self.rng.random() < 0.2:
                    self.counts["answers sent twice at once"] += 1
                    asking.append(self.insist(api, "POST", path + "/tool_results", json=body, headers=key))
                answer = (await asyncio.gather(*asking))[-1]
            else:
                await asyncio.sleep(0.05)
                answer = await self.insist(api, "GET", path, params={"wait_s": 30})

    async def insist(self, api: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await api.request(method, path, **options)
                if answer.status_code not in (202, 503):
                    return answer
            self.counts["requests that were asked again"] += 1
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------ by a connected client

    async def connected(self, ot: Any, program: tool_programs.Program) -> list[str]:
        made: Counter[tool_programs.Key] = Counter()

        async def ask(n: int, x: int) -> int:
            made["ask", n, x] += 1
            if n % 10 == tool_programs.HELD:
                await asyncio.Event().wait()
            await asyncio.sleep(self.rng.random() * 0.05)
            given = tool_programs.answer("ask", n, x)
            if isinstance(given, Exception):
                raise given
            return given

        result = await ot.run(program.code, tools=[ask], limits=LIMITS)
        self.counts["functions called by connected clients"] += made.total()
        problems = program.problems(result, {call.id: key(call) for call in result.tool_calls if call.tool == "ask"})
        missing = program.asked - set(made)
        if more := made - program.calls:
            problems.append(f"functions called too often: {more}")
        return [*problems, f"functions not called: {missing}"] if missing else problems


def key(call: Any) -> tool_programs.Key:
    return call.tool, call.arguments["n"], call.arguments["x"]


def told(call: Any) -> dict[str, Any]:
    given = tool_programs.answer(call.tool, **call.arguments)
    if isinstance(given, Exception):
        return {"id": call.id, "error": {"message": str(given), "type": TYPES[type(given)]}}
    return {"id": call.id, "value": given}


async def main(load: Load, clients: int) -> None:
    server = load.server
    headers = {"Authorization": f"Bearer {server.token}"}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60.0) as api,
        onetrip.aconnect(server.url, server.token, retry_s=RETRY_S) as ot,
    ):
        await ot.start()
        killing = asyncio.create_task(load.kill_often())
        ways = [lambda one: load.by_requests(api, one), lambda one: load.connected(ot, one)]
        await asyncio.gather(*(load.client(ways[i % 2]) for i in range(clients)))
        killing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # tools that fail, as they are to
    with servers.serving(config=CONFIG) as running:
        load = Load(running, options.seed, options.minutes)
        asyncio.run(main(load, options.clients))
    for what, count in load.counts.items():
        print(f"{what:40} {count:>8,}")
    print(f"{'longest program':40} {load.longest:>7.1f}s")
    print(f"{'found wrong':40} {len(load.wrong):>8,}")
    sys.exit(1 if load.wrong else 0)
