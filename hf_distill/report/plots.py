"""The plots of a report; what would be a plot of a single point is a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_distill.report.confused import LARGEST
from hf_distill.report.curves import OBJECTIVE, Curves, Quantity, panels
from hf_distill.report.drawing import (
    Bars,
    PlotLine,
    draw_bars,
    draw_calibration,
    draw_confusion,
    draw_groups,
    draw_lines,
)
from hf_distill.report.group_text import heading
from hf_distill.report.svg import COLOURS, to_svg
from hf_distill.report.text import (
    TITLES,
    heads_left,
    metric_names,
    metric_title,
    metric_value,
    milliseconds,
    number,
    percent,
    undefined,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_distill.report.calibration import Calibration, Confusion
    from hf_distill.report.results import Results

logger = logging.getLogger(__name__)

PANELS = 6


@dataclass(frozen=True)
class Number:
    """A number in place of a plot.

    Attributes:
        key: Key of the colour: whose number it is.
        value: The number, as text.
        label: The text below it.
    """

    key: str
    value: str
    label: str


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        title: Text above it.
        svg: The `<svg>` element; empty if it could not be drawn, or is numbers.
        note: Text below it.
        wide: Whether it needs the whole width of the page.
        numbers: What is shown where a plot would have a single point.
        again: Whether a table of the page has all of it, so that it is not printed too.
        folded: What it shows, where it is folded away; else empty.
    """

    title: str
    svg: str = ""
    note: str = ""
    wide: bool = False
    numbers: Sequence[Number] = ()
    again: bool = False
    folded: str = ""


def plots(report: Results) -> list[Plot]:
    """Return every plot that the report has numbers for."""
    return [*_measured(report), *_curves(report), *_by_group(report), *_by_class(report)]


def plot(
    title: str, draw: Callable[[Figure, Any], None], data: Any, *, says: str, note: str = "", wide: bool = False
) -> Plot:
    """Return a drawing of some data; `says` tells somebody who does not see it what it shows."""
    try:
        return Plot(title, to_svg(title, draw, data, says), note, wide)
    except Exception:  # an error in a plot must not cost the results of a finished run
        logger.warning("the plot '%s' of the report could not be drawn", title, exc_info=True)
        return Plot(title, note="This plot could not be drawn; the log says why.")


def bars_plot(title: str, found: Sequence[Bars], *, says: str, note: str = "") -> Plot:
    """Return bars; numbers where no panel has more than one bar.

    Args:
        title: Title.
        found: The panels, each with a bar.
        says: What it shows, for somebody who does not see it.
        note: Text below it.
    """
    if all(len(panel.values) == 1 for panel in found):
        numbers = [Number(key, text, panel.title) for panel in found for key, text in panel.texts.items()]
        return Plot(title, note=note, numbers=numbers)
    return plot(title, draw_bars, found, says=says, note=note)


def lines_plot(
    title: str, lines: Sequence[PlotLine], names: Mapping[str, str], shown: Callable[[float], str], *, note: str = ""
) -> Plot:
    """Return values by optimiser step; numbers where no line has more than one.

    Args:
        title: Title.
        lines: The lines; those without a finite value are left out.
        names: Key of a colour -> whose it is.
        shown: Returns a value as text.
        note: Text below it.
    """
    finite = [[value for value in line.values if math.isfinite(value)] for line in lines]
    last: dict[str, list[str]] = {}
    for line, values in zip(lines, finite, strict=True):
        if values:
            last.setdefault(line.key, []).append(shown(values[-1]))
    if all(len(values) <= 1 for values in finite):
        numbers = [Number(key, ", ".join(texts[:5]), names[key]) for key, texts in last.items()]
        return Plot(title, note=note, numbers=numbers)
    ends = ", ".join(f"{names[key]} {texts[0]}" for key, texts in last.items())
    return plot(title, draw_lines, lines, says=f"Lines by optimiser step. Last values: {ends}.", note=note)


# ---- Metrics and latency ---------------------------------------------------------------------------------------------


