"""How the comparison looks on a terminal: a table, a bar for each way, and the program's calls below each other."""

from collections.abc import Sequence
from typing import Any, Final, cast

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onetrip.demo.comparison import ASSUMED, CALLS, QUESTION, Comparison, Way
from onetrip.model import ToolCall

WIDTH: Final = 44  # columns of the longest bar; with names and times it fits into 80
_NAME: Final = 16
_MODEL, _TOOL = "█", "░"  # told apart without colour


def shown(comparison: Comparison) -> list[RenderableType]:
    """What to print, top to bottom; nothing if the comparison could not be made."""
    if not comparison.ways:
        return []
    return [
        Text(f"{CALLS} tool calls: a loop of calls, and one program (simulated model)", "bold cyan"),
        Text(f"“{QUESTION}”"),
        Text(
            f"SIMULATED is the model: {ASSUMED.latency_s:g} s to its first token, then {1 / ASSUMED.token_s:g} tokens a second, and\n"
            "no mistake; nobody waited for it. REAL are the tool calls, of "
            f"{ASSUMED.tool_s * 1e3:g} ms each: the\n"
            "loops' from this process, the program's from its sandbox.",
            "yellow",
        ),
        Text(),
        _table(comparison.ways),
        Text(),
        *(_bar(way, max(way.cost.time_s for way in comparison.ways)) for way in comparison.ways),
        Text(f"{'':{_NAME}}{_MODEL} model (simulated)  {_TOOL} tools, sandbox (real; at least a column)", "dim"),
        _verdict(comparison.ways),
        Text(),
        *_falling(comparison.calls),
    ]


def _table(ways: Sequence[Way]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(("simulated model", "inferences", "tool calls", "it reads", "it writes", "time")):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for way in ways:
        cost = way.cost
        table.add_row(
            way.name,
            str(cost.inferences),
            str(cost.calls),
            f"{cost.read_bytes / 1e3:.1f} kB",
            f"{cost.written_bytes / 1e3:.1f} kB",
            f"{cost.time_s:.1f} s",
        )
    return table


def _bar(way: Way, longest_s: float) -> Text:
    """The model and the tools in turn, to scale; a tool's turn has a column at least, which it takes from the model after it."""
    line = Text(f"{way.name:{_NAME}}")
    at, passed_s = 0, 0.0
    for number, span in enumerate(way.spans):
        passed_s += span
        is_tool = number % 2 == 1
        end = max(round(passed_s / longest_s * WIDTH), at + is_tool)
        line.append((_TOOL if is_tool else _MODEL) * (end - at), "green" if is_tool else "magenta")
        at = end
    return line.append(f" {way.cost.time_s:.1f} s")


def _verdict(ways: Sequence[Way]) -> Text:
    loop, parallel, one = (way.cost.time_s for way in ways)
    return Text(
        f"The program was {loop / one:.1f} × as fast as the loop, {parallel / one:.1f} × as fast as parallel calls", "bold"
    )


def _falling(calls: Sequence[ToolCall]) -> list[Text]:
    """The calls of the program, each from its beginning to its end."""
    begun = sorted(calls, key=lambda call: call.started_ms)
    first = begun[0].started_ms
    last = max(call.started_ms + call.duration_ms for call in begun)
    scale = WIDTH / max(last - first, 1.0)
    lines = [Text(f"The program's {len(begun)} calls in its sandbox, {last - first:.0f} ms from the first to the last:")]
    for call in begun:
        start = round((call.started_ms - first) * scale)
        width = max(1, round((call.started_ms + call.duration_ms - first) * scale) - start)
        arguments = cast("dict[str, Any]", call.arguments)  # a JSON object, always
        argument = next(iter(arguments.values()), "")
        line = Text(f"{call.tool:{_NAME}}{' ' * start}")
        lines.append(line.append(_TOOL * width, "green").append(f" {argument}".rstrip()))
    return lines
