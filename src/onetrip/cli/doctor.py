"""`onetrip doctor`: what isolation and limits this machine gives, what is missing, why, and the remedy."""

import os
import platform
import sys
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onetrip import config, environments
from onetrip.cli.seam import embedded
from onetrip.errors import OnetripError
from onetrip.model import Support


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show every mechanism that isolates or limits. Exit status 0 if the level `strict` is reached, 1 if not."""
    support = embedded(context).probe()
    facts = _facts(support)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
    else:
        _print(support, facts)
    context.exit(0 if support.level == "strict" else 1)


def _facts(support: Support) -> dict[str, Any]:
    try:
        built = [
            {"name": one.name, "python": one.python.version, "packages": len(one.packages), "path": one.path}
            for one in environments.list_all()
        ]
        damaged = None
    except OnetripError as err:
        built, damaged = [], str(err)
    return {
        **msgspec.to_builtins(support),
        "cgroup": _cgroup_version(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "environments": built,
        "environments_error": damaged,
        "homes": [str(home) for home in config.homes()],
    }


def _cgroup_version() -> str:
    """Which version has the memory controller: "v2", "v1" or "none"; what is usable is a mechanism of its own."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            if "memory" in file.read().split():
                return "v2"
    except OSError:
        pass  # not mounted as v2: look for v1
    return "v1" if os.path.isdir("/sys/fs/cgroup/memory") else "none"


def _print(support: Support, facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(
        f"level [bold]{support.level or 'none'}[/bold] · tier {support.tier} · kernel {facts['kernel']} · {facts['user']} · cgroup {facts['cgroup']}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("mechanism", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("needed for", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for mechanism in support.mechanisms:
        state = "[green]works[/green]" if mechanism.works else "[red]missing[/red]"
        table.add_row(escape(mechanism.name), state, mechanism.needed_for or "", escape(mechanism.detail))
    console.print(table)
    for mechanism in support.mechanisms:
        if not mechanism.works and mechanism.remedy:
            console.print(f"hint: {escape(mechanism.name)}: {escape(mechanism.remedy)}")
    built = ", ".join(f"{one['name']} (CPython {one['python']}, {one['packages']} packages)" for one in facts["environments"])
    console.print(f"environments: {escape(built) or 'none yet; `onetrip env build default` builds the default one'}")
    if facts["environments_error"]:
        console.print(f"[red]error:[/red] {escape(facts['environments_error'])}")
