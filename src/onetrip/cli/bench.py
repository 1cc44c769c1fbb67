"""`onetrip bench`: hands over to onetrip.bench, which is imported only here."""

import click


@click.command("bench")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
def command(as_json: bool) -> None:
    """Measure starts, warm cells, throughput and memory here, beside a bare fork and what else is installed."""
    from onetrip import bench  # noqa: PLC0415 -- only when it is called

    raise SystemExit(bench.main(as_json=as_json))
