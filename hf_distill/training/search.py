"""By what a search for hyperparameters compares its trials, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping

from transformers.trainer_utils import default_compute_objective

# Figures that our evaluations have beside those of `compute_metrics`, without their prefix.
OWN = ("objective/", "agreement")
PREFIX = "eval_"


def compare_by(metrics: Mapping[str, float]) -> float:
    """Return the number by which a trial is compared: the sum of the user's metrics, or the loss if there are none.

    It is Transformers' default without the figures that `DistillationTrainer` adds to every evaluation: their sum would
    add an agreement, of which more is better, to objectives, of which less is better.

    >>> compare_by({"eval_loss": 0.5, "eval_objective/kl": 0.7, "eval_agreement": 0.9, "eval_runtime": 3.0})
    0.5
    >>> compare_by({"eval_loss": 0.5, "eval_agreement": 0.9, "eval_accuracy": 0.8})
    0.8

    Args:
        metrics: What `evaluate` returns.
    """
    others = {name: value for name, value in metrics.items() if not name.removeprefix(PREFIX).startswith(OWN)}
    return float(default_compute_objective(others))
