"""The command line: data to stdout, everything else to stderr. One file per command, each imported when it is called.

Exit status: 0 completed · 1 the program failed or was interrupted · 2 the caller's mistake · 3 a limit · 4 the platform.
"""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

import click

from onetrip.cli.report import print_error
from onetrip.errors import BadRequest, NotFound, OnetripError

USAGE: Final = 2
PLATFORM: Final = 4

_COMMANDS: Final = {
    "run": "Run one program.",
    "shell": "An interactive session.",
    "serve": "The server: sessions and runs over HTTP.",
    "mcp": "Tools for an MCP client, on stdin and stdout.",
    "doctor": "What isolation and limits this machine gives, and what is missing.",
    "env": "Build, list and remove environments.",
    "keys": "Make, list and revoke keys of the server.",
    "tools": "The server's tools, and the text about them for a prompt.",
    "usage": "What tenants of the server used.",
    "demo": "The main job, with what each cell cost.",
    "bench": "The numbers, on this machine.",
}


class _Commands(click.Group):
    """Knows the commands by name, so that `onetrip run` does not pay for the imports of `onetrip shell`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's interface
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"onetrip.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's interface
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OnetripError as err:
            print_error(err)
            ctx.exit(USAGE if isinstance(err, (BadRequest, NotFound)) else PLATFORM)
        except BrokenPipeError:
            # the reader has what it wanted (`| head`): say nothing, and keep the interpreter's last flush from complaining
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            ctx.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            ctx.exit(1)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="onetrip", prog_name="onetrip")
def main() -> None:
    """Run the Python that a model writes in a sandbox that it cannot leave."""
    # told to end, we leave every `with` on the way, so that no sandbox and no half-built environment stays
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- a signal handler's signature
    raise SystemExit(128 + number)
