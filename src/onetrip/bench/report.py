"""The outcome as people and programs read it: tables on a terminal, Markdown between markers of a file, JSON."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from onetrip.errors import BadRequest

from .conditions import Conditions
from .figures import Figure, bound_text, number_text, percentile, target_of, verdict
from .others import TASKS, Alternative, Skipped

START: Final = "<!-- bench:start -->"
END: Final = "<!-- bench:end -->"
WIDTH: Final = 140  # where no terminal says otherwise


@dataclass(frozen=True, slots=True)
class Cell:
    """One task done by one contender."""

    p50: float
    p99: float
    n: int


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: what it took for each task that it can do."""

    name: str
    note: str
    tasks: Mapping[str, Cell]


_OURS: Final = (
    (
        "Onetrip", "fully jailed; from the warm pool; sessions without undo",
        {"fresh": "oneshot_bare", "pandas": "oneshot_async", "start": "session_start", "warm": "warm_async", "memory": "memory"},
    ),
    (
        "Onetrip, undo", "the same; undo is the default; cells back to back",
        {"start": "session_start_undo", "warm": "warm_undo_back", "memory": "memory_undo"},
    ),
)  # fmt: skip


def rows(samples: Mapping[str, Sequence[float]], alternatives: Sequence[Alternative]) -> list[Row]:
    """Onetrip first, then what a user would pick instead."""
    found = [Row(name, note, _cells({task: samples[key] for task, key in keys.items()})) for name, note, keys in _OURS]
    found += [
        Row(other.name, other.note, _cells({task: samples[f"{other.name}/{task}"] for task in other.measures}))
        for other in alternatives
    ]
    return found


def _cells(samples: Mapping[str, Sequence[float]]) -> dict[str, Cell]:
    return {task: Cell(percentile(taken, 0.5), percentile(taken, 0.99), len(taken)) for task, taken in samples.items() if taken}


# ---------------------------------------------------------------------------------------------------- terminal


def print_tables(
    figures: Sequence[Figure], contenders: Sequence[Row], skipped: Sequence[Skipped], conditions: Conditions
) -> None:
    console = Console(width=max(WIDTH, shutil.get_terminal_size().columns), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title="Onetrip beside the physical limit", title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    for figure in figures:
        line = _line(figure)
        style = "" if not line[-2] else "green" if line[-2] == "met" else "yellow"
        table.add_row(*line, style=style)
    console.print(table)
    if len(contenders) > len(_OURS):
        table = Table(
            box=box.SIMPLE_HEAD,
            title="Beside what one would pick instead: p50 (p99, n) in ms, memory in MB",
            title_justify="left",
        )
        for heading in ("", *TASKS.values(), ""):
            table.add_column(heading)
        for row in contenders:
            table.add_row(row.name, *(_task(row, task) for task in TASKS), row.note)
        console.print(table)
    for line in (*_skipped_lines(skipped), *_condition_lines(conditions)):
        console.print(line, markup=False)


_HEADINGS: Final = ("measure", "p50", "p99", "unit", "n", "target", "verdict", "note")
_NUMBERS: Final = {"p50", "p99", "n"}


def _line(figure: Figure) -> tuple[str, ...]:
    return (
        figure.title,
        number_text(figure.value),
        number_text(figure.p99),
        figure.unit,
        str(figure.n),
        bound_text(figure),
        verdict(figure),
        figure.note,
    )


def _task(row: Row, task: str) -> str:
    cell = row.tasks.get(task)
    return "–" if cell is None else f"{number_text(cell.p50)} ({number_text(cell.p99)}, {cell.n})"


def _skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    return [f"Not measured: {one.name}: {one.reason}." for one in skipped]


def _condition_lines(conditions: Conditions) -> list[str]:
    c = conditions
    return [
        f"Onetrip {c.onetrip}, {c.when} UTC, as {c.user}.",
        f"{c.kernel}; {c.cpus} CPUs ({c.machine}), {c.memory_mb / 1000:.0f} GB; Python {c.python}, {c.packages}.",
        f"Load {c.load_before:.2f} before, {c.load_after:.2f} after. Isolation: {c.isolation}.",
        "p99 of a rate is its slowest percent. One-shots are asked for one at a time, 30 ms apart, but for CPU and “sustained”.",
    ]


# ---------------------------------------------------------------------------------------------------- Markdown, JSON


def as_markdown(figures: Sequence[Figure], contenders: Sequence[Row], skipped: Sequence[Skipped], conditions: Conditions) -> str:
    lines = _markdown_table(_HEADINGS, [_line(figure) for figure in figures])
    if len(contenders) > len(_OURS):
        body = [(row.name, *(_task(row, task) for task in TASKS), row.note) for row in contenders]
        lines += ["", "The same tasks beside what one would pick instead; p50 (p99, n) in ms, memory in MB:", ""]
        lines += _markdown_table(("", *TASKS.values(), ""), body)
    for line in (*_skipped_lines(skipped), *_condition_lines(conditions)):
        lines += ["", line]
    return "\n".join(lines)


def _markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rules = ["--:" if heading in _NUMBERS else "---" for heading in headings]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (headings, rules, *body)]


def as_json(figures: Sequence[Figure], contenders: Sequence[Row], skipped: Sequence[Skipped], conditions: Conditions) -> str:
    def measure(figure: Figure) -> dict[str, Any]:
        target = target_of(figure.key)
        held = {"target": target.bound, "at_most": target.at_most, "verdict": verdict(figure)} if target else {}
        return {**dataclasses.asdict(figure), **held}

    return json.dumps(
        {
            "conditions": dataclasses.asdict(conditions),
            "measures": [measure(figure) for figure in figures],
            "beside": [
                {"name": row.name, "note": row.note, "tasks": {k: dataclasses.asdict(v) for k, v in row.tasks.items()}}
                for row in contenders
            ],
            "skipped": [dataclasses.asdict(one) for one in skipped],
        },
        indent=2,
        ensure_ascii=False,
    )


def check_markers(path: Path) -> None:
    """Raises BadRequest unless the file can be read and has both markers, once, in order."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise BadRequest(f"{path} cannot be read: {err}", field="update") from err
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise BadRequest(f"{path} does not have one {START} and after it one {END}", field="update")


def write_between_markers(path: Path, content: str) -> None:
    """Replace what is between the markers; everything else stays. Raises as `check_markers`."""
    check_markers(path)
    before, _, rest = path.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{START}\n\n{content}\n\n{END}{after}", "utf-8")
