"""Print several runs: the table, which is best, and what is not compared."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_distill.formatting import readable
from hf_distill.report.runs.comparison import RunComparison
from hf_distill.report.runs.text import notes, parts, verdict
from hf_distill.report.terminal import shown

# Longest value of a setting in the table; the page shows all of it.
LONGEST = 60


def table(compared: RunComparison, *, ascii_only: bool = False) -> Table:
    """Return the table, one column a run."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column(overflow="fold")
    for run in compared.runs:
        grid.add_column(escape(readable(run.name)), justify="right", overflow="fold")
    for part in parts(compared):
        for place, row in enumerate(part.rows):
            cells = [escape(shown(text, ascii_only, limit=LONGEST)) for text in (row.label, *row.cells.values())]
            last = place == len(part.rows) - 1
            grid.add_row(*cells, style="bold" if row.headline else None, end_section=last)
    return grid


def show(compared: RunComparison, console: Console | None = None, page: str | Path | None = None) -> None:
    """Print several runs.

    Args:
        compared: The runs.
        console: Where to print; standard output if None.
        page: Path of the page, printed at the end.
    """
    console = console or Console()
    ascii_only = console.options.ascii_only
    console.print(table(compared, ascii_only=ascii_only))
    lines = [*verdict(compared), *notes(compared)]
    if page is not None:
        lines.append(f"Page: {page}")
    for line in lines:
        console.print(shown(line, ascii_only), markup=False, highlight=False, soft_wrap=True)
