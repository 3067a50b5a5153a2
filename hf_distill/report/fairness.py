"""Demographic parity and equalised odds between groups, as `fairlearn` computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.locations import is_here, missing

PACKAGE = "fairlearn"
Array = NDArray[Any]


@dataclass(frozen=True)
class Fairness:
    """How differently a class is predicted in different groups, by model; 0 is equal.

    Of more than two classes, or several labels, each is compared with the rest, and the largest difference is given.

    Attributes:
        demographic_parity_difference: Model -> largest difference between groups in the share of rows for which the
            class is predicted.
        equalized_odds_difference: Model -> largest difference between groups in the share of rows of the class for
            which it is predicted, or of the other rows; without models for which it is not defined.
        of: Model -> the class, for demographic parity and for equalised odds, where there are more than two.
        groups: The groups that were compared: those with enough rows.
        note: Why a figure is missing; empty if none is.
    """

    demographic_parity_difference: Mapping[str, float]
    equalized_odds_difference: Mapping[str, float]
    of: Mapping[str, tuple[str, str]]
    groups: tuple[str, ...]
    note: str = ""


def fairness(
    predicted: Mapping[str, Array], labels: Array, group: Array, groups: Sequence[str], classes: Sequence[str]
) -> Fairness:
    """Return the metrics of `fairlearn`; without the package, a note that says so.

    Args:
        predicted: Model -> whether each class is predicted, bool `(rows, classes)`.
        labels: Whether each class is the true one, bool `(rows, classes)`; rows with a label only.
        group: Name of the group of each row, `(rows,)`.
        groups: The groups to compare.
        classes: Names of the classes.
    """
    if not is_here(PACKAGE):
        return Fairness({}, {}, {}, tuple(groups), f"{missing(PACKAGE, 'Demographic parity and equalised odds')}.")
    kept = np.isin(group, list(groups))
    group, labels = group[kept], labels[kept]
    predicted = {model: one[kept] for model, one in predicted.items()}
    # Of two classes that exclude each other, both have the same differences.
    two = len(classes) == 2 and all((one.sum(-1) == 1).all() for one in (labels, *predicted.values()))
    columns = [1] if two else list(range(len(classes)))
    # fairlearn takes a share of no rows for 0, and the difference to it would be a finding.
    whole = [index for index in columns if _everywhere(labels[:, index], group, groups)]
    shares = _Shares(labels, group, groups)
    parity, odds = (
        {model: _largest(metric, over, spread(one), labels, one, group) for model, one in predicted.items()}
        for metric, over, spread in (
            ("demographic_parity_difference", columns, shares.of_all),
            ("equalized_odds_difference", whole, shares.of_labels),
        )
    )
    left = [classes[index] for index in columns if index not in whole]
    what = f"is not among the labels, or is the only label, of some group: {', '.join(map(repr, left[:5]))}"
    note = f"Equalised odds leave out {len(left)} of {len(columns)} classes, as each {what}." if left else ""
    if two and left:
        note = f"Equalised odds are not defined: '{left[0]}' {what.partition(':')[0]}."
    named = len(columns) > 1
    return Fairness(
        demographic_parity_difference={model: value for model, (value, _) in parity.items()},
        equalized_odds_difference={model: value for model, (value, index) in odds.items() if index >= 0},
        of={model: (classes[parity[model][1]], classes[odds[model][1]]) for model in odds if odds[model][1] >= 0}
        if named
        else {},
        groups=tuple(groups),
        note=note,
    )


def _everywhere(labels: Array, group: Array, groups: Sequence[str]) -> bool:
    """Return whether every group has rows of a class and others."""
    return all(labels[group == name].any() and not labels[group == name].all() for name in groups)


class _Shares:
    """How far apart groups are in the share of rows for which a class is predicted, for all classes at once.

    Args:
        labels: Whether each class is the true one, bool `(rows, classes)`.
        group: Name of the group of each row, `(rows,)`.
        groups: The groups to compare; each has rows.
    """

    def __init__(self, labels: Array, group: Array, groups: Sequence[str]) -> None:
        self._labels, self._rows = labels, [group == name for name in groups]

    def of_all(self, predicted: Array) -> Array:
        """Return the largest difference in the share of all rows, `(classes,)`."""
        return self._apart(predicted, np.ones_like(predicted))

    def of_labels(self, predicted: Array) -> Array:
        """Return the larger one of two: in the share of the rows of the class, and of the other rows, `(classes,)`."""
        return np.maximum(*(self._apart(predicted, rows) for rows in (self._labels, ~self._labels)))

    def _apart(self, predicted: Array, counted: Array) -> Array:
        count = np.maximum([counted[rows].sum(0) for rows in self._rows], 1)
        return np.asarray(np.ptp([(predicted & counted)[rows].sum(0) for rows in self._rows] / count, axis=0))


def _largest(
    metric: str, columns: Sequence[int], spread: Array, labels: Array, predicted: Array, group: Array
) -> tuple[float, int]:
    """Return the largest value of a metric over some classes, and the class; -1 without classes.

    `fairlearn` computes it for the class with the largest `spread`: of a hundred classes and groups it takes minutes.
    """
    import fairlearn.metrics

    if not columns:
        return 0.0, -1
    index = max(columns, key=lambda one: spread[one])
    true, guess = labels[:, index].astype(int), predicted[:, index].astype(int)
    return float(getattr(fairlearn.metrics, metric)(true, guess, sensitive_features=group)), index
