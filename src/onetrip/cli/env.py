"""`onetrip env`: build, list and remove environments."""

import sys
import time

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onetrip import environments
from onetrip.cli.seam import names
from onetrip.environments import Environment


@click.group("env")
def command() -> None:
    """Named sets of packages that programs run with, built once, apart from Onetrip's own packages."""


@command.command("build")
@click.argument("name")
@click.option("--package", "packages", multiple=True, help="Package, as `polars` or `polars>=1.2`; repeatable.", metavar="P")
@click.option("--requirements", help="File of packages, as pip has them.", metavar="FILE")
@click.option("--python", help="Interpreter to build for.  [default: Onetrip's own]", metavar="PY")
@click.option(
    "--preload",
    multiple=True,
    help="Module that every sandbox has imported from the start; repeatable, or with commas.",
    metavar="MOD",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build(
    name: str, packages: tuple[str, ...], requirements: str | None, python: str | None, preload: tuple[str, ...], as_json: bool
) -> None:
    """Build NAME, or build it again and replace it. `default` takes --package in addition to its own packages."""
    began = time.monotonic()
    console = Console(stderr=True, highlight=False)
    with console.status(f"building {escape(name)}") as status:

        def show(line: str) -> None:
            if console.is_terminal:
                status.update(f"building {escape(name)}: {escape(line)}")
            else:
                print(line, file=sys.stderr)

        built = environments.build(
            name,
            packages=packages,
            requirements=requirements,
            python=python,
            preload=names(preload) if preload else None,
            report=show,
        )
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(built), indent=2).decode() + "\n")
    else:
        seconds = time.monotonic() - began
        print(f"{name}: {len(built.packages)} packages for CPython {built.python.version} in {seconds:.0f} s", file=sys.stderr)
        print(built.path)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(as_json: bool) -> None:
    """List the environments that programs can run in."""
    found = environments.list_all()
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return
    if not found:
        print("There are no environments yet.\nhint: `onetrip env build default` builds the default one.", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "python", "packages", "preloads", "built"):
        table.add_column(column, no_wrap=column == "name")
    for one in found:
        table.add_row(escape(one.name), one.python.version, str(len(one.packages)), escape(_preloads(one)), one.built_at)
    Console(highlight=False).print(table)


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove NAME. Programs that run in it go on; its files go when the last one has ended."""
    if not environments.remove(name):
        print(f"{name} is still in use; its files are removed with the next build of that name.", file=sys.stderr)


def _preloads(environment: Environment) -> str:
    return ", ".join(node.name for node in environment.nodes[1:])
