"""What a model did on the eval split, and the figures of a report that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.data.label_names import IGNORED
from hf_distill.metrics.table import AGREEMENT, Undefined
from hf_distill.report import calibration as figures
from hf_distill.report.chance import Chance, find_chance, uniform

if TYPE_CHECKING:
    from hf_distill.tasks import Prepared

PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Judged:
    """What a model does on the eval split.

    Attributes:
        metrics: The task's; where the split has no labels, the agreement is all there is.
        agreement: Share of rows where the teacher predicts the same; None for regression.
        logits: `(rows, width)` in the order of the split, classes in the student's order; None for a task that
            does not keep them.
        labels: `(rows, ...)`; None where the split has none.
        losses: Sum and number of the labels of every example, `(rows, 2)`.
    """

    metrics: Mapping[str, float]
    agreement: float | None
    logits: np.ndarray[Any, Any] | None
    labels: np.ndarray[Any, Any] | None
    losses: np.ndarray[Any, Any]


def judged_before(prepared: Prepared, losses: np.ndarray[Any, Any]) -> Judged:
    """Return what is known of a teacher that is not there to predict: the perplexity, from its losses.

    Args:
        prepared: The data.
        losses: See `Replay.label_losses`.
    """
    assert prepared.summary is not None
    mean = losses[:, 0].sum() / losses[:, 1].sum()
    metrics = dict(prepared.summary({"objective/labels": float(mean)}))
    if np.isnan(mean):
        metrics[PERPLEXITY] = Undefined("of some tokens of the data the teacher's log-probability is not given")
    return Judged(metrics, 1.0, None, None, losses)


def class_figures(prepared: Prepared, judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Return the figures of a classifier with one label a row: confusion with the teacher, calibration, by class."""
    labels = judged["student"].labels
    logits = {name: one.logits for name, one in judged.items() if one.logits is not None}
    if not prepared.layout.has_named_classes or len(logits) < len(judged):
        return {}
    if any(one.ndim == 3 for one in logits.values()):  # rows are tokens, those that count
        if labels is None:
            return {}
        counted = labels != IGNORED
        logits, labels = {name: one[counted] for name, one in logits.items()}, labels[counted]
    guesses = {name: one.argmax(-1) for name, one in logits.items()}
    found: dict[str, Any] = {
        "confusion": figures.confusion(guesses["student"], guesses["teacher"], prepared.label_names)
    }
    if prepared.metric_names and labels is not None:
        found["calibration"] = {name: figures.calibration(_softmax(one), labels) for name, one in logits.items()}
        found["groups"] = figures.by_label(guesses, labels, prepared.label_names)
    return found


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    probabilities: np.ndarray[Any, Any] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return probabilities


def labelled_rows(prepared: Prepared, judged: Judged) -> int | None:
    """Return how many rows the metrics were computed on; None where the split has no labels."""
    if prepared.summary is not None:
        return int((judged.losses[:, 1] > 0).sum())
    if judged.labels is None:
        return None
    if prepared.scores is not None and judged.logits is not None:
        scores = prepared.scores(judged.logits, judged.labels)[prepared.metric_names[0]]
        return int((~np.isnan(scores)).sum())
    return int(prepared.layout.counts({"labels": torch.from_numpy(judged.labels)})["label"].sum())


def chance_of(prepared: Prepared, teacher: Judged, metric: str, greater_is_better: bool) -> Chance | None:
    """Return what the headline metric is without knowledge; None where that is not known, as of generated texts."""
    classes = getattr(prepared.layout, "classes", None)
    if metric == PERPLEXITY and classes is not None:
        return uniform(classes)
    if metric == AGREEMENT or prepared.summary is not None or teacher.logits is None or teacher.labels is None:
        return None
    layout = prepared.layout
    if prepared.scores is not None:  # text by text, which takes its time
        spans = partial(find_chance, kind="spans", shuffles=3, greater_is_better=greater_is_better)
        return spans(prepared.metrics, metric, teacher.logits, teacher.labels)
    return find_chance(
        prepared.metrics,
        metric,
        teacher.logits,
        teacher.labels,
        kind="classes" if layout.has_named_classes else "binary" if layout.has_classes else "values",
        names=prepared.label_names,
        greater_is_better=greater_is_better,
    )


def gain_error(prepared: Prepared, judged: Mapping[str, Judged], metric: str) -> float | None:
    """Return the standard error of the gain on an eval split of this size; None where it is not known."""
    if "baseline" not in judged or metric == AGREEMENT:
        return None
    if prepared.summary is not None:
        return _gain_error_of_losses(prepared.summary, judged["student"].losses, judged["baseline"].losses, metric)
    student, baseline, labels = judged["student"].logits, judged["baseline"].logits, judged["student"].labels
    if student is None or baseline is None or labels is None:
        return None
    if prepared.scores is None:
        return figures.gain_error(prepared.metrics, metric, student, baseline, labels)
    own, other = (prepared.scores(logits, labels)[metric] for logits in (student, baseline))
    known = ~np.isnan(own + other)
    if not known.any():
        return None
    return figures.gain_error(lambda scores, _: {metric: scores.mean()}, metric, own[known], other[known], own[known])


def _gain_error_of_losses(
    summary: Callable[[Mapping[str, float]], Mapping[str, float]],
    student: np.ndarray[Any, Any],
    baseline: np.ndarray[Any, Any],
    metric: str,
) -> float | None:
    """Return the error of a gain in what follows from the mean loss of a label; None for what does not."""

    def metrics(losses: np.ndarray[Any, Any], _: Any) -> Mapping[str, float]:
        total, labels = losses.sum(0)
        return summary({"objective/labels": total / labels}) if labels else {}

    return figures.gain_error(metrics, metric, student, baseline, student)
