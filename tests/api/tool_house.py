"""A server with tools of its own: a module of functions in its folder, which tell in files there what they did, and wait for files of the test."""

import json
import subprocess
import sys
from typing import Any

from serving_process import Server, wait_for

SECRET = "correct-horse-battery"
MODULE = '''
import asyncio
import os
import time
from pathlib import Path

import onetrip
from onetrip.tools import ToolFailed, current_call

HERE = Path(__file__).parent


def _tell(name):
    call = current_call()
    with open(HERE / "told", "a") as file:
        file.write(f"{name} {call.id} {call.run_id}\\n")


async def _until(name):
    while not (HERE / name).exists():
        await asyncio.sleep(0.01)


@onetrip.tool(effect="read")
def find(name: str, limit: int = 3) -> dict:
    """Find things by name.

    Args:
        name: what to look for
    """
    return {"items": [{"id": n, "name": f"{name} {n}"} for n in range(limit)], "total": limit}


@onetrip.tool(effect="pure")
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@onetrip.tool(effect="read")
async def signed(text: str) -> str:
    """Sign a text with the key of the house."""
    return f"{text}/{len(os.environ['HOUSE_SECRET'])}"


@onetrip.tool(name="shop.price", effect="read")
async def price(item: str) -> float:
    """The price of an item."""
    return len(item) / 4


@onetrip.tool(name="shop.order")
async def order(item: str) -> str:
    """Order an item."""
    _tell(f"order:{item}")
    return f"ordered {item}"


@onetrip.tool(name="shop.pay", approval="required")
async def pay(amount: int) -> str:
    """Pay."""
    _tell(f"pay:{amount}")
    return f"paid {amount}"


@onetrip.tool
async def send(to: str, until: str = "") -> str:
    """Send something."""
    _tell(f"send:{to}")
    if until:
        await _until(until)
    return f"sent to {to}"


@onetrip.tool(effect="read")
async def look(what: str, until: str = "") -> str:
    """Look at something."""
    _tell(f"look:{what}")
    try:
        if until:
            await _until(until)
    except asyncio.CancelledError:
        _tell(f"cancelled:{what}")
        raise
    return f"saw {what}"


@onetrip.tool(effect="read", timeout_s=0.2)
async def hang() -> None:
    await asyncio.sleep(3600)


@onetrip.tool(effect="read", timeout_s=0.2)
def hang_in_a_thread() -> None:
    time.sleep(3)


@onetrip.tool(effect="read")
def huge() -> str:
    return "x" * (1 << 30)


@onetrip.tool(effect="read")
def nothing_that_is_json() -> object:
    return lambda: None


@onetrip.tool(effect="read")
def leaves(how: str) -> None:
    raise {"exit": SystemExit(3), "memory": MemoryError(), "denied": PermissionError("not you"), "later": ToolFailed("busy", retryable=True)}[how]
'''
NAMES = [
    "add", "find", "hang", "hang_in_a_thread", "huge", "leaves", "look", "nothing_that_is_json", "send", "shop.order", "shop.pay",
    "shop.price", "signed",
]  # fmt: skip


class House(Server):
    """A server with these tools. Its secret is in its environment (`HOUSE_SECRET`), which the fixtures set."""

    def __init__(self, settings: str = "", *, module: str = MODULE) -> None:
        super().__init__()
        (self.folder / "house_tools.py").write_text(module, encoding="utf-8")
        self._config = f'{settings}\n[tools]\nfunctions = ["house_tools"]\npython_path = ["{self.folder}"]\n'

    def told(self) -> list[tuple[str, str, str]]:
        """What was called so far: what, the call's id, the run's."""
        path = self.folder / "told"
        return [tuple(line.split(" ")) for line in path.read_text().splitlines()] if path.exists() else []

    def times(self, what: str) -> int:
        return sum(name == what for name, _, _ in self.told())

    def wait_told(self, what: str, times: int = 1) -> None:
        wait_for(lambda: self.times(what) >= times, 60, f"{what} was not called")

    def let(self, name: str) -> None:
        """What a tool waits for."""
        (self.folder / name).touch()

    def cli_key(self, tenant: str, *options: str) -> str:
        """A key as its owner makes it."""
        command = [sys.executable, "-m", "onetrip", "keys", "create", "--tenant", tenant, "--json", *options]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)["token"]

    def counted(self, api: Any, name: str, **labels: str) -> float:
        """What /metrics says of a counter with (at least) these labels."""
        found = 0.0
        for line in api.get("/metrics").text.splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                found += float(line.rpartition(" ")[2])
        return found


def pending(result: dict[str, Any]) -> dict[Any, str]:
    """Of a run that waits: the first argument of each call, and the call's id."""
    assert result["status"] == "waiting", result
    return {next(iter(call["arguments"].values()), call["tool"]): call["id"] for call in result["pending"]}


def answer(api: Any, result: dict[str, Any] | str, results: list[dict[str, Any]], key: str | None = None, **options: Any) -> Any:
    """POST answers; gives the response."""
    run_id = result if isinstance(result, str) else result["id"]
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.post(f"/v1/runs/{run_id}/tool_results", json={"results": results, **options}, headers=headers)
