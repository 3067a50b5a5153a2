"""Print the report at the end of a run: the table, the verdict and the path of the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_distill.formatting import readable
from hf_distill.report.text import TITLES, rows, trained_on, undefined, who_teaches

if TYPE_CHECKING:
    from hf_distill.report.report import Report

COLOURS = {"teacher": "blue", "student": "bold", "baseline": "dim"}


def table(report: Report) -> Table:
    """Return a table of teacher, student and student without teacher."""
    # No frame, to leave the width of a narrow terminal to the numbers.
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column(overflow="fold")
    for name in report.models:
        grid.add_column(TITLES[name], justify="right", style=COLOURS[name], overflow="fold")
    for row in rows(report):
        # Metric names are foreign text: "[/]" in one must not be read as markup.
        cells = [escape(readable(text)) for text in (row.label, *row.cells.values())]
        grid.add_row(*cells, style="bold" if row.headline else None)
    return grid


def show(report: Report, console: Console | None = None, page: str | Path | None = None) -> None:
    """Print the report.

    Args:
        report: What to print.
        console: Where to print; standard output if None.
        page: Path of `report.html`, printed at the end.
    """
    console = console or Console()
    console.print(table(report))
    lines = [who_teaches(report), *undefined(report), *report.verdict(), trained_on(report)]
    if page is not None:
        lines.append(f"Full report: {page}")
    for line in filter(None, lines):
        text = readable(line)
        if console.options.ascii_only:
            text = text.replace("±", "+/-").encode("ascii", "replace").decode()
        # With soft wrap the terminal breaks lines, so that paths can be copied and logs searched.
        console.print(text, markup=False, highlight=False, soft_wrap=True)
