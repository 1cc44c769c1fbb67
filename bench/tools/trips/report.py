"""How the figures look: tables on a terminal, Markdown for the documents, JSON. Each says that the model is simulated."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from onetrip.demo.simulated import Assumptions, Cost
from trips.measure import Measured
from trips.ways import Strategy

START: Final = "<!-- bench-tools:start -->"
END: Final = "<!-- bench-tools:end -->"
_NAMES: Final[dict[Strategy, str]] = {
    "classic": "classic loop",
    "batches": "parallel batches",
    "program": "one program",
    "gather": "program + gather",
}
_HEADINGS: Final = ("strategy", "inferences", "calls", "new kB", "read kB", "time s", "ratio")


def total(measured: Sequence[Measured], strategy: Strategy) -> Cost:
    return sum((one.costs[strategy] for one in measured), Cost())


def groups(measured: Sequence[Measured]) -> list[tuple[str, list[Measured]]]:
    """By tool set, and all together if there are several."""
    found = [(space, list(of)) for space, of in itertools.groupby(measured, key=lambda one: one.task.space)]
    return [*found, ("all sets", list(measured))] if len(found) > 1 else found


def notes(assumptions: Assumptions, where: str) -> list[str]:
    a = assumptions
    model = (
        f"SIMULATED MODEL: {a.latency_s:g} s to the first token of each inference, {1 / a.token_s:g} tokens a second, "
        f"{a.bytes_per_token:g} bytes a token; it makes no mistake. No model was asked."
    )
    tools = (
        f"Each tool call takes {a.tool_s * 1e3:g} ms. The time of the loops is computed; the programs were really run, in {where}, "
        "and to their time the same simulated inferences are added."
    )
    words = (
        "An inference: one request to the model; the last one writes the answer. New: bytes that the model read or wrote, each "
        "counted once. Read: what all inferences read, each the whole conversation again. Ratio: time beside the parallel "
        "batches."
    )
    load = f"{time.strftime('%Y-%m-%d', time.gmtime())}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs at the end."
    return [model, tools, words, load]


def beaten(measured: Sequence[Measured]) -> str:
    """Where a program does not win: it is written at length, and that takes the model time, too."""
    slower = [one.task.name for one in measured if one.costs["gather"].time_s >= one.costs["batches"].time_s]
    ratios = sorted(one.costs["gather"].time_s / one.costs["batches"].time_s for one in measured)
    return (
        f"Task by task, the time of the program with gather beside that of the batches is {ratios[0]:.2f} to {ratios[-1]:.2f} ×, the "
        f"median {ratios[len(ratios) // 2]:.2f} ×. Not faster in {len(slower)} of {len(measured)} tasks"
        f"{': ' + ', '.join(slower) if slower else ''}."
    )


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    base = total(measured, "batches").time_s
    found: list[tuple[str, ...]] = []
    for strategy, name in _NAMES.items():
        cost = total(measured, strategy)
        found.append(
            (
                name,
                f"{cost.inferences:,}",
                f"{cost.calls:,}",
                f"{cost.new_bytes / 1e3:,.1f}",
                f"{cost.read_bytes / 1e3:,.1f}",
                f"{cost.time_s:,.1f}",
                f"{cost.time_s / base:.2f} ×",
            )
        )
    return found


def title(name: str, measured: Sequence[Measured]) -> str:
    tasks = f"{len(measured)} tasks" if len(measured) > 1 else f"task {measured[0].task.name}"
    return f"{name}: {tasks}, simulated model"


def print_tables(measured: Sequence[Measured], assumptions: Assumptions, where: str, console: Console) -> None:
    for name, some in groups(measured):
        table = Table(box=box.SIMPLE_HEAD, title=title(name, some), title_justify="left")
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading == "strategy" else "right", no_wrap=True)
        for row in rows(some):
            table.add_row(*row)
        console.print(table)
    for note in (beaten(measured), *notes(assumptions, where)):
        console.print(note, markup=False)


def as_markdown(measured: Sequence[Measured], assumptions: Assumptions, where: str) -> str:
    lines: list[str] = []
    for name, some in groups(measured):
        rules = ("---", *("--:" for _ in _HEADINGS[1:]))
        lines += [f"{title(name, some).capitalize()}:", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (_HEADINGS, rules, *rows(some))]
        lines.append("")
    return "\n".join(lines) + "\n" + "\n\n".join([beaten(measured), *notes(assumptions, where)])


def as_json(measured: Sequence[Measured], assumptions: Assumptions, where: str) -> str:
    def cost(one: Cost) -> dict[str, Any]:
        return {**dataclasses.asdict(one), "time_s": one.time_s}

    def costs(some: Sequence[Measured]) -> dict[str, Any]:
        return {strategy: cost(total(some, strategy)) for strategy in _NAMES}

    return json.dumps(
        {
            "simulated_model": True,
            "notes": [beaten(measured), *notes(assumptions, where)],
            "assumptions": dataclasses.asdict(assumptions),
            "programs_ran_in": where,
            "sets": [
                {"name": name, "tasks": len(some), "simulated_model": True, "costs": costs(some)}
                for name, some in groups(measured)
            ],
            "tasks": [
                {"name": one.task.name, "set": one.task.space, "simulated_model": True, "costs": costs([one])} for one in measured
            ],
        },
        indent=2,
        ensure_ascii=False,
    )


def write_between_markers(path: Path, content: str) -> None:
    """Replace what is between the markers; everything else stays. Raises ValueError where they are missing."""
    text = path.read_text("utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"{path} does not have one {START} and after it one {END}")
    path.write_text(f"{text[: text.index(START)]}{START}\n\n{content}\n\n{text[text.index(END) :]}", "utf-8")
