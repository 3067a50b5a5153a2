"""Write the report as one HTML page that needs no network and suits phones, dark mode and print."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_distill.report.confused import confused
from hf_distill.report.group_text import Line, groups_shown, heading, notes
from hf_distill.report.lineage import generations
from hf_distill.report.plots import plots
from hf_distill.report.recipe_facts import model_name, recipe_of, teachers
from hf_distill.report.rendering import render
from hf_distill.report.text import (
    TITLES,
    flat,
    metric_title,
    metric_value,
    number,
    percent,
    rows,
    signed,
    speed_note,
    trained_on,
    undefined,
    who_teaches,
)
from hf_distill.report.verdict import not_compared, verdict
from hf_distill.report.written import SAMPLES_NOTE, sections, side_by_side

if TYPE_CHECKING:
    from hf_distill.report.for_whom import ForWhom
    from hf_distill.report.results import Results

# Groups that are listed on the page, also those that are folded away.
GROUPS = 500
# Of more groups than these together, those that lost most and those that lost least are shown, the others folded.
WORST, BEST = 8, 4


@dataclass(frozen=True)
class Tile:
    """One large number at the top of the page.

    Attributes:
        value: The number.
        label: The text below it.
        tone: `good`, `bad` or empty for neither.
    """

    value: str
    label: str
    tone: str = ""


def html(report: Results) -> str:
    """Return the page. The same report gives the same bytes."""
    from markupsafe import Markup

    recipe = recipe_of(report.recipe)
    drawn = [replace(plot, svg=Markup(plot.svg)) for plot in plots(report)]
    return render(
        "report.html.jinja",
        name=model_name(recipe),
        teachers=[teacher.name for teacher in teachers(recipe)],
        report=report,
        titles={key: TITLES[key] for key in report.models},
        verdict=verdict(report),
        tiles=tiles(report),
        rows=rows(report),
        notes=[line for line in (who_teaches(report), *undefined(report)) if line],
        speed_note=speed_note(report),
        trained_on=trained_on(report),
        lineage=generations(report),
        seeds=list(_seeds(report)),
        whom=[_groups(report, one) for one in report.for_whom],
        sections=[*sections(report, samples=0), *(one for one in [confused(report.confusion)] if one)],
        samples=side_by_side(report),
        samples_note=SAMPLES_NOTE,
        metric=metric_title(report.metric),
        plots=drawn,
        settings=list(flat(report.settings)),
    )


def tiles(report: Results) -> list[Tile]:
    """Return the large numbers at the top of the page."""
    found = []
    if report.is_chance("teacher"):
        value = metric_value(report, report.metric, report.headline("teacher"))
        found.append(
            Tile(value, f"{metric_title(report.metric)} of the teacher: no better than a trivial guess", "bad")
        )
    elif (kept := report.retention) is not None and report.metric != "agreement":
        word = "kept" if report.greater_is_better else "kept (error, teacher / student)"
        found.append(Tile(percent(kept), f"of the teacher's {metric_title(report.metric)} {word}"))
    elif report.agreement is not None:
        found.append(Tile(percent(report.agreement), "agreement with the teacher"))
    if (gain := report.gain) is not None:
        helped = gain > 0 if report.greater_is_better else gain < 0
        sure = report.noise is not None and abs(gain) > report.noise
        doubt = " (not significant)" if report.noise is not None and not sure else ""
        if sure and helped and not report.shows_help:
            sure, doubt = False, " (none against the baseline's best evaluation)"
        tone = ("good" if helped else "bad") if sure else ""
        found.append(Tile(signed(report, gain), f"effect of distillation{doubt}", tone))
    for ratio, better, worse in (
        (report.compression, "fewer parameters", "the parameters"),
        (report.speedup, "the speed at batch 1", "the latency at batch 1"),
    ):
        if ratio is not None and "size and speed" not in not_compared(report):
            times = max(ratio, 1 / ratio)
            label, tone = (better, "") if ratio >= 1 else (worse, "bad")
            found.append(Tile(f"{times:.{1 if times < 10 else 0}f}×", label, tone))
    return found


@dataclass(frozen=True)
class GroupTable:
    """A table of groups.

    Attributes:
        title: Heading.
        of: The groups.
        worst: Those that lost most; all of them if there are few.
        best: Those that lost least, of those that were compared; empty if all are in `worst`.
        others: The others, to be folded away.
        notes: Sentences below it.
    """

    title: str
    of: ForWhom
    worst: list[Line]
    best: list[Line]
    others: list[Line]
    notes: list[str]


def _groups(report: Results, whom: ForWhom) -> GroupTable:
    lines, told = groups_shown(report, whom, GROUPS), notes(report, whom, GROUPS)
    if len(lines) <= WORST + BEST:
        return GroupTable(heading(whom), whom, lines, [], [], told)
    # In order: those that were compared, the one that lost most first; then those of which nothing can be said.
    last = min(max(WORST, whom.compared - BEST), len(lines))
    best = lines[last : max(whom.compared, last)]
    others = lines[WORST:last] + lines[last + len(best) :]
    return GroupTable(heading(whom), whom, lines[:WORST], best, others, told)


def _seeds(report: Results) -> Iterator[tuple[int, str, str, str]]:
    """Yield seed, student, baseline and gain as text, if there are several seeds."""
    for result in report.seeds if len(report.seeds) > 1 else ():
        values = [(one or {}).get(report.metric) for one in (result.student, result.baseline)]
        student, baseline = (None if value is None or not math.isfinite(value) else value for value in values)
        gain = signed(report, student - baseline) if student is not None and baseline is not None else number(None)
        texts = [metric_value(report, report.metric, value) for value in (student, baseline)]
        yield result.seed, texts[0], texts[1], gain
