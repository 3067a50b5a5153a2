"""Draws the plot of a sweep: a curve for a key with numbers, lines for two keys, dots for drawn settings, or bars."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from hf_distill.report.drawing import shorten
from hf_distill.report.plots import plot as drawing
from hf_distill.report.results import NORMAL_95, T_95
from hf_distill.report.svg import COLOURS, INK, MARKERS, RUNS, WIDTH
from hf_distill.report.sweep.results import ScoredSetting, Sweep, short_keys
from hf_distill.report.sweep.text import in_words, shown
from hf_distill.report.text import metric_title, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_distill.report.plots import Plot

# Panels for drawn settings, and bars.
PANELS, BARS = 4, 30
# From this ratio of the largest to the smallest on, numbers are on a logarithmic axis.
LOGARITHMIC = 20.0
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def plot(sweep: Sweep) -> Plot | None:
    """Return the plot of a sweep; None for less than two settings, and for those that cannot be compared."""
    if len(sweep.ranked) < 2 or not sweep.is_comparable:
        return None
    axes = {key: found for key in _varying(sweep) if (found := numbers(sweep, key)) is not None}
    others = [key for key in _varying(sweep) if key not in axes]
    draw: Callable[[Figure, Sweep], None] = _bars
    if sweep.drawn and axes:
        draw = _dots
    elif len(axes) >= 1 and len(axes) + len(others) <= 2:
        _, series = _roles(sweep, list(axes), others)
        if series is None or len(_levels(sweep, series)) <= len(RUNS):
            draw = _lines
    several = any(one.spread is not None for one in sweep.ranked)
    error = "Thin lines: the 95 % interval of the mean over seeds. " if several and draw is not _dots else ""
    beside = "Dashed: the teacher. Grey triangles: the same student without it. " if draw is _lines else ""
    name = metric_title(sweep.headline)
    says = "; ".join(f"{in_words(one.trial.values)}: {name} {number(one.value)}" for one in sweep.ranked[:BARS])
    note = f"{beside}{error}{_better(sweep)}"
    return drawing(f"{name} by setting", draw, sweep, says=says, note=note, wide=True)


def _better(sweep: Sweep) -> str:
    return "Higher is better." if sweep.greater_is_better else "Lower is better."


def _varying(sweep: Sweep) -> list[str]:
    """Return the keys that have several values among the settings with a result; the first one if none has."""
    return [key for key in sweep.keys if len(_levels(sweep, key)) > 1] or list(sweep.keys[:1])


def _levels(sweep: Sweep, key: str) -> list[str]:
    return list(dict.fromkeys(shown(one.trial.values[key]) for one in sweep.ranked))


def numbers(sweep: Sweep, key: str) -> dict[str, float] | None:
    """Return each value of a key, as text, with the number that stands for it; None if there is none.

    Texts that differ in a single number, such as `train[:100]` and `train[:300]`, count as these numbers.
    """
    values = [one.trial.values[key] for one in sweep.ranked]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {shown(value): float(value) for value in values}
    if not all(isinstance(value, str) for value in values):
        return None
    parts = [NUMBER.split(value) for value in values]
    found = [NUMBER.findall(value) for value in values]
    if any(one != parts[0] for one in parts) or not found[0]:
        return None
    differing = [place for place in range(len(found[0])) if len({one[place] for one in found}) > 1]
    if len(differing) != 1:
        return None
    return {shown(value): float(one[differing[0]]) for value, one in zip(values, found, strict=True)}


def _roles(sweep: Sweep, numeric: Sequence[str], others: Sequence[str]) -> tuple[str, str | None]:
    """Return the key of the horizontal axis, and that of which each value has a line."""
    if others:
        return numeric[0], others[0]
    first, *rest = sorted(numeric, key=lambda key: -len(_levels(sweep, key)))
    return first, rest[0] if rest else None


def _half_width(one: ScoredSetting) -> float:
    """Return half of the 95 % interval of the mean over seeds; 0 for a single one."""
    if one.spread is None:
        return 0.0
    n = len(one.values)
    factor = T_95[n - 2] if n - 2 < len(T_95) else NORMAL_95
    return float(factor * one.spread / n**0.5)


def _lines(figure: Figure, sweep: Sweep) -> None:
    axes = figure.subplots()
    figure.set_size_inches(WIDTH, 3.0)
    known = {key: found for key in _varying(sweep) if (found := numbers(sweep, key)) is not None}
    x, series = _roles(sweep, list(known), [key for key in _varying(sweep) if key not in known])
    places = known[x]
    groups = [None] if series is None else sorted(_levels(sweep, series), key=lambda text: _order(known, series, text))
    names = short_keys(sweep.keys)
    for index, group in enumerate(groups):
        own = [one for one in sweep.ranked if series is None or shown(one.trial.values[series]) == group]
        own.sort(key=lambda one: places[shown(one.trial.values[x])])
        at = [places[shown(one.trial.values[x])] for one in own]
        label = None if series is None else f"{names[series]} {shorten(str(group), 40)}"
        axes.errorbar(
            at,
            [one.value for one in own],
            yerr=[_half_width(one) for one in own] if any(map(_half_width, own)) else None,
            color=COLOURS["student" if series is None else RUNS[index]],
            marker=MARKERS["student" if series is None else RUNS[index]],
            markersize=5,
            linewidth=1.2,
            elinewidth=1.0,
            label=label,
        )
    _beside(axes, sweep, {one.trial.name: places[shown(one.trial.values[x])] for one in sweep.ranked})
    _scale(axes, places)
    axes.set_xlabel(shorten(names[x], 60))
    axes.set_ylabel(metric_title(sweep.headline))
    axes.grid(axis="y")
    if series is not None:
        figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=1 if len(groups) > 3 else len(groups))


def _order(known: Mapping[str, Mapping[str, float]], key: str, text: str) -> Any:
    return known[key][text] if key in known else 0


def _beside(axes: Axes, sweep: Sweep, places: Mapping[str, float]) -> None:
    """Draw the teacher and the baseline, the mean of all settings at a place."""
    styles: dict[str, Any] = {"teacher": {"linestyle": (0, (4, 3))}, "baseline": {"marker": MARKERS["baseline"]}}
    for model, style in styles.items():
        at: dict[float, list[float]] = {}
        for one in sweep.ranked:
            value = getattr(one, model)
            if value is not None:
                at.setdefault(places[one.trial.name], []).append(value)
        if at:
            means = [sum(at[place]) / len(at[place]) for place in sorted(at)]
            axes.plot(sorted(at), means, color=COLOURS[model], linewidth=1.0, markersize=4, **style)


def _scale(axes: Axes, places: Mapping[str, float]) -> None:
    values = sorted(set(places.values()))
    if values[0] > 0 and values[-1] / values[0] >= LOGARITHMIC:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(values) <= 8:
        texts = dict(zip(places.values(), places, strict=True))
        numeric = [text if _is_number(text) else f"{value:g}" for value, text in sorted(texts.items())]
        axes.set_xticks(values, numeric)


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def _dots(figure: Figure, sweep: Sweep) -> None:
    keys = [key for key in _varying(sweep) if numbers(sweep, key) is not None][:PANELS]
    figure.set_size_inches(WIDTH, 2.1 * len(keys))
    names = short_keys(sweep.keys)
    for panel, key in zip(figure.subplots(len(keys), 1, squeeze=False)[:, 0], keys, strict=True):
        places = numbers(sweep, key) or {}
        for one in sweep.ranked:
            best = one is sweep.best
            style: dict[str, Any] = {"markersize": 8 if best else 5, "markeredgecolor": INK if best else "none"}
            panel.plot(places[shown(one.trial.values[key])], one.value, "o", color=COLOURS["student"], **style)
        _scale(panel, places)
        panel.set_xlabel(shorten(names[key], 60))
        panel.set_ylabel(metric_title(sweep.headline))
        panel.grid(axis="y")


def _label(values: Mapping[str, Any]) -> str:
    """Return a setting in at most three short lines; without its key, if there is one key alone."""
    text = shown(next(iter(values.values()))) if len(values) == 1 else in_words(values)
    return "\n".join(wrap(text, 34, max_lines=3, placeholder=" ..."))


def _bars(figure: Figure, sweep: Sweep) -> None:
    shown_ = sweep.ranked[:BARS]
    axes, labels = figure.subplots(), [_label(one.trial.values) for one in shown_]
    figure.set_size_inches(WIDTH, 0.7 + 0.15 * sum(2 + label.count("\n") for label in labels))
    values = [one.value for one in shown_]
    errors = [_half_width(one) for one in shown_]
    low = min(value - error for value, error in zip(values, errors, strict=True))
    high = max(value + error for value, error in zip(values, errors, strict=True))
    room = (high - low) or abs(high) or 1.0
    # Dots and not bars, as the axis does not begin at 0.
    axes.errorbar(
        values,
        range(len(shown_)),
        xerr=errors if any(errors) else None,
        color=COLOURS["student"],
        marker=MARKERS["student"],
        markersize=6,
        linewidth=0,
        elinewidth=1.0,
    )
    axes.set_xlim(low - 0.1 * room, high + 0.1 * room)
    axes.set_yticks(range(len(shown_)), labels, fontsize=8)
    axes.set_ylim(len(shown_) - 0.5, -0.5)
    axes.set_xlabel(metric_title(sweep.headline))
    axes.grid()
