"""What a model does on the eval split, and the figures of a report that follow from its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.data.label_names import IGNORED
from hf_distill.report import calibration as figures

if TYPE_CHECKING:
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.evaluator import Predictions


@dataclass(frozen=True)
class Evaluated:
    """A model on the eval split.

    Attributes:
        metrics: The task's; where the split has no labels, the agreement is all there is.
        agreement: Share of rows where the teacher predicts the same; None for regression.
        predictions: What they were computed from.
    """

    metrics: Mapping[str, float]
    agreement: float | None
    predictions: Predictions


def class_figures(prepared: Prepared, evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
    """Return the figures of a classifier with one label a row: confusion with the teacher, calibration, by class."""
    labels = evaluated["student"].predictions.labels
    known = {name: one.predictions.logits for name, one in evaluated.items()}
    logits = {name: one for name, one in known.items() if one is not None}
    if not prepared.layout.has_named_classes or len(logits) < len(known):
        return {}
    if any(one.ndim == 3 for one in logits.values()):  # rows are tokens, those that count
        if labels is None:
            return {}
        counted = {name: one.predictions.labels != IGNORED for name, one in evaluated.items()}
        logits, labels = {name: one[counted[name]] for name, one in logits.items()}, labels[counted["student"]]
        if any(len(one) != len(labels) for one in logits.values()):
            return {}  # a teacher with other tokens reads more or fewer of the words within the limit
    guesses = {name: one.argmax(-1) for name, one in logits.items()}
    found: dict[str, Any] = {
        "confusion": figures.confusion(guesses["student"], guesses["teacher"], prepared.label_names)
    }
    if prepared.evaluator.names and labels is not None:
        found["calibration"] = {name: figures.calibration(_softmax(one), labels) for name, one in logits.items()}
        found["groups"] = figures.by_label(guesses, labels, prepared.label_names)
    return found


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    probabilities: np.ndarray[Any, Any] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return probabilities
