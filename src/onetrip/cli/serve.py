"""`onetrip serve`: the server, from a terminal, a container or systemd."""

import sys
from pathlib import Path

import click
import msgspec

from onetrip import config, settings
from onetrip.cli.database import config_option
from onetrip.serving import Listening, run


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8400]")
@config_option
@click.option(
    "--json", "as_json", is_flag=True, help="When it listens, print one line of JSON to stdout: url, token, adopted, pid."
)
def command(host: str | None, port: int | None, configuration: Path | None, *, as_json: bool) -> None:
    """Serve sessions and runs over HTTP until a signal: SIGTERM drains, Ctrl-C does not wait.

    Without any key it listens on loopback only, makes a token, and prints a command to paste.
    """
    loaded = settings.load(configuration)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    loaded = msgspec.structs.replace(loaded, **given)
    folder = config.data_dir(loaded.data_dir)

    def listening(found: Listening) -> None:
        if as_json:
            print(msgspec.json.encode(found).decode(), flush=True)
        _say(found)

    given_up = run(loaded, folder, config.node_variables(), on_listening=listening)
    if given_up:
        print(f"{given_up} runs were not done in time and were given up", file=sys.stderr)


def _say(found: Listening) -> None:
    lines = [f"Onetrip serves on {found.url}"]
    if found.adopted:
        lines.append(f"{found.adopted} sessions of the server before this one live on")
    if found.token is not None:
        lines += [
            "There is no key yet; this token works until you make one with `onetrip keys create`. Try:",
            "",
            f"  curl -s {found.url}/v1/runs -H 'Authorization: Bearer {found.token}' -d '{{\"code\": \"sum(range(10))\"}}'",
            "",
        ]
    lines.append("Ctrl-C ends it and every session.")
    print("\n".join(lines), file=sys.stderr, flush=True)