def _measured(report: Results) -> Iterator[Plot]:
    table = "Bars; the table has the same values."
    if names := _drawn(report):
        found = [_metric_bars(report, name) for name in names[:PANELS]]
        yield bars_plot("Metrics", found, says=table, note=_metrics_note(report))
    known = {name: model.latency for name, model in report.models.items() if model.latency is not None}
    if known:
        note = "Bars: medians. The thin lines end at the 90th percentile. Shorter is better."
        found = []
        for kind in ("single", "batch"):
            timings = {name: getattr(latency, kind) for name, latency in known.items()}
            medians = {name: timing.median_ms for name, timing in timings.items()}
            texts = {name: milliseconds(median) for name, median in medians.items()}
            ends = {name: timing.p90_ms for name, timing in timings.items()}
            found.append(Bars(f"batch {next(iter(timings.values())).batch_size}", medians, texts, ends, {}))
        alone = len(known) == 1
        yield bars_plot("Latency", found, says=table, note="Medians." if alone else note)


def _metric_bars(report: Results, name: str) -> Bars:
    values = {key: model.metrics.get(name) for key, model in report.models.items()}
    finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
    seeds = {key: _over_seeds(report, key, name) for key in finite if key != "teacher"}
    strokes = {key: found for key, found in seeds.items() if len(found) > 1}
    texts = {key: metric_value(report, name, value) for key, value in finite.items()}
    ends = {key: max(found) for key, found in strokes.items()}
    return Bars(metric_title(name), finite, texts, ends, strokes)


def _drawn(report: Results) -> list[str]:
    """Return the metrics to draw: those of which a model has a value."""
    every = [model.metrics.keys() - model.undefined.keys() for model in report.models.values()]
    return [name for name in metric_names(report) if any(name in known for known in every)]


def _over_seeds(report: Results, model: str, metric: str) -> list[float]:
    values = [(getattr(seed, model) or {}).get(metric) for seed in report.seeds]
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _metrics_note(report: Results) -> str:
    left = len(_drawn(report)) - PANELS
    without = " ".join(undefined(report))
    seeds = "Small strokes: every seed. " if len(report.seeds) > 1 else ""
    more = f"{left} more in the table. " if left > 0 else ""
    return f"{seeds}{more}{without}".strip()


# ---- Curves ----------------------------------------------------------------------------------------------------------


def _curves(report: Results) -> Iterator[Plot]:
    every = panels(report)
    for quantity in list(every)[:PANELS]:

        def shown(value: float, quantity: Quantity = quantity) -> str:
            return metric_value(report, report.metric, value) if quantity.name == report.metric else number(value)

        lines = list(_lines(every[quantity]))
        yield lines_plot(quantity.title, lines, TITLES, shown, note=_curves_note(report, quantity, every))


def _lines(curves: Curves) -> Iterator[PlotLine]:
    seen: set[tuple[str, bool]] = set()
    for (run, evaluated), curve in curves.items():
        model = _model(run)
        several = (model, evaluated) in seen  # further seeds are drawn pale
        seen.add((model, evaluated))
        alpha = 0.35 if several else 1.0 if evaluated else 0.7
        yield PlotLine(model, curve.steps, curve.values, marked=evaluated, alpha=alpha)


def _curves_note(report: Results, quantity: Quantity, every: Mapping[Quantity, Curves]) -> str:
    curves = every[quantity]
    single = all(len(curve.values) == 1 for curve in curves.values())
    if quantity.name.startswith(OBJECTIVE):
        note = "Mean, without the weight of the objective."
        note += "" if single else " Thin line: training. Dots: eval split."
    elif quantity.name == "loss":
        note = "Weighted sum of the objectives, on the eval split: comparable only within this training."
    else:
        note = "On the eval split."
    if single:
        note += f" One value, {_when(curves)}."
    if any(not math.isfinite(value) for curve in curves.values() for value in curve.values):
        note += " Gaps: not a finite number."
    if not single and len({run for run, _ in curves}) > len({_model(run) for run, _ in curves}):
        note += " Pale lines: the other seeds."
    if any(" stage " in run for run in report.history) and "stage" not in quantity.of:
        note += " Stages one after the other."
        note += heads_left(report) if quantity.name == report.metric else ""
    left = len(every) - PANELS
    if left > 0 and quantity == list(every)[PANELS - 1]:
        note += f" {left} more curves are in report.json."
    return note


