"""`onetrip bench`: hands over to onetrip.bench, which is imported only here."""

import click


@click.command("bench")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
@click.option("--quick", is_flag=True, help="Few samples, no comparison with others: only to see that it works.")
@click.option("--env", "environment", default="default", show_default=True, metavar="E", help="The environment to measure with.")
@click.option(
    "--update", multiple=True, metavar="FILE", help="Also write the tables between the bench markers of this Markdown file."
)
def command(as_json: bool, quick: bool, environment: str, update: tuple[str, ...]) -> None:
    """Measure starts, warm cells, throughput and memory here, beside a bare fork and what else is installed."""
    from onetrip import bench  # noqa: PLC0415 -- only when it is called

    raise SystemExit(bench.main(as_json=as_json, quick=quick, update=update, environment=environment))
