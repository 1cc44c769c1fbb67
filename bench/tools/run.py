"""`make bench-tools`: forty tasks by a classic tool loop, by parallel batches, and by programs; the model is simulated."""

import contextlib
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

import onetrip
from onetrip.demo.simulated import Assumptions
from onetrip.errors import OnetripError
from trips import report
from trips.measure import WrongError, measure
from trips.place import Plain, ProgramFailedError, Sandbox
from trips.tasks import TASKS

DEFAULTS = Assumptions()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option(
    "--task", "names", multiple=True, metavar="NAME", type=click.Choice(list(TASKS)), help="Only this task; repeatable."
)
@click.option("--latency-s", default=DEFAULTS.latency_s, show_default=True, help="The simulated model: to the first token.")
@click.option("--tokens-per-s", default=1 / DEFAULTS.token_s, show_default=True, help="The simulated model: how fast it writes.")
@click.option("--tool-ms", default=DEFAULTS.tool_s * 1e3, show_default=True, help="How long each tool call takes.")
@click.option(
    "--update", metavar="FILE", type=click.Path(path_type=Path, exists=True), help="Also write the tables into this page."
)
@click.option("--without-sandbox", is_flag=True, help="Run the programs in this process, to see what the sandbox costs.")
def main(
    as_json: bool,
    names: tuple[str, ...],
    latency_s: float,
    tokens_per_s: float,
    tool_ms: float,
    without_sandbox: bool,
    update: Path | None,
) -> None:
    """Compare four ways to call tools, on forty tasks. THE MODEL IS SIMULATED; the programs are really run."""
    assumptions = Assumptions(latency_s=latency_s, token_s=1 / tokens_per_s, tool_s=tool_ms / 1e3)
    tasks = [TASKS[name] for name in names] if names else list(TASKS.values())
    progress = Console(stderr=True)
    try:
        with contextlib.ExitStack() as held:
            runner = Plain() if without_sandbox else Sandbox(held.enter_context(onetrip.local()))
            measured = [
                measure(task, runner, assumptions)
                for task in track(tasks, "tasks, with a simulated model", console=progress, transient=True)
            ]
    except (WrongError, ProgramFailedError, OnetripError) as err:
        raise click.ClickException(str(err)) from err
    if as_json:
        sys.stdout.write(report.as_json(measured, assumptions, runner.where) + "\n")
    else:
        report.print_tables(measured, assumptions, runner.where, Console(highlight=False))
    if update is not None:
        report.write_between_markers(update, report.as_markdown(measured, assumptions, runner.where))


if __name__ == "__main__":
    main()
