"""Compute the standard error of a gain, by a paired bootstrap over the eval split."""

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
    """Return the standard error of a gain: how much it would vary over other eval splits of the same size.

    It is a paired bootstrap: both models are evaluated on the same resampled examples, so that the difficulty of the
    examples, which is the same for both, does not count as noise. Variation over training seeds is not included.

    Args:
        metrics: `(logits, labels) -> {name: value}`.
        metric: Name of the metric.
        student: The student's logits, first axis examples.
        baseline: The logits of the student trained without teacher, first axis examples.
        labels: Labels, first axis examples.
        samples: Number of resampled eval splits.
        seed: Seed of the resampling.

    Returns:
        The standard deviation of `student - baseline`; None if the metric is not defined on the samples.
    """
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(samples):
        rows = rng.integers(0, len(labels), len(labels))
        try:
            own, other = (metrics(logits[rows], labels[rows]).get(metric, math.nan) for logits in (student, baseline))
        except ValueError:  # a sample may lack a class that the metric needs
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
