"""What a notebook shows for a report: its table and its verdict, as markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.report.markdown import markdown
from hf_distill.report.text import TITLES, rows, trained_on
from hf_distill.report.verdict import verdict

if TYPE_CHECKING:
    from hf_distill.report.results import Results


def summary(report: Results) -> str:
    """Return the table of the models and the sentences below it. Foreign text is escaped."""
    lines = [f"| | {' | '.join(TITLES[name] for name in report.models)} |", "|---|" + "---:|" * len(report.models)]
    for row in rows(report):
        cells = [markdown(text) for text in (row.label, *row.cells.values())]
        lines.append(f"| {' | '.join(f'**{cell}**' if row.headline else cell for cell in cells)} |")
    sentences = [markdown(line) for line in (*verdict(report), trained_on(report)) if line]
    return "\n".join(lines) + "\n\n" + "\n\n".join(sentences) + "\n"
