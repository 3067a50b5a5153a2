"""Prints the table of a sweep, its best setting, and the command that runs that one alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_distill.formatting import readable
from hf_distill.report.sweep.text import rows, titles, verdict

if TYPE_CHECKING:
    from hf_distill.report.sweep.results import Sweep


def table(sweep: Sweep) -> Table:
    """Return the table of a sweep, the best setting first."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles(sweep):
        grid.add_column(escape(readable(title)), justify="right", overflow="fold")
    for row in rows(sweep):
        style = "bold" if row.best else None if row.close else "dim"
        grid.add_row(*(escape(readable(text)) for text in row.cells), style=style)
    return grid


def show(sweep: Sweep, directory: Path, console: Console | None = None) -> None:
    """Print the table, the sentences, and where the rest is.

    Args:
        sweep: The result.
        directory: Directory of the sweep.
        console: Default: a new one for stdout.
    """
    console = console or Console()
    console.rule("Sweep", align="left")
    console.print(table(sweep))
    lines = verdict(sweep)
    if sweep.best is not None:
        lines += [
            f"Its student: {directory / sweep.best_of}",
            f"To run it alone: {(sweep.command or {}).get(sweep.best_of, '')}",
        ]
    if sweep.ranked:
        lines.append(f"Table and plot: {directory / 'sweep.html'}")
    for line in lines:
        console.print(readable(line, limit=2000), markup=False, highlight=False, soft_wrap=True)
