"""The best evaluation during training, so that a baseline is not put at a disadvantage by training too long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.models.training_hooks import ANEW

if TYPE_CHECKING:
    from hf_distill.tasks.evaluator import Evaluator

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Best:
    """The best evaluation of a model during its training, by the headline metric, on the eval split.

    Attributes:
        value: Value of the headline metric.
        step: Optimiser step of the evaluation, counted through all stages.
        steps: Number of optimiser steps of the training.
        evaluations: Number of evaluations during the training; where weights were deleted in it, since the last time.
    """

    value: float
    step: int
    steps: int
    evaluations: int


def best_of(histories: Mapping[str, History], run: str, evaluator: Evaluator) -> Best | None:
    """Return the best evaluation of a training; None if no evaluation has the metric.

    Args:
        histories: Name of a training -> its `log_history`.
        run: Name such as `baseline` or `baseline seed 43`; its stages count as one training.
        evaluator: Names the headline metric, and computes it from logged values.
    """
    found: list[tuple[float, int]] = []
    steps = 0
    for part, history in histories.items():
        if part.partition(" stage ")[0] != run:
            continue
        for entry in history:
            if ANEW in entry:  # those before are of a model with more weights
                found.clear()
            if (value := _value(entry, evaluator)) is not None:
                found.append((value, steps + int(entry.get("step", 0))))
        steps += max((int(entry["step"]) for entry in history if "step" in entry), default=0)
    if not found:
        return None
    # Of equal values the first, after the fewest steps.
    value, step = max(found, key=lambda one: one[0] if evaluator.greater_is_better else -one[0])
    return Best(value, step, steps, len(found))


def _value(entry: Mapping[str, Any], evaluator: Evaluator) -> float | None:
    figures = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
    if not figures:
        return None
    value = evaluator.logged(figures).get(evaluator.headline)
    return float(value) if value is not None and math.isfinite(value) else None
