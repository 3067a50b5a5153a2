"""Print the report at the end of a run: the table, the verdict and the path of the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_distill.formatting import LIMIT, readable
from hf_distill.report.group_text import groups_shown, notes
from hf_distill.report.lineage import in_one_line
from hf_distill.report.text import TITLES, rows, trained_on, undefined, who_teaches
from hf_distill.report.written import exports_section, sections

if TYPE_CHECKING:
    from hf_distill.report.for_whom import ForWhom
    from hf_distill.report.report import Report
    from hf_distill.report.written import Section

# Groups in the table; the page has more, and report.json all.
GROUPS = 6
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


def groups_table(report: Report, whom: ForWhom, *, ascii_only: bool = False) -> Table:
    """Return a table of the groups of the eval split that lost most."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column(escape(readable(whom.by)), overflow="fold")
    grid.add_column("rows", justify="right", overflow="fold")
    for name in report.models:
        grid.add_column(TITLES[name], justify="right", style=COLOURS[name], overflow="fold")
    grid.add_column("difference", justify="right", overflow="fold")
    grid.add_column(overflow="fold")
    for line in groups_shown(report, whom, GROUPS):
        texts = (line.name, f"{line.rows:,}", *line.cells.values(), line.difference, line.outcome)
        grid.add_row(*(escape(shown(text, ascii_only)) for text in texts))
    return grid


def section_table(section: Section, *, ascii_only: bool = False) -> Table:
    """Return a table of what models wrote."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, title=section.title, title_justify="left")
    for place, title in enumerate(section.head):
        grid.add_column(escape(readable(title)), justify="right" if place else "left", overflow="fold")
    for row in section.rows:
        grid.add_row(*(escape(shown(cell, ascii_only)) for cell in row))
    return grid


def show_exports(report: Report, console: Console | None = None) -> None:
    """Print how the exports of a student compare with it; to standard output by default."""
    console = console or Console()
    ascii_only = console.options.ascii_only
    section = exports_section(report)
    console.print(section_table(section, ascii_only=ascii_only))
    for line in section.notes:
        console.print(shown(line, ascii_only), markup=False, highlight=False, soft_wrap=True)


def show(report: Report, console: Console | None = None, page: str | Path | None = None) -> None:
    """Print the report.

    Args:
        report: What to print.
        console: Where to print; standard output if None.
        page: Path of `report.html`, printed at the end.
    """
    console = console or Console()
    ascii_only = console.options.ascii_only
    console.print(table(report))
    lines = [who_teaches(report), *undefined(report), *report.verdict(), in_one_line(report), trained_on(report)]
    for section in sections(report, samples=0):
        console.print(section_table(section, ascii_only=ascii_only))
        lines += section.notes
    for whom in report.for_whom:
        if whom.kind == "group":
            console.print(groups_table(report, whom, ascii_only=ascii_only))
            lines += notes(report, whom, GROUPS)
    if page is not None:
        lines.append(f"Full report: {page}")
    for line in filter(None, lines):
        # With soft wrap the terminal breaks lines, so that paths can be copied and logs searched.
        console.print(shown(line, ascii_only), markup=False, highlight=False, soft_wrap=True)


def shown(text: str, ascii_only: bool, limit: int = LIMIT) -> str:
    """Return foreign text as one line for this terminal."""
    text = readable(text, limit)
    return text.replace("±", "+/-").encode("ascii", "replace").decode() if ascii_only else text
