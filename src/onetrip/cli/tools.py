"""`onetrip tools`: what tools the server has, and the text about them for a prompt."""

import asyncio
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from onetrip import settings
from onetrip.cli.database import config_option
from onetrip.cli.tables import print_table
from onetrip.model import Tool
from onetrip.tools import stubs
from onetrip.tools.texts import line

_OPEN_S = 60.0  # for servers of others to say what tools they have
_SUMMARY_CHARS = 80


def load(configuration: Path | None) -> Sequence[Tool]:
    """The server's tools, as its configuration names them. Raises BadRequest, Unavailable."""
    configured: Any = importlib.import_module("onetrip.tools.loading")  # when a command needs it: `--help` does not
    loaded = settings.load(configuration)

    async def tools() -> Sequence[Tool]:
        async with asyncio.timeout(_OPEN_S), configured.load_toolbox(loaded) as toolbox:
            found: tuple[Tool, ...] = toolbox.tools
            return found

    return asyncio.run(tools())


@click.group("tools")
def command() -> None:
    """Tools of the server, which programs can call."""


@command.command("stubs")
@config_option
@click.option(
    "--budget", type=click.IntRange(0, 1_000_000), default=2000, show_default=True, help="Longest text, in tokens.", metavar="N"
)
@click.option(
    "--style",
    type=click.Choice(["async", "blocking"]),
    default="async",
    show_default=True,
    help="Functions to await, or functions that wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object with text, included, omitted and tokens.")
def stubs_(configuration: Path | None, budget: int, style: stubs.Style, as_json: bool) -> None:
    """Print the text that tells a model what tools there are: the same bytes for the same tools."""
    made = stubs.render(load(configuration), style=style, budget_tokens=budget)
    if as_json:
        _print_json(made._asdict() | {"tokens": stubs.tokens(made.text)})
        return
    sys.stdout.write(made.text)
    if made.omitted:
        print(
            f"{len(made.omitted)} tools have no stub: --budget {budget} is too small for them, or their names are not Python's",
            file=sys.stderr,
        )


@command.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with the schemas.")
def list_(configuration: Path | None, as_json: bool) -> None:
    """List the tools."""
    found = sorted(load(configuration), key=lambda tool: tool.name)
    if as_json:
        _print_json(found)
        return
    if not found:
        print("There are no tools.\nhint: docs/serve.md says how onetrip.toml names them.", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "effect", "approval", "description"):
        table.add_column(column, no_wrap=column != "description")
    for tool in found:
        table.add_row(escape(line(tool.name, 128)), tool.effect, tool.approval, escape(line(tool.description, _SUMMARY_CHARS)))
    print_table(table)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
