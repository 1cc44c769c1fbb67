"""`onetrip demo`: hands over to onetrip.demo, which is imported only here."""

import click


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")
def command(as_json: bool) -> None:
    """Analyse a real data set in a session; stop cells that go wrong, and take them back; undo one; branch."""
    from onetrip import demo  # noqa: PLC0415 -- only when it is called

    raise SystemExit(demo.main(as_json=as_json))
