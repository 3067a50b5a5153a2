"""Compute the standard error of a difference of two models, by a paired bootstrap over the units of the eval split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SAMPLES = 100


@dataclass(frozen=True)
class Units:
    """What a model's headline metric is computed from, unit by unit: rows, questions, examples or texts.

    Attributes:
        values: Arrays with the units on their first axis, such as logits and labels.
        metric: Returns the metric of some units from the rows of `values` that are theirs.
        counted: Which units count, bool `(units,)`: those with a label.
    """

    values: tuple[Array, ...]
    metric: Callable[..., float]
    counted: Array

    @classmethod
    def means(cls, scores: Array) -> Units:
        """Return the units of a metric that is the mean of a score of each unit; units whose score is NaN do not count.

        >>> Units.means(np.array([1.0, np.nan, 0.5])).value()
        0.75
        """
        return cls((scores,), lambda some: float(some.mean()), ~np.isnan(scores))

    def part(self, units: Array) -> Units:
        """Return the same with only some of the units counted, bool `(units,)`."""
        return replace(self, counted=self.counted & units)

    def among(self, places: Sequence[int], number: int) -> Units:
        """Return the same as some of `number` units, of which the others do not count.

        Args:
            places: Place of each unit among all, ascending.
            number: How many there are.

        >>> Units.means(np.array([1.0, 0.0])).among([1, 3], 4).counted
        array([False,  True, False,  True])
        """
        if len(places) == number:
            return self

        def put(values: Array) -> Array:
            whole = np.zeros((number, *values.shape[1:]), values.dtype)
            whole[list(places)] = values
            return whole

        return Units(tuple(map(put, self.values)), self.metric, put(self.counted))

    def value(self) -> float:
        """Return the metric of the units that count; NaN without any, or where the metric is not defined on them."""
        return self._of(np.flatnonzero(self.counted))

    def resampled(self, samples: int = SAMPLES, seed: int = 0) -> Array:
        """Return the metric of resampled units that count, `(samples,)`; NaN where it is not defined.

        The draws depend on `seed` and the number of these units alone, so that two models are resampled in pairs.
        """
        rng, units = np.random.default_rng(seed), np.flatnonzero(self.counted)
        if not len(units):
            return np.full(samples, np.nan)
        return np.array([self._of(units[rng.integers(0, len(units), len(units))]) for _ in range(samples)])

    def _of(self, units: Array) -> float:
        if not len(units):
            return math.nan
        try:
            return self.metric(*(values[units] for values in self.values))
        except ValueError:  # the units may lack a class that the metric needs
            return math.nan


def gain_error(student: Units, baseline: Units, *, samples: int = SAMPLES, seed: int = 0) -> float | None:
    """Return the standard error of a gain: how much it would vary over other eval splits of the same size.

    It is a paired bootstrap: both models are evaluated on the same resampled units, so that the difficulty of the
    units, which is the same for both, does not count as noise. Variation over training seeds is not included.

    Args:
        student: The student's units.
        baseline: The same units of the student trained without teacher.
        samples: Number of resampled eval splits.
        seed: Seed of the resampling.

    Returns:
        The standard deviation of `student - baseline`; None if the metric is not defined on the samples.
    """
    own, other = student.part(baseline.counted), baseline.part(student.counted)
    return spread(own.resampled(samples, seed) - other.resampled(samples, seed))


def spread(values: Array) -> float | None:
    """Return the standard deviation of the finite values; None if there are fewer than two."""
    finite = values[np.isfinite(values)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None
