"""Draw the plots of a report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_distill.report.curves import OBJECTIVE, Curve, Curves, Quantity, panels
from hf_distill.report.group_text import heading
from hf_distill.report.svg import COLOURS, INK, LINE, MARKERS, WIDTH, to_svg
from hf_distill.report.text import (
    heads_left,
    metric_names,
    metric_title,
    metric_value,
    milliseconds,
    percent,
    undefined,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_distill.report.calibration import Calibration, Confusion
    from hf_distill.report.for_whom import ForWhom
    from hf_distill.report.results import Results

logger = logging.getLogger(__name__)

POINTS = 300
PANELS = 6
NAME_LENGTH = 18
DOTS = 12


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        title: Text above it.
        svg: The `<svg>` element; empty if it could not be drawn.
        note: Text below it.
        wide: Whether it needs the whole width of the page.
    """

    title: str
    svg: str
    note: str = ""
    wide: bool = False


def plots(report: Results) -> list[Plot]:
    """Return every plot that the report has numbers for."""
    found = []
    if _drawn(report):
        found.append(_plot("Metrics", _metrics, report, note=_metrics_note(report)))
    if any(model.latency for model in report.models.values()):
        note = "Bars: medians. The thin lines end at the 90th percentile. Shorter is better."
        found.append(_plot("Latency", _latency, report, note=note))
    every = panels(report)
    for quantity in list(every)[:PANELS]:
        found.append(_plot(quantity.title, _curves, every[quantity], note=_curves_note(report, quantity, every)))
    for whom in report.for_whom:
        note = "The groups that lost most. Thin lines: the 95 % interval of the student's difference from the teacher."
        found.append(_plot(heading(whom), _by_group, whom, note=note))
    if report.confusion is not None and report.confusion.counts:
        note = _confusion_note(report.confusion)
        plot = _plot("Student against teacher", _confusion, report.confusion, note=note)
        found.append(replace(plot, wide=len(report.confusion.names) > 8))
    if report.calibration:
        note = (
            "Dashed line: confidence equals accuracy; below it a model is overconfident. Larger dots: more predictions."
        )
        found.append(_plot("Calibration", _calibration, report.calibration, note=note))
    return found


def _plot(title: str, draw: Callable[[Figure, Any], None], data: Any, note: str) -> Plot:
    try:
        return Plot(title, to_svg(title, draw, data), note)
    except Exception:  # an error in a plot must not cost the results of a finished run
        logger.warning("the plot '%s' of the report could not be drawn", title, exc_info=True)
        return Plot(title, "", "This plot could not be drawn; the log says why.")


def shorten(name: str, length: int = NAME_LENGTH) -> str:
    """Return a name that fits beside an axis.

    >>> shorten("a label nobody would ever write")
    'a label nobody wo…'
    """
    line = "".join(char if char.isprintable() else " " for char in name)
    return line if len(line) <= length else line[: length - 1] + "…"


