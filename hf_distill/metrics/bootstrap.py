"""The noise of a gain, by a paired bootstrap over the eval split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def gain_error(
    metrics: Callable[[Array, Array], Mapping[str, float]],
    metric: str,
    student: Array,
    baseline: Array,
    labels: Array,
    *,
    samples: int = 100,
    seed: int = 0,
) -> float | None:
    """Return the standard error of a gain: how much it would move on another eval split of the same size.

    Paired bootstrap: both models are judged on the same resampled examples, so that what is hard for both does not
    count as noise. It says nothing of how much another seed would change the models.

    Args:
        metrics: `(logits, labels) -> {name: value}`.
        metric: The one to look at.
        student: Logits, first axis examples.
        baseline: Likewise, of the student trained without teacher.
        labels: First axis examples.
        samples: Resampled eval splits.
        seed: Of the resampling.

    Returns:
        The standard deviation of `student - baseline`; None where the metric is not defined on the samples.
    """
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(samples):
        rows = rng.integers(0, len(labels), len(labels))
        try:
            own, other = (metrics(logits[rows], labels[rows]).get(metric, math.nan) for logits in (student, baseline))
        except ValueError:  # a sample may lack a class that the metric wants
            continue
        if math.isfinite(own - other):
            gains.append(own - other)
    return float(np.std(gains, ddof=1)) if len(gains) > 1 else None


def gain_error_of_means(student: Array, baseline: Array) -> float | None:
    """Return the standard error of a gain in a metric that is the mean of a score of each unit.

    Args:
        student: Scores `(units,)`.
        baseline: Scores of the same units.

    Returns:
        None where there are fewer than two samples to take, as of no units.
    """
    if not len(student):
        return None
    return gain_error(lambda scores, _: {"mean": scores.mean()}, "mean", student, baseline, student)
