"""Judging finished models side by side: predictions on the eval split, what agrees, what it costs to run them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill import figures
from hf_distill.latency import Latency, measure_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.fit import Fitter
    from hf_distill.tasks import Prepared


@dataclass(frozen=True)
class Judged:
    """A model's predictions on the eval split, in the order of the split.

    Attributes:
        logits: `(rows, width)`, classes in the student's order.
        labels: `(rows, ...)`; None where the split has none.
        metrics: Empty where the split has no labels.
    """

    logits: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    metrics: dict[str, float]


def judge(fitter: Fitter, model: PreTrainedModel, training: Mapping[str, Any], columns: Any = None) -> Judged:
    """Predict the eval split.

    Args:
        fitter: The run's data.
        model: Any of its models.
        training: Arguments of the run: batch size, precision.
        columns: Order of the model's classes in the student's terms, if it differs.
    """
    output = fitter.predict(model, training)
    logits = np.asarray(output.predictions)
    if columns is not None:
        logits = logits[:, list(columns)]
    prepared = fitter.prepared
    labels = None if output.label_ids is None else np.asarray(output.label_ids)
    metrics = prepared.metrics(logits, labels) if prepared.metric_names and labels is not None else {}
    return Judged(logits, labels, metrics)


def agreement(prepared: Prepared, student: Judged, teacher: Judged) -> float | None:
    """Return the share of rows where both models predict the same; None for regression."""
    if not prepared.layout.has_classes:
        return None
    rows = prepared.layout.select(
        torch.from_numpy(student.logits), torch.from_numpy(teacher.logits), {"input_ids": torch.zeros(len(student.logits))}
    )
    return float(rows.agreement().sum()) / max(len(rows.student), 1)


def class_figures(prepared: Prepared, judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Return the figures of a single-label classifier: confusion with the teacher, calibration, accuracy by class."""
    labels = judged["student"].labels
    if getattr(prepared.layout, "kind", None) != "classes":
        return {}
    guesses = {name: one.logits.argmax(-1) for name, one in judged.items()}
    found: dict[str, Any] = {
        "confusion": figures.confusion(guesses["student"], guesses["teacher"], prepared.label_names)
    }
    if prepared.metric_names and labels is not None:
        found["calibration"] = {name: figures.calibration(_softmax(one.logits), labels) for name, one in judged.items()}
        found["groups"] = figures.by_label(guesses, labels, prepared.label_names)
    return found


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    probabilities: np.ndarray[Any, Any] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return probabilities


def latencies(prepared: Prepared, models: Mapping[str, PreTrainedModel], batch_size: int) -> dict[str, Latency]:
    """Time all models on the same two inputs: the example of median length, and the batch around it."""
    middle = len(prepared.eval) // 2  # the split is sorted by length
    start = max(0, min(middle - batch_size // 2, len(prepared.eval) - batch_size))
    around = range(start, min(start + batch_size, len(prepared.eval)))

    def collate(rows: list[int]) -> dict[str, Any]:
        examples = [{key: value for key, value in prepared.eval[row].items() if key != "length"} for row in rows]
        return dict(prepared.collator(examples))

    return measure_all(models, collate([middle]), collate(list(around)))


def environment() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    import accelerate
    import datasets
    import transformers

    import hf_distill

    return {
        "hf_distill": hf_distill.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
    }
