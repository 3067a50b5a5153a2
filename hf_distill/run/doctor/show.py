"""Shows findings: a table in a terminal, lines elsewhere, a JSON document for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_distill._version import __version__
from hf_distill.formatting import readable
from hf_distill.run.doctor.finding import Finding, Status

# Of the JSON document; raised if a key changes its meaning.
FORMAT = 1
# The worst first: in this order findings are shown.
ORDER: tuple[Status, ...] = ("mistake", "warning", "ok", "skipped")
WORDS = {"ok": "OK", "warning": "warning", "mistake": "MISTAKE", "skipped": "skipped"}
PLURALS = {"ok": "OK", "warning": "warnings", "mistake": "mistakes", "skipped": "skipped"}
STYLES = {"ok": "green", "warning": "yellow", "mistake": "bold red", "skipped": "dim"}


def worst(found: Iterable[Finding]) -> Status:
    """Return the worst status of some findings; what was skipped counts as OK.

    >>> worst([Finding("data", "ok", "1,000 rows"), Finding("cost", "skipped", "no GPU")])
    'ok'
    """
    present = {one.status for one in found}
    return next((status for status in ORDER[:2] if status in present), "ok")


def show(found: Sequence[Finding], console: Console | None = None) -> None:
    """Print findings: the worst first; what is OK, or was skipped, in one line for each thing that was looked at.

    Args:
        found: The findings, in the order of the table.
        console: Where to print; standard output if None.
    """
    console = console or Console()
    lines = [line for status in ORDER for line in _lines([one for one in found if one.status == status])]
    if console.options.ascii_only:
        lines = [(status, check, text.encode("ascii", "replace").decode()) for status, check, text in lines]
    if console.is_terminal:
        grid = Table(box=None, pad_edge=False, show_header=False)
        for style in (None, "bold", None):
            grid.add_column(style=style, overflow="fold")
        for status, check, text in lines:
            grid.add_row(f"[{STYLES[status]}]{WORDS[status]}[/]", escape(check), escape(text))
        console.print(grid)
    else:
        for status, check, text in lines:
            console.print(f"{WORDS[status]:<8} {check:<11} {text}", markup=False, highlight=False, soft_wrap=True)
    console.print(in_short(found), markup=False, highlight=False)


def in_short(found: Sequence[Finding]) -> str:
    """Return how many findings there are of each status.

    >>> in_short([Finding("data", "ok", ""), Finding("labels", "warning", "")])
    '1 warning, 1 OK'
    """
    counts = [(status, sum(one.status == status for one in found)) for status in ORDER]
    return ", ".join(
        f"{n} {PLURALS[status] if n > 1 else WORDS[status].replace('MISTAKE', 'mistake')}" for status, n in counts if n
    )


def as_json(found: Sequence[Finding]) -> str:
    """Return the findings as a JSON document (docs/doctor.md), in the order of the table."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "hf_distill": __version__,
        "status": worst(found),
        "findings": [_entry(one) for one in found],
    }
    return json.dumps(document, indent=1)


def _entry(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values; figures only if there are any."""
    found = {name: readable(value) for name, value in asdict(finding).items() if name != "figures"}
    return {**found, **({"figures": dict(finding.figures)} if finding.figures else {})}


def _lines(found: Sequence[Finding]) -> Iterator[tuple[Status, str, str]]:
    """Yield status, check and text of each line that is shown, of findings with one status."""
    if found and found[0].status == "skipped":
        reasons = dict.fromkeys(one.found for one in found)
        for reason in reasons:  # one thing that is missing stops many checks
            names = ", ".join(dict.fromkeys(one.check for one in found if one.found == reason))
            yield "skipped", names, readable(reason)
        return
    for check, group in groupby(found, key=lambda one: one.check):
        each = list(group)
        if each[0].status == "ok":
            yield "ok", check, "; ".join(dict.fromkeys(readable(one.found) for one in each))
            continue
        for one in each:
            end = "" if not one.advice or one.found.endswith((".", "!", "?")) else "."
            yield one.status, check, readable(f"{one.found}{end} {one.advice}".strip())