def _bars(axes: Axes, values: Mapping[str, float], texts: Mapping[str, str], ends: Mapping[str, float]) -> None:
    """Draw a horizontal bar for each model, its value beside it, and a thin line from the bar's end to `ends`."""
    names = list(values)
    colours = [COLOURS[name] for name in names]
    axes.barh(range(len(names)), list(values.values()), color=colours, height=0.72)
    low, high = min(0.0, *values.values()), max(0.0, *values.values(), *ends.values())
    for place, name in enumerate(names):
        value, end = values[name], max(values[name], ends.get(name, 0.0))
        if name in ends:
            axes.plot([value, end], [place, place], color=COLOURS[name], linewidth=1.2)
        axes.annotate(texts[name], (max(end, 0.0), place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(low, low + ((high - low) or 1.0) * 1.3)  # room for the text
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)


def _metrics(figure: Figure, report: Results) -> None:
    names = _drawn(report)[:PANELS]
    rows = len(report.models)
    figure.set_size_inches(WIDTH, len(names) * (0.24 * rows + 0.34) + 0.1)
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        values = {key: model.metrics.get(name) for key, model in report.models.items()}
        finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        seeds = {key: _over_seeds(report, key, name) for key in ("student", "baseline") if key in finite}
        texts = {key: metric_value(report, name, value) for key, value in finite.items()}
        _bars(axes, finite, texts, {key: max(found) for key, found in seeds.items() if len(found) > 1})
        for key, found in seeds.items():
            if len(found) > 1:
                axes.plot(found, [list(finite).index(key)] * len(found), "|", color=INK, markersize=7)
        axes.set_title(shorten(metric_title(name), 60), loc="left", fontsize=9, pad=2)


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


def _latency(figure: Figure, report: Results) -> None:
    known = {name: model.latency for name, model in report.models.items() if model.latency is not None}
    figure.set_size_inches(WIDTH, 2 * (0.24 * len(known) + 0.34) + 0.1)
    for axes, kind in zip(figure.subplots(2, 1), ("single", "batch"), strict=True):
        timings = {name: getattr(latency, kind) for name, latency in known.items()}
        medians = {name: timing.median_ms for name, timing in timings.items()}
        texts = {name: milliseconds(median) for name, median in medians.items()}
        _bars(axes, medians, texts, {name: timing.p90_ms for name, timing in timings.items()})
        axes.set_title(f"batch {next(iter(timings.values())).batch_size}", loc="left", fontsize=9, pad=2)


def _curves_note(report: Results, quantity: Quantity, every: Mapping[Quantity, Curves]) -> str:
    curves = every[quantity]
    if quantity.name.startswith(OBJECTIVE):
        note = "Mean, without the weight of the objective. Thin line: training. Dots: eval split."
    elif quantity.name == "loss":
        note = "Weighted sum of the objectives, on the eval split: comparable only within this training."
    else:
        note = "On the eval split."
    if any(not math.isfinite(value) for curve in curves.values() for value in curve.values):
        note += " Gaps: not a finite number."
    if len({run for run, _ in curves}) > len({_model(run) for run, _ in curves}):
        note += " Pale lines: the other seeds."
    if any(" stage " in run for run in report.history) and "stage" not in quantity.of:
        note += " Stages one after the other."
        note += heads_left(report) if quantity.name == report.metric else ""
    left = len(every) - PANELS
    if left > 0 and quantity == list(every)[PANELS - 1]:
        note += f" {left} more curves are in report.json."
    return note


def _model(run: str) -> str:
    return next((name for name in COLOURS if run.startswith(name)), "baseline")


def _curves(figure: Figure, curves: Curves) -> None:
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 2.5)
    seen: set[tuple[str, bool]] = set()
    for (run, evaluated), curve in curves.items():
        model = _model(run)
        steps, values = _thinned(curve)
        several = (model, evaluated) in seen  # further seeds are drawn pale
        seen.add((model, evaluated))
        style: dict[str, Any] = {"linewidth": 1.0}
        if evaluated or len(steps) == 1:
            style = {"linewidth": 1.0, "marker": MARKERS[model], "markersize": 4}
        alpha = 0.35 if several else 1.0 if evaluated else 0.7
        axes.plot(steps, values, color=COLOURS[model], alpha=alpha, **style)
    axes.set_xlabel("optimiser step")
    axes.grid(axis="y")
    axes.locator_params(nbins=5)


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """Return about `POINTS` of the points at most, including the last one."""
    stride = max(1, len(curve.steps) // POINTS)
    last = (len(curve.steps) - 1) % stride
    return curve.steps[last::stride], curve.values[last::stride]


def _confusion(figure: Figure, confusion: Confusion) -> None:
    axes = figure.subplots()
    size = len(confusion.names)
    figure.set_size_inches(WIDTH, 1.2 + min(3.4, 0.6 * size))
    font = 9 if size <= 6 else 7 if size <= 12 else 5
    for i, row in enumerate(confusion.counts):
        for j, counted in enumerate(row):
            # The shade is the square root of the share of the row, so that shares of a few percent are visible.
            share = 0.9 * math.sqrt(counted / max(sum(row), 1))
            colour = LINE if i == j else COLOURS["student"]
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, alpha=share, linewidth=0))
            if counted:
                axes.text(j, i, str(counted), ha="center", va="center", fontsize=font)
    names = [shorten(name) for name in confusion.names]
    axes.set_xticks(range(size), names, rotation=0 if size <= 3 else 60, fontsize=max(font, 6))
    if size > 3:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(size), names, fontsize=max(font, 6))
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_xlabel("student says")
    axes.set_ylabel("teacher says")


def _confusion_note(confusion: Confusion) -> str:
    note = "Numbers of rows. Grey: both agree. Coloured: they differ. Darker: a larger share of the teacher's class."
    if confusion.left_out:
        note += f" The {len(confusion.names)} classes they differ on most; {confusion.left_out:,} more are not shown."
    return note


def _by_group(figure: Figure, whom: ForWhom) -> None:
    groups = [group for group in whom.groups if group.metrics][:DOTS]
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 0.7 + 0.32 * len(groups))
    for model in [name for name in COLOURS if any(name in group.metrics for group in groups)]:
        places = [place for place, group in enumerate(groups) if model in group.metrics]
        values = [groups[place].metrics[model] for place in places]
        axes.plot(values, places, MARKERS[model], color=COLOURS[model], markersize=6, alpha=0.9, linewidth=0)
    for place, group in enumerate(groups):
        if group.interval is not None and "student" in group.metrics:
            middle = group.metrics["student"]
            ends = [middle - group.interval, middle + group.interval]
            axes.plot(ends, [place, place], color=COLOURS["student"], linewidth=1.0)
    names = [shorten(f"{group.name} ({group.rows:,})", NAME_LENGTH + 8) for group in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(metric_title(whom.metric))
    axes.grid()


def _calibration(figure: Figure, calibration: Mapping[str, Calibration]) -> None:
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 3.2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    most = max((n for bins in calibration.values() for n in bins.counts), default=0) or 1
    for model in [name for name in COLOURS if name in calibration]:
        bins = calibration[model]
        x, y = ([math.nan if one is None else one for one in values] for values in (bins.confidence, bins.accuracy))
        sizes = [8 + 60 * n / most for n in bins.counts]
        axes.plot(x, y, color=COLOURS[model], linewidth=1.0)
        label = f"ECE {percent(bins.ece)}"
        axes.scatter(x, y, s=sizes, color=COLOURS[model], marker=MARKERS[model], linewidth=0, label=label)
    axes.set_xlim(_lowest(calibration.values()), 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.grid()
    legend = axes.legend(loc="lower right", frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([30.0])  # type: ignore[union-attr]


def _lowest(calibrations: Any) -> float:
    # With two classes no confidence is below 0.5, and half of the plot would be empty.
    lowest: Sequence[float] = [x for item in calibrations for x in item.confidence if x is not None]
    return max(0.0, math.floor(min(lowest, default=0.0) * 10) / 10 - 0.02)
