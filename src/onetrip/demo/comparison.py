"""The same task of seven tool calls by a classic tool loop, by parallel calls, and by one program. The model is simulated.

The tools are functions of this process that really take their time, and each way really calls all of them, the program from its
sandbox. What the model reads, writes and waits for is counted and computed by `simulated`; nobody waits for it.
"""

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from onetrip.demo import script
from onetrip.demo.simulated import Assumptions, Conversation, Cost, compact
from onetrip.embedded import Local
from onetrip.errors import OnetripError
from onetrip.model import Result, ToolCall

QUESTION: Final = "On which of the penguins' islands will it be warmest tomorrow, and how warm?"
ANSWER: Final = {"island": "Torgersen", "high_c": 3.5}
CALLS: Final = 7
ASSUMED: Final = Assumptions()
RUN_S: Final = 30.0

_DO: Final = "Use the tools to find out what is asked, then answer as JSON."
_LOOP_TOOLS: Final[list[dict[str, Any]]] = [
    {"name": "list_islands", "description": "The islands.", "input_schema": {"type": "object", "properties": {}}},
    {
        "name": "get_station",
        "description": "The weather station of an island.",
        "input_schema": {"type": "object", "properties": {"island": {"type": "string"}}, "required": ["island"]},
    },
    {
        "name": "get_forecast",
        "description": "Tomorrow's weather at a station.",
        "input_schema": {"type": "object", "properties": {"station": {"type": "string"}}, "required": ["station"]},
    },
]
_PROGRAM_TOOL: Final[dict[str, Any]] = {
    "name": "run_python",
    "description": "Run a Python program in a sandbox. The functions below can be awaited; its last expression is the result.",
    "input_schema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}
_STUBS: Final = """\
class Station(TypedDict): id: str; height_m: int
class Forecast(TypedDict): high_c: float; wind_kmh: int
async def list_islands() -> list[str]: ...  # The islands.
async def get_station(island: str) -> Station: ...  # The weather station of an island.
async def get_forecast(station: str) -> Forecast: ...  # Tomorrow's weather at a station.
"""


class Station(TypedDict):
    id: str
    height_m: int


class Forecast(TypedDict):
    high_c: float
    wind_kmh: int


_STATIONS: Final[dict[str, Station]] = {
    "Biscoe": {"id": "AQ-71", "height_m": 8},
    "Dream": {"id": "AQ-40", "height_m": 21},
    "Torgersen": {"id": "AQ-16", "height_m": 17},
}
_FORECASTS: Final[dict[str, Forecast]] = {
    "AQ-71": {"high_c": 2.0, "wind_kmh": 31},
    "AQ-40": {"high_c": -0.5, "wind_kmh": 44},
    "AQ-16": {"high_c": 3.5, "wind_kmh": 19},
}


async def list_islands() -> list[str]:
    """The islands."""
    await asyncio.sleep(ASSUMED.tool_s)
    return list(_STATIONS)


async def get_station(island: str) -> Station:
    """The weather station of an island."""
    await asyncio.sleep(ASSUMED.tool_s)
    return _STATIONS[island]


async def get_forecast(station: str) -> Forecast:
    """Tomorrow's weather at a station."""
    await asyncio.sleep(ASSUMED.tool_s)
    return _FORECASTS[station]


TOOLS: Final[dict[str, Callable[..., Awaitable[Any]]]] = {
    "list_islands": list_islands,
    "get_station": get_station,
    "get_forecast": get_forecast,
}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the task. `spans`: how many seconds model and tools took, in turn, the model first and last."""

    name: str
    cost: Cost
    spans: list[float]


@dataclass(slots=True)
class Comparison:
    """What came of it; `calls` are those of the program, as its sandbox made them. Without `ways` it could not be made."""

    ways: list[Way] = field(default_factory=list[Way])
    calls: tuple[ToolCall, ...] = ()
    problems: list[str] = field(default_factory=list[str])


def program() -> str:
    ((_, code),) = script.cells("islands.py")
    return code


def run(ot: Local) -> Comparison:
    """Do the task in all three ways. Whatever is promised and does not hold is in `problems`."""
    code = program()
    importlib.import_module("onetrip.tools")  # a server has imported it long before; here it is the first use
    began = time.perf_counter()
    try:
        result = ot.run(code, tools=list(TOOLS.values()), timeout_s=RUN_S)
    except OnetripError as err:
        return Comparison(problems=[f"seven tool calls: {err}"])
    took_s = time.perf_counter() - began
    problems = [f"seven tool calls: {problem}" for problem in _problems(result)]
    if problems:
        return Comparison(calls=result.tool_calls, problems=problems)
    calls = sorted(result.tool_calls, key=lambda call: list(TOOLS).index(call.tool))
    batches = [[call for call in calls if call.tool == name] for name in TOOLS]  # each tool needs what the one before it gave
    ways = [
        asyncio.run(_loop("classic loop", [[call] for call in calls])),
        asyncio.run(_loop("parallel calls", batches)),
        _program(code, took_s),
    ]
    return Comparison(ways, result.tool_calls, [])


async def _loop(name: str, batches: Sequence[Sequence[ToolCall]]) -> Way:
    """JSON calls, a batch an inference, the calls of one all at once; the last inference writes the answer."""
    talk = Conversation(f"{_DO}\n{compact(_LOOP_TOOLS)}\n{QUESTION}", ASSUMED)
    for batch in batches:
        talk.infer("\n".join(compact({"id": call.id, "name": call.tool, "arguments": call.arguments}) for call in batch))
        began = time.perf_counter()
        values = await asyncio.gather(*(TOOLS[call.tool](**call.arguments) for call in batch))
        took_s = time.perf_counter() - began
        answers = (compact({"id": call.id, "output": value}) for call, value in zip(batch, values, strict=True))
        talk.told("\n".join(answers), calls=len(batch), tools_s=took_s)
    talk.infer(compact(ANSWER))
    return Way(name, talk.cost, talk.spans)


def _program(code: str, took_s: float) -> Way:
    """One inference writes the program, one the answer."""
    talk = Conversation(f"{_DO}\n{compact(_PROGRAM_TOOL)}\n{_STUBS}\n{QUESTION}", ASSUMED)
    talk.infer(compact({"id": "call_1", "name": "run_python", "arguments": {"code": code}}))
    result = {"status": "completed", "value": ANSWER, "stdout": "", "tool_calls": CALLS}
    talk.told(compact({"id": "call_1", "output": result}), calls=CALLS, tools_s=took_s)
    talk.infer(compact(ANSWER))
    return Way("one program", talk.cost, talk.spans)


def _problems(result: Result) -> list[str]:
    if result.status != "completed":
        return [f"the program should have completed, but is “{result.status}” ({result.error})"]
    found = [] if result.value == ANSWER else [f"the answer should be {ANSWER}, but is {result.value!r}"]
    done = sum(call.status == "ok" for call in result.tool_calls)
    if (done, len(result.tool_calls)) != (CALLS, CALLS):
        found.append(f"{CALLS} calls should have been made, but {len(result.tool_calls)} were, {done} of them with success")
    return found
