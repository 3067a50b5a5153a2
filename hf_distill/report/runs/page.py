"""Write several runs as one page, in the style of the report."""

from __future__ import annotations

from dataclasses import replace

from hf_distill.report.rendering import render
from hf_distill.report.runs.comparison import RunComparison
from hf_distill.report.runs.plots import keys, plots
from hf_distill.report.runs.text import notes, parts, verdict


def html(compared: RunComparison) -> str:
    """Return the page. The same reports give the same bytes."""
    from markupsafe import Markup

    runs = compared.runs
    key = keys(runs)
    tasks = list(dict.fromkeys(run.report.task for run in runs))
    left = len(runs) - len(key)
    return render(
        "runs.html.jinja",
        tasks=tasks,
        keys={run.name: key.get(run.name, "") for run in runs},
        legend={key: name for name, key in key.items()},
        verdict=verdict(compared),
        parts=parts(compared),
        notes=notes(compared),
        plots=[replace(plot, svg=Markup(plot.svg)) for plot in plots(compared)],
        plots_note=f"The plots show the first {len(key)} runs; the table shows all." if left else "",
    )
