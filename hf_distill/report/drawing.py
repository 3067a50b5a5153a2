"""Draw the plots of a page with matplotlib: bars, lines, dots by group, a matrix, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_distill.report.svg import COLOURS, INK, LINE, MARKERS, WIDTH
from hf_distill.report.text import metric_title, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_distill.report.calibration import Calibration, Confusion
    from hf_distill.report.for_whom import ForWhom

NAME_LENGTH = 18
DOTS = 12
POINTS = 300


def shorten(name: str, length: int = NAME_LENGTH) -> str:
    """Return a name that fits beside an axis.

    >>> shorten("a label nobody would ever write")
    'a label nobody wo…'
    """
    line = "".join(char if char.isprintable() else " " for char in name)
    return line if len(line) <= length else line[: length - 1] + "…"


@dataclass(frozen=True)
class Bars:
    """Some horizontal bars under a title.

    Attributes:
        title: Title.
        values: Key of a colour -> length of its bar.
        texts: Key -> text beside the bar.
        ends: Key -> where a thin line from the bar's end stops.
        strokes: Key -> values that are marked by small strokes.
    """

    title: str
    values: Mapping[str, float]
    texts: Mapping[str, str]
    ends: Mapping[str, float]
    strokes: Mapping[str, Sequence[float]]


def draw_bars(figure: Figure, panels: Sequence[Bars]) -> None:
    """Draw bars, a panel each."""
    rows = max(len(panel.values) for panel in panels)
    figure.set_size_inches(WIDTH, len(panels) * (0.24 * rows + 0.34) + 0.1)
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _bars(axes, panel)
        axes.set_title(shorten(panel.title, 60), loc="left", fontsize=9, pad=2)


def _bars(axes: Axes, panel: Bars) -> None:
    names, values = list(panel.values), panel.values
    colours = [COLOURS[name] for name in names]
    axes.barh(range(len(names)), list(values.values()), color=colours, height=0.72)
    low, high = min(0.0, *values.values()), max(0.0, *values.values(), *panel.ends.values())
    for place, name in enumerate(names):
        value, end = values[name], max(values[name], panel.ends.get(name, 0.0))
        if name in panel.ends:
            axes.plot([value, end], [place, place], color=COLOURS[name], linewidth=1.2)
        axes.annotate(panel.texts[name], (max(end, 0.0), place), (4, 0), textcoords="offset points", va="center")
        if found := panel.strokes.get(name):
            axes.plot(found, [place] * len(found), "|", color=INK, markersize=7)
    axes.set_xlim(low, low + ((high - low) or 1.0) * 1.3)  # room for the text
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)


@dataclass(frozen=True)
class PlotLine:
    """One line of a plot.

    Attributes:
        key: Key of its colour and marker.
        steps: Optimiser steps.
        values: A value for each; NaN for a gap.
        marked: Whether its points are marked.
        alpha: How opaque it is.
    """

    key: str
    steps: Sequence[float]
    values: Sequence[float]
    marked: bool = False
    alpha: float = 1.0


def draw_lines(figure: Figure, lines: Sequence[PlotLine]) -> None:
    """Draw values by optimiser step."""
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 2.2)
    for line in lines:
        steps, values = thinned(line.steps, line.values)
        style: dict[str, Any] = {"linewidth": 1.0}
        if line.marked or len(steps) == 1:
            style = {"linewidth": 1.0, "marker": MARKERS[line.key], "markersize": 4}
        axes.plot(steps, values, color=COLOURS[line.key], alpha=line.alpha, **style)
    axes.set_xlabel("optimiser step")
    axes.grid(axis="y")
    axes.locator_params(nbins=5)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return about `POINTS` of the points at most, including the last one."""
    stride = max(1, len(steps) // POINTS)
    last = (len(steps) - 1) % stride
    return steps[last::stride], values[last::stride]


def draw_confusion(figure: Figure, confusion: Confusion) -> None:
    """Draw the student's predictions against the teacher's."""
    axes = figure.subplots()
    size = len(confusion.names)
    figure.set_size_inches(WIDTH, 1.1 + min(3.3, 0.5 * size))
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


def draw_groups(figure: Figure, whom: ForWhom) -> None:
    """Draw the metric of each model on the groups that lost most."""
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
    names = [f"{shorten(group.name)} ({group.rows:,})" for group in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(metric_title(whom.metric))
    axes.grid()


def draw_calibration(figure: Figure, calibration: Mapping[str, Calibration]) -> None:
    """Draw accuracy by confidence."""
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 2.6)
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
