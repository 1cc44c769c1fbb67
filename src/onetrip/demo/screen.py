"""What the demo looks like on a terminal: the report on stdout, progress on stderr; plain lines where that is no terminal."""

import contextlib
import textwrap
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from onetrip.demo import waterfall
from onetrip.demo.comparison import Comparison
from onetrip.demo.script import PENGUINS, Step
from onetrip.model import Result, Support

_MEANING: Final = {
    "userns": "own users",
    "pidns": "own processes",
    "mountns": "own files",
    "netns": "no network",
    "ipcns": "own IPC",
    "utsns": "own host name",
    "cgroupns": "own view of control groups",
    "rlimits": "limits per process",
    "no_new_privs": "no new privileges",
    "no_caps": "no capabilities",
    "seccomp": "system calls denied by default",
    "affinity": "pinned to one CPU",
    "watchdog": "memory and CPU sampled, every 50 ms",
}


class Screen:
    """Prints one run of the demo. `quiet`: progress only."""

    def __init__(self, *, quiet: bool, total: int) -> None:
        self._out = Console(quiet=quiet, highlight=False, markup=False, emoji=False)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._total, self._cells = total, 0

    def begin(self) -> None:
        self._say(
            f"A program such as a model writes, with {PENGUINS} penguins of Antarctica as its data,",
            "runs cell by cell in a sandbox on this machine. Then cells go wrong and are",
            "taken back, and the session branches.",
            style="bold",
        )
        self._say("data: Gorman, Williams and Fraser 2014, palmerpenguins 0.1.6, CC0 1.0", style="dim")

    @contextlib.contextmanager
    def waiting(self, what: str) -> Generator[None]:
        """Show that something is being waited for."""
        if self._err.is_terminal:
            with self._err.status(f"{what} …"):
                yield
        else:
            self._err.print(f"{what} …", soft_wrap=True)
            yield

    @contextlib.contextmanager
    def working(self, number: int, title: str) -> Generator[None]:
        """Show which step is running, and for how long."""
        if not self._err.is_terminal:
            self._err.print(f"[{number}/{self._total}] {title}", soft_wrap=True)
            yield
            return
        columns = (
            SpinnerColumn(),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=self._err, transient=True) as progress:
            progress.add_task(title, total=self._total, completed=number - 1)
            yield

    def opened(self, started_s: float, opened_s: float, support: Support) -> None:
        self._say(
            f"libraries imported once in {started_s:.1f} s; this session opened in {opened_s * 1e3:.0f} ms; "
            f"isolation level of this machine: {support.level}",
            style="dim",
        )

    def forked(self, count: int, forked_s: float) -> None:
        self._out.print()
        self._say(f"session.fork(count={count}): {count} branches of the session in {_time(forked_s * 1e3)}", style="bold cyan")

    def serving(self, url: str) -> None:
        self._out.print()
        self._say(f"The same over HTTP: onetrip serve, and onetrip.connect({url!r})", style="bold cyan")

    def restarted(self, adopted: int, restarted_s: float) -> None:
        self._say(
            f"kill -9 of the server; the next one is there after {restarted_s:.1f} s and finds {adopted} session with its variables and files",
            style="yellow",
        )

    def served(self, step: Step, result: Result) -> None:
        wrong = step.problems(result)
        mark = "✗" if wrong else "✓"
        self._say(f"{mark}  {step.title}: {_outcome(result)}, {_cost(result)}", style="bold red" if wrong else "green")

    def compared(self, comparison: Comparison) -> None:
        self._out.print()
        for part in waterfall.shown(comparison):
            self._out.print(part)

    def paste(self, executable: str) -> None:
        """How to go on from here, to be copied."""
        self._out.print()
        self._say("To keep a server: start it, and copy the token that it prints", style="bold cyan")
        self._say(
            f"  {executable} serve",
            "  export TOKEN=…",
            '  curl -s http://127.0.0.1:8400/v1/runs -H "Authorization: Bearer $TOKEN" -d \'{"code": "sum(range(10))"}\'',
        )
        self._say("A program that uses E2B runs unchanged with", style="")
        self._say(
            "  export E2B_API_URL=http://127.0.0.1:8400/e2b E2B_SANDBOX_URL=http://127.0.0.1:8400/e2b E2B_API_KEY=$TOKEN",
        )

    def step(self, step: Step, result: Result, problems: Sequence[str]) -> None:
        """One cell: its source, what it gave, what it cost, and whether that is what was promised."""
        if step.is_after:
            self._after(step, result, problems)
            return
        self._cells += 1
        self._out.print()
        self._say(f"{self._cells}  {step.title}", style="bold cyan")
        self._out.print(
            _barred(Syntax("", "python", theme="ansi_dark", background_color="default").highlight(step.code)), soft_wrap=True
        )
        for text in (result.stdout, None if any(display.is_result for display in result.displays) else result.text):
            if text:
                self._say(*_lines(text))
        for display in result.displays:
            if display.is_result and "text/plain" in display.data:
                self._say(*_lines(display.data["text/plain"]))
        if result.error is not None:
            self._say(*_lines(result.error.traceback or f"{result.error.type}: {result.error.message}"), style="red")
        if result.limit is not None and (result.error is None or result.error.type != "LimitExceeded"):
            self._say(
                f"stopped: over the {result.limit.name} limit of {result.limit.limit:g} {result.limit.unit}", style="yellow"
            )
        if result.session.rolled_back:
            self._say("rolled back: variables and files are as they were before", style="yellow")
        if result.session.note is not None:
            self._say(result.session.note, style="yellow")
        made = [
            f"{file.path} ({'deleted' if file.change == 'deleted' else f'{file.size / 1e3:.1f} kB'})" for file in result.files
        ]
        if made:
            self._say(f"files: {', '.join(made)}")
        self._say(f"cost: {_cost(result)}", style="dim")
        self._problems(problems)

    def summary(
        self,
        done: Sequence[tuple[Step, Result, list[str]]],
        chart: Path | None,
        times_ms: Sequence[float],
    ) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "cell", "outcome"):
            table.add_column(column, no_wrap=True)
        for column in ("wall", "CPU", "memory", "output"):
            table.add_column(column, justify="right", no_wrap=True)
        cells = [(step, result, wrong) for step, result, wrong in done if not step.is_after]
        for number, (step, result, wrong) in enumerate(cells, 1):
            mark = Text("✗", "red") if wrong else Text("✓", "green")
            if result.session.rolled_back:
                mark.append(" ↩", "yellow")
            table.add_row(mark, f"{number:2}  {step.title}", _outcome(result), *_cost_columns(result))
        self._out.print()
        self._say("What each cell cost", style="bold cyan")
        self._out.print(table)
        if any(result.session.rolled_back for _, result, _ in cells):
            self._say("↩ rolled back: the session went on from its state before this cell", style="dim")
        if done:
            self._isolation(done[-1][1])
        self._out.print()
        median, slowest = times_ms[len(times_ms) // 2], times_ms[-1]
        self._say(
            f"{len(times_ms)} programs that use pandas, each in a sandbox of its own: median {median:.1f} ms, slowest {slowest:.1f} ms"
        )
        if chart is not None:
            self._say(f"chart: {chart}")

    def verdict(self, steps: int, served: int, problems: Sequence[str]) -> None:
        """The last word: whether everything was as promised."""
        self._out.print()
        if problems:
            self._say(*(f"NOT AS PROMISED: {problem}" for problem in problems), style="bold red")
        else:
            self._say(
                f"all {steps} steps behaved as promised, in one session and its branches, and {served} again over HTTP",
                style="bold green",
            )

    def _after(self, step: Step, result: Result, problems: Sequence[str]) -> None:
        self._say(f"after that: {step.title}", style="green" if not problems else "bold red")
        for line in step.code.splitlines():
            self._say(f"  >>> {line}", style="dim")
        self._say(f"  {result.text}")
        self._problems(problems)

    def _isolation(self, result: Result) -> None:
        isolation = result.isolation
        self._out.print()
        self._say("How it was isolated", style="bold cyan")
        self._say(f"tier {isolation.tier}, level {isolation.level}")
        held = [f"{name} ({_MEANING[name]})" if name in _MEANING else name for name in isolation.mechanisms]
        self._say(
            *textwrap.wrap(", ".join(held), max(40, min(self._out.width, 110)), break_long_words=False, break_on_hyphens=False)
        )

    def _problems(self, problems: Sequence[str]) -> None:
        self._say(*(f"✗ {problem}" for problem in problems), style="bold red")

    def _say(self, *lines: str, style: str = "") -> None:
        for line in lines:
            self._out.print(Text(line, style), soft_wrap=True)


def _barred(code: Text) -> Text:
    """Source with a bar at its left, so that it is not mistaken for output."""
    code.rstrip()
    bar = Text("│ ", "dim")
    return Text("\n").join(Text.assemble(bar, line) for line in code.split("\n"))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def _outcome(result: Result) -> str:
    if result.limit is not None:
        return f"{result.limit.name} limit"
    return result.error.type if result.error is not None else result.status


def _cost(result: Result) -> str:
    wall, cpu, memory, output = _cost_columns(result)
    return f"{wall} wall, {cpu} CPU, {memory} peak memory, {output} output"


def _cost_columns(result: Result) -> tuple[str, str, str, str]:
    usage = result.usage
    return _time(usage.wall_ms), _time(usage.cpu_ms), f"{usage.peak_memory_bytes / 1e6:.0f} MB", _size(usage.output_bytes)


def _time(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB"
