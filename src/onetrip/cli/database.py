"""Opens the server's database for the commands that work on it, whether or not a server runs."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from onetrip import config, settings, store
from onetrip.settings import Settings
from onetrip.store import Store

config_option = click.option(
    "--config",
    "configuration",
    help="The server's onetrip.toml.  [default: none; the data is in the user's folder]",
    metavar="FILE",
    type=click.Path(path_type=Path),
)


@contextmanager
def opened(configuration: Path | None) -> Generator[tuple[Store, Settings]]:
    """The database in the folder that the configuration names, and the configuration. Raises BadRequest, Unavailable."""
    loaded = settings.load(configuration)
    with Store.open(config.data_dir(loaded.data_dir) / store.FILE) as database:
        yield database, loaded