def _when(curves: Curves) -> str:
    steps = {curve.steps[0] for curve in curves.values()}
    return f"at step {next(iter(steps)):,.0f}" if len(steps) == 1 else "each at its last step"


def _model(run: str) -> str:
    return next((name for name in TITLES if run.startswith(name)), "baseline")


# ---- Groups and classes ----------------------------------------------------------------------------------------------


def _by_group(report: Results) -> Iterator[Plot]:
    for whom in report.for_whom:
        known = [group for group in whom.groups if group.metrics]
        if len(known) == 1:
            values = known[0].metrics
            numbers = [Number(key, metric_value(report, whom.metric, values[key]), TITLES[key]) for key in values]
            yield Plot(heading(whom), note=f"The only one is '{known[0].name}'.", numbers=numbers)
        elif known:
            note = (
                "The groups that lost most. Thin lines: the 95 % interval of the student's difference from the teacher."
            )
            says = "The metric of each model on the groups that lost most; the table has the same values."
            yield replace(plot(heading(whom), draw_groups, whom, says=says, note=note), again=True)


def _by_class(report: Results) -> Iterator[Plot]:
    confusion, title = report.confusion, "Student against teacher"
    if confusion is not None and any(any(row) for row in confusion.counts):
        if len(confusion.counts) == 1:
            label = f"rows: both say '{confusion.names[0]}'"
            yield Plot(title, numbers=[Number("student", f"{confusion.counts[0][0]:,}", label)])
        else:
            many, note = len(confusion.names) > LARGEST, _confusion_note(confusion)
            drawn = plot(title, draw_confusion, confusion, says=_confused(confusion), note=note, wide=many)
            # Of many classes, a table has the pairs that matter.
            yield replace(drawn, folded=f"all of {len(confusion.names)} classes") if many else drawn
    known = {key: one for key, one in report.calibration.items() if sum(one.counts)}
    if known and all(sum(n > 0 for n in one.counts) == 1 for one in known.values()):
        yield Plot("Calibration", note="All predictions are in one bin of confidence.", numbers=list(_one_bin(known)))
    elif known:
        note = (
            "Dashed line: confidence equals accuracy; below it a model is overconfident. Larger dots: more predictions."
        )
        errors = ", ".join(f"{TITLES[key]} {percent(one.ece)}" for key, one in known.items())
        says = f"Accuracy by confidence. Calibration errors: {errors}."
        yield plot("Calibration", draw_calibration, known, says=says, note=note)


def _one_bin(known: Mapping[str, Calibration]) -> Iterator[Number]:
    for key in [name for name in COLOURS if name in known]:
        bins = known[key]
        place = next(place for place, n in enumerate(bins.counts) if n)
        confidence, right = percent(bins.confidence[place]), percent(bins.accuracy[place])
        yield Number(key, percent(bins.ece), f"calibration error: confidence {confidence}, accuracy {right}")


def _confused(confusion: Confusion) -> str:
    """Return the largest disagreement in words."""
    names, counts = confusion.names, confusion.counts
    every = [(counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    most, teacher, student = max(every)
    same = sum(counts[i][i] for i in range(len(names)))
    text = f"A table of counts. Both predict the same on {same:,} of {sum(map(sum, counts)):,} rows."
    if not most:
        return text
    where = f"the teacher says '{names[teacher]}' and the student '{names[student]}'"
    return f"{text} Most often they differ where {where}: {most:,}."


def _confusion_note(confusion: Confusion) -> str:
    note = "Numbers of rows. Grey: both agree. Coloured: they differ. Darker: a larger share of the teacher's class."
    if confusion.left_out:
        note += f" The {len(confusion.names)} classes they differ on most; {confusion.left_out:,} more are not shown."
    return note
