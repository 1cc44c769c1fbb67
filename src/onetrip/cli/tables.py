"""Prints a table whole: a cell that is cut to fit a narrow terminal, or the 80 columns of a pipe, is a figure that is wrong."""

from typing import Final

from rich.console import Console
from rich.table import Table

_WIDE: Final = 1000


def print_table(table: Table) -> None:
    """To stdout, as wide as its rows are; a narrower terminal wraps them."""
    console = Console(highlight=False)
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDE)).maximum)
    console.print(table)
