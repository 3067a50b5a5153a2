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
    from numpy.typing import NDArray

    from hf_distill.tasks import Prepared
    from hf_distill.tasks.evaluator import Predictions

    Whole = NDArray[np.int64]


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


def guesses_of(evaluated: Mapping[str, Evaluated]) -> tuple[dict[str, Whole], Whole] | None:
    """Return the predicted class of each example or word, by model, and the labels; None without labels.

    Words are those that all models read: with another tokenizer a model has its words at other tokens, and fewer of
    them within the limit.

    Returns:
        Model -> predicted classes, and the labels, all `(examples,)` or `(examples, words)`. Without a label, or beyond
        the last word that all models read, a label is negative.
    """
    known = {model: one.predictions for model, one in evaluated.items() if one.predictions.logits is not None}
    labels = {model: one.labels for model, one in known.items() if one.labels is not None}
    guesses = {model: one.logits.argmax(-1) for model, one in known.items() if one.logits is not None}
    if not labels or len(labels) < len(known):
        return None
    if all(one.ndim == 1 for one in guesses.values()):
        return guesses, next(iter(labels.values()))
    counted = {model: one != IGNORED for model, one in labels.items()}
    read = np.min([one.sum(-1) for one in counted.values()], axis=0)
    width = int(read.max(initial=0))

    def words(model: str, values: Whole) -> Whole:
        first = np.argsort(~counted[model], axis=-1, kind="stable")[:, :width]
        return np.take_along_axis(values, first, axis=-1)

    own = words(*next(iter(labels.items())))
    return {model: words(model, one) for model, one in guesses.items()}, np.where(
        np.arange(width) < read[:, None], own, IGNORED
    )


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    probabilities: np.ndarray[Any, Any] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return probabilities
