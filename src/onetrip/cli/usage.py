"""`onetrip usage`: what each tenant of the server used, by day."""

import sys
import time
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from onetrip.cli.database import config_option, opened
from onetrip.cli.tables import print_table
from onetrip.store import utc_day
from onetrip.store_schema import UsageRow

_DAY_S: Final = 86_400


@click.command("usage")
@click.option("--tenant", help="Only this one's.  [default: all]", metavar="T")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="How many days, today included.", metavar="N"
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def command(tenant: str | None, days: int, configuration: Path | None, as_json: bool) -> None:
    """What the server's tenants used, by day (UTC)."""
    with opened(configuration) as (store, _):
        rows = store.usage(tenant, utc_day(time.time() - (days - 1) * _DAY_S))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")
        return
    if not rows:
        print("Nothing was used in this time.", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("day", "tenant"):
        table.add_column(column, no_wrap=True)
    for column in ("runs", "failed", "sessions", "cpu s", "wall s", "output MB", "in MB", "out MB"):
        table.add_column(column, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(row.day, escape(row.tenant), *_cells(row))
    print_table(table)


def _cells(row: UsageRow) -> list[str]:
    counts = [f"{count:,}" for count in (row.runs, row.failed, row.sessions)]
    times = [f"{ms / 1000:,.1f}" for ms in (row.cpu_ms, row.wall_ms)]
    return counts + times + [f"{size / 1e6:,.1f}" for size in (row.output_bytes, row.bytes_in, row.bytes_out)]
