"""Compare models on each part of the eval split: groups or classes, and the distance between best and worst."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from hf_distill.metrics.bootstrap import Units, spread
from hf_distill.metrics.significance import half_width, holm, p_value
from hf_distill.report.for_whom import FEWEST, Distance, GroupResult

# Widths up to this size are rounding errors.
NOTHING = 1e-12
# Group -> model -> what its metric is computed from.
Parts = Mapping[str, Mapping[str, Units]]
# Model -> group -> metric.
ByGroup = Mapping[str, Mapping[str, float]]

# ---- Parts of the eval split -----------------------------------------------------------------------------------------


def parts_by_group(models: Mapping[str, Units | None], names: Sequence[str], group: NDArray[np.int64]) -> Parts:
    """Return the units of each group; without groups that the eval split has no unit of.

    Args:
        models: Model -> its units on the whole split; None for a model without.
        names: Names of the groups.
        group: The group of each unit, `(units,)`; negative for none.
    """
    known = {model: units for model, units in models.items() if units is not None}
    # The same units of all models, as they are resampled in pairs.
    every = np.all([units.counted for units in known.values()], axis=0)
    return {
        name: {model: units.part(every & (group == index)) for model, units in known.items()}
        for index, name in enumerate(names)
        if (group == index).any()
    }


def parts_by_class(
    predicted: Mapping[str, NDArray[np.int64]], labels: NDArray[np.int64], names: Sequence[str]
) -> Parts:
    """Return the units whose mean is the accuracy on each class: examples, for tags sentences with all their words.

    Args:
        predicted: Model -> predicted classes, in the shape of `labels`.
        labels: `(examples,)` or `(examples, words)`; negative for no label.
        names: Names of the classes.
    """
    labels = labels.reshape(len(labels), -1)

    def accuracy(right: NDArray[np.int64], count: NDArray[np.int64]) -> float:
        return float(right.sum() / count.sum())

    found: dict[str, dict[str, Units]] = {}
    for index in np.unique(labels[labels >= 0]).tolist():
        # The examples of the class alone: of a thousand classes, each would hold arrays over all of them.
        rows = (labels == index).any(-1)
        own = labels[rows] == index
        count, name = own.sum(-1), names[index] if index < len(names) else str(index)
        found[name] = {
            model: Units(
                ((own & (guess.reshape(labels.shape)[rows] == index)).sum(-1), count), accuracy, np.ones(len(own), bool)
            )
            for model, guess in predicted.items()
        }
    return found


def values_of(parts: Parts) -> dict[str, dict[str, float]]:
    """Return model -> group -> metric; NaN, maybe with a reason, where it is not defined."""
    models = dict.fromkeys(model for units in parts.values() for model in units)
    return {model: {name: units[model].value() for name, units in parts.items() if model in units} for model in models}


# ---- Compared --------------------------------------------------------------------------------------------------------


def compare(parts: Parts, *, greater_is_better: bool, seeds: Sequence[ByGroup] = ()) -> tuple[
    tuple[GroupResult, ...], Distance | None
]:  # fmt: skip
    """Return the groups, the one that lost most first, and the distance between the best and the worst.

    Args:
        parts: The units of each group, for `teacher`, `student` and maybe `baseline`.
        greater_is_better: Whether a greater value of the metric is better.
        seeds: Metrics by group of student and baseline for each seed, the first one's too; empty for a single seed.
    """
    enough = [name for name, units in parts.items() if _rows(units) >= FEWEST]
    resampled = {name: {model: one.resampled() for model, one in parts[name].items()} for name in enough}
    own = values_of(parts)
    seeds = [{**own, **seed} for seed in seeds] if len(seeds) > 1 else [own]
    groups = [_group(name, units, resampled.get(name), seeds) for name, units in parts.items()]
    tested = [index for index, group in enumerate(groups) if group.p_value is not None]
    significant = holm([groups[index].p_value or 0.0 for index in tested])
    for index, real in zip(tested, significant, strict=True):
        better = (groups[index].difference or 0.0) > 0
        if real:
            groups[index] = replace(groups[index], outcome="better" if better == greater_is_better else "worse")

    def lost(group: GroupResult) -> tuple[bool, float]:
        difference = group.difference or 0.0
        return group.p_value is None, difference if greater_is_better else -difference

    compared = [groups[index].name for index in tested]
    distance = _distance({name: resampled[name] for name in compared}, seeds, greater_is_better)
    return tuple(sorted(groups, key=lost)), distance


def _rows(units: Mapping[str, Units]) -> int:
    return max(int(one.counted.sum()) for one in units.values())


def _group(
    name: str, units: Mapping[str, Units], resampled: Mapping[str, NDArray[np.float64]] | None, seeds: Sequence[ByGroup]
) -> GroupResult:
    """Return the result of one group; without resampled metrics, nothing is said of the difference."""
    by_seed = {model: [seed[model][name] for seed in seeds if name in seed.get(model, ())] for model in units}
    known = {model: [value for value in values if math.isfinite(value)] for model, values in by_seed.items()}
    reasons = [getattr(value, "reason", "") for values in by_seed.values() for value in values]
    rows = _rows(units)
    found = GroupResult(
        name=name,
        rows=rows,
        metrics={model: mean(values) for model, values in known.items() if values},
        reason=next(filter(None, reasons), ""),
        std={model: stdev(known[model]) for model in units if model != "teacher" and len(known[model]) > 1},
    )
    if not {"teacher", "student"} <= found.metrics.keys():
        return replace(found, outcome="not defined")
    differences = [value - found.metrics["teacher"] for value in known["student"]]
    difference = mean(differences)
    found = replace(found, difference=difference)
    if resampled is None:
        return replace(found, outcome="too few rows")
    error = spread(resampled["student"] - resampled["teacher"])
    if error is None:
        return replace(found, outcome="not defined", reason="it is not defined on most samples of these rows")
    width, p = half_width(error, rows, differences), p_value(difference, error, rows, differences)
    # An interval of width 0 would claim too much.
    return replace(found, interval=width if width > NOTHING else None, p_value=p)


def _distance(
    resampled: Mapping[str, Mapping[str, NDArray[np.float64]]], seeds: Sequence[ByGroup], greater_is_better: bool
) -> Distance | None:
    """Return the distance between the best and worst of some groups, whose rows are resampled group by group."""
    if len(resampled) < 2:
        return None
    models = [model for model in ("teacher", "student", "baseline") if all(model in one for one in resampled.values())]
    apart: dict[str, list[float]] = {}
    ends: dict[str, tuple[str, str]] = {}
    for model in models:
        for values in _of_seeds(model, list(resampled), seeds):
            apart.setdefault(model, []).append(max(values.values()) - min(values.values()))
        average = {name: mean(seed[model][name] for seed in seeds) for name in resampled}
        low, high = min(average, key=average.__getitem__), max(average, key=average.__getitem__)
        ends[model] = (high, low) if greater_is_better else (low, high)
    if not {"teacher", "student"} <= apart.keys():
        return None
    samples = {model: np.ptp(np.stack([one[model] for one in resampled.values()]), axis=0) for model in apart}
    widened, interval = {}, {}
    for other in apart.keys() - {"student"}:
        differences = [own - their for own, their in zip(apart["student"], apart[other], strict=False)]
        widened[other] = mean(differences)
        error = spread(samples["student"] - samples[other])
        # No number of units: the normal distribution.
        if error is not None and (width := half_width(error, 1_000_000, differences)) > NOTHING:
            interval[other] = width
    return Distance(
        metrics={model: mean(values) for model, values in apart.items()},
        best={model: ends[model][0] for model in apart},
        worst={model: ends[model][1] for model in apart},
        widened=dict(sorted(widened.items(), reverse=True)),
        interval=dict(sorted(interval.items(), reverse=True)),
        std={model: stdev(values) for model, values in apart.items() if model != "teacher" and len(values) > 1},
    )


def _of_seeds(model: str, names: Sequence[str], seeds: Sequence[ByGroup]) -> Iterator[dict[str, float]]:
    """Yield the metric of each group, for every seed that has all of them."""
    for seed in seeds:
        values = {name: seed[model][name] for name in names if math.isfinite(seed.get(model, {}).get(name, math.nan))}
        if len(values) == len(names):
            yield values
