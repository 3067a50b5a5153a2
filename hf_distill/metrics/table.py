"""The table of metrics, with the formulas of scikit-learn, SciPy and seqeval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

# What a task predicts: one class, several labels, or numbers per example; the tokens of a language model (metrics come
# from mean losses); one label for each word (tags); generated texts (`metrics/text.py`); or spans of a text
# (`metrics/answers.py`).
Kind = Literal["classes", "binary", "values", "tokens", "tags", "texts", "spans"]

# The headline if the eval split has no labels. Not in the table, since it compares two models.
AGREEMENT = "agreement"

Names = tuple[str, ...]


class Undefined(float):
    """NaN as the value of a metric that is not defined, with the reason.

    Attributes:
        reason: Why, such as `only one class among the labels`.

    >>> value = Undefined("only one class among the labels")
    >>> math.isnan(value), value.reason
    (True, 'only one class among the labels')
    """

    reason: str

    def __new__(cls, reason: str) -> Undefined:
        """Create the NaN with its reason."""
        made = super().__new__(cls, math.nan)
        made.reason = reason
        return made

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        """Return the arguments with which pickle creates it again."""
        return (self.reason,)


@dataclass(frozen=True)
class LabelledPredictions:
    """LabelledPredictions on the rows that have a label; for tags, a row is a word.

    Attributes:
        labels: Class indices `(rows,)`, 0 and 1 `(rows, labels)`, or numbers `(rows, values)`.
        predicted: The predictions, in the form of `labels`.
        logits: `(rows, width)`, float64.
        sentences: For tags: the true names and the predicted names, sentence by sentence.
    """

    labels: np.ndarray
    predicted: np.ndarray
    logits: np.ndarray
    sentences: Sequence[tuple[Names, Names]] = ()


@dataclass(frozen=True)
class Metric:
    """A metric: one number about predictions.

    Attributes:
        kinds: Kinds of predictions for which it is defined.
        compute: Returns the value; NaN if it is not defined for these predictions.
        greater_is_better: Whether a greater value is better.
        by_row: Returns a score of each row, `(rows,)`, whose mean is the metric; None if it is not such a mean.
    """

    kinds: tuple[Kind, ...]
    compute: Callable[[LabelledPredictions], float]
    greater_is_better: bool = True
    by_row: Callable[[LabelledPredictions], np.ndarray] | None = None


def _sklearn(function: str) -> Callable[[LabelledPredictions], float]:
    def compute(predictions: LabelledPredictions) -> float:
        import sklearn.metrics  # takes a second to import, so only when a metric is computed

        return float(getattr(sklearn.metrics, function)(predictions.labels, predictions.predicted))

    return compute


def _averaged(function: str, average: str | None = None) -> Callable[[LabelledPredictions], float]:
    """Return a metric with an average; by default `binary` for two classes, `macro` for more, `micro` for labels."""

    def compute(predictions: LabelledPredictions) -> float:
        import sklearn.metrics

        single = predictions.labels.ndim == 1
        usual = ("binary" if predictions.logits.shape[1] == 2 else "macro") if single else "micro"
        return float(
            getattr(sklearn.metrics, function)(
                predictions.labels, predictions.predicted, average=average or usual, zero_division=0.0
            )
        )

    return compute


def _correlation(function: str) -> Callable[[LabelledPredictions], float]:
    def compute(predictions: LabelledPredictions) -> float:
        import numpy as np
        import scipy.stats

        if len(predictions.labels) < 2:
            return math.nan
        correlate = getattr(scipy.stats, function)
        pairs = zip(predictions.labels.T, predictions.predicted.T, strict=True)
        return float(np.mean([correlate(labels, predicted).statistic for labels, predicted in pairs]))

    return compute


def _auc(predictions: LabelledPredictions) -> float:
    import sklearn.metrics
    from scipy.special import softmax

    logits = predictions.logits
    try:
        if predictions.labels.ndim == 2:
            return float(sklearn.metrics.roc_auc_score(predictions.labels, logits, average="macro"))
        if (
            logits.shape[1] == 2
        ):  # only the ranking counts; a difference of logits does not saturate as a probability does
            return float(sklearn.metrics.roc_auc_score(predictions.labels, logits[:, 1] - logits[:, 0]))
        return float(
            sklearn.metrics.roc_auc_score(
                predictions.labels, softmax(logits, axis=1), multi_class="ovr", labels=list(range(logits.shape[1]))
            )
        )
    except ValueError:  # a class without examples, in scikit-learn before 1.6
        return math.nan


def why_undefined(predictions: LabelledPredictions, value: float) -> str:
    """Return why a metric is not defined on these predictions.

    Args:
        predictions: The predictions.
        value: The computed value: NaN, or infinite.
    """
    import numpy as np

    if len(predictions.labels) < 2:
        return "fewer than two rows have a label"
    if math.isinf(value):
        return "it is too large for a number"
    if predictions.labels.ndim == 1:
        classes = len(np.unique(predictions.labels))
        if classes == 1:
            return "only one class among the labels"
        if classes < predictions.logits.shape[1]:
            return "not every class is among the labels"
    for what, values in (("labels", predictions.labels), ("predictions", predictions.predicted)):
        columns = values.reshape(len(values), -1)
        if (columns == columns[:1]).all(0).any():
            return f"the {what} are all the same" if columns.shape[1] == 1 else f"one column of {what} is constant"
    return "it is not defined on these predictions"


def _summarised(predictions: LabelledPredictions) -> float:
    raise AssertionError("computed by the task from mean losses over the split")


@lru_cache(maxsize=1 << 15)
def _spans(tags: Names) -> frozenset[tuple[str, int, int]]:
    """Return type, first and last word of every entity; cached, since a bootstrap asks for the same ones again."""
    from seqeval.metrics.sequence_labeling import get_entities

    return frozenset(get_entities(list(tags)))


def _span(divisor: Callable[[int, int], float]) -> Callable[[LabelledPredictions], float]:
    """Return a metric of entities: those correct in type and both ends, divided by `divisor(true, predicted)`.

    It is 0 if there are no entities, as in seqeval.
    """

    def compute(predictions: LabelledPredictions) -> float:
        pairs = [(_spans(true), _spans(predicted)) for true, predicted in predictions.sentences]
        right = sum(len(true & predicted) for true, predicted in pairs)
        count = divisor(sum(len(true) for true, _ in pairs), sum(len(predicted) for _, predicted in pairs))
        return right / count if count else 0.0

    return compute


def _right(predictions: LabelledPredictions) -> np.ndarray:
    """Return 1 for each row that is right in all labels, else 0."""
    right: np.ndarray = (predictions.labels == predictions.predicted).reshape(len(predictions.labels), -1).all(-1)
    return right.astype(float)


def _errors(power: int) -> Callable[[LabelledPredictions], np.ndarray]:
    def by_row(predictions: LabelledPredictions) -> np.ndarray:
        errors: np.ndarray = abs(predictions.labels - predictions.predicted) ** power
        scores: np.ndarray = errors.reshape(len(errors), -1).mean(-1)  # of several values the mean, as scikit-learn
        return scores

    return by_row


# Metrics of one class of two, the second one, and of all of several: they depend on which classes there are.
OF_CLASSES = ("f1", "precision", "recall")

_LABELS: tuple[Kind, ...] = ("classes", "binary")
_SINGLE: tuple[Kind, ...] = ("classes", "tags")

# f1, precision and recall: of class 1 if there are two classes, the mean over the classes that occur if there are more
# (macro), pooled over labels if an example has several (micro). Correlations of several values are averaged.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(("classes",), _sklearn("accuracy_score"), by_row=_right),
    "balanced_accuracy": Metric(_SINGLE, _sklearn("balanced_accuracy_score")),
    "f1": Metric((*_LABELS, "spans"), _averaged("f1_score")),
    "f1_macro": Metric((*_LABELS, "tags"), _averaged("f1_score", "macro")),
    "f1_micro": Metric(_LABELS, _averaged("f1_score", "micro")),
    "precision": Metric(_LABELS, _averaged("precision_score")),
    "recall": Metric(_LABELS, _averaged("recall_score")),
    "mcc": Metric(_SINGLE, _sklearn("matthews_corrcoef")),
    "auc": Metric(_LABELS, _auc),
    "exact_match": Metric(("binary", "spans", "texts"), _sklearn("accuracy_score"), by_row=_right),
    "hamming_loss": Metric(("binary",), _sklearn("hamming_loss"), greater_is_better=False, by_row=_errors(1)),
    "span_f1": Metric(("tags",), _span(lambda true, predicted: (true + predicted) / 2)),
    "span_precision": Metric(("tags",), _span(lambda true, predicted: predicted)),
    "span_recall": Metric(("tags",), _span(lambda true, predicted: true)),
    "token_accuracy": Metric(("tags",), _sklearn("accuracy_score")),
    "pearson": Metric(("values",), _correlation("pearsonr")),
    "spearman": Metric(("values",), _correlation("spearmanr")),
    "mse": Metric(("values",), _sklearn("mean_squared_error"), greater_is_better=False, by_row=_errors(2)),
    "mae": Metric(("values",), _sklearn("mean_absolute_error"), greater_is_better=False, by_row=_errors(1)),
    "r2": Metric(("values",), _sklearn("r2_score")),
    **{
        name: Metric(("spans",), _summarised)
        for name in ("exact_match_has_answer", "f1_has_answer", "accuracy_no_answer")
    },
    "perplexity": Metric(("tokens", "texts"), _summarised, greater_is_better=False),
    **{
        name: Metric(("texts",), _summarised)
        for name in (
            "exact_match_plain",
            "exact_match_number",
            "rouge1",
            "rouge2",
            "rougeL",
            "rougeLsum",
            "bleu",
            "chrf",
        )
    },
}

DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "f1", "mcc"),
    "binary": ("f1_micro", "f1_macro", "exact_match"),
    "values": ("pearson", "spearman", "mse"),
    "tokens": ("perplexity",),
    "tags": ("span_f1", "span_precision", "span_recall", "token_accuracy"),
    "spans": ("f1", "exact_match"),
    "texts": ("rouge2", "rouge1", "rougeL", "rougeLsum", "perplexity"),
}
# For tags that do not mark spans (parts of speech).
PLAIN_TAGS = ("token_accuracy", "f1_macro")
