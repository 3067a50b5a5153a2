"""The table of metrics and their formulas, which are scikit-learn's, SciPy's and seqeval's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

# As in `rows.ExampleRows`: one label, several labels, or numbers; or the tokens of a language model, whose figures come
# from `tasks.Prepared.summary`; or one label for each word of a sentence; or generated texts (`text_metrics`); or
# spans of a text (`tasks.answer_scores`).
Kind = Literal["classes", "binary", "values", "tokens", "tags", "texts", "spans"]

# The headline where the eval split has no labels: no metric of the table, as it compares two models.
AGREEMENT = "agreement"

Names = tuple[str, ...]


class Undefined(float):
    """The value of a metric that has none: NaN, and why.

    Attributes:
        reason: Such as `only one class among the labels`.

    >>> value = Undefined("only one class among the labels")
    >>> math.isnan(value), value.reason
    (True, 'only one class among the labels')
    """

    reason: str

    def __new__(cls, reason: str) -> Undefined:
        """Make it."""
        made = super().__new__(cls, math.nan)
        made.reason = reason
        return made

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        """Return what another process makes it of."""
        return (self.reason,)


@dataclass(frozen=True)
class Judged:
    """Predictions on the rows that have a label.

    Attributes:
        labels: Class indices `(rows,)`, 0 and 1 `(rows, labels)`, or numbers `(rows, values)`.
        predicted: Likewise.
        logits: `(rows, width)`, float64.
        sentences: Of tags: their names, sentence by sentence, the true ones and the predicted ones. What is above has a
            row for each word.
    """

    labels: np.ndarray
    predicted: np.ndarray
    logits: np.ndarray
    sentences: Sequence[tuple[Names, Names]] = ()


@dataclass(frozen=True)
class Metric:
    """One number about predictions.

    Attributes:
        kinds: What it is defined for.
        compute: The number; NaN where these predictions do not define it.
        greater_is_better: Whether a better model has more of it.
    """

    kinds: tuple[Kind, ...]
    compute: Callable[[Judged], float]
    greater_is_better: bool = True


def _sklearn(function: str) -> Callable[[Judged], float]:
    def compute(judged: Judged) -> float:
        import sklearn.metrics  # a second to import: not before a metric is computed

        return float(getattr(sklearn.metrics, function)(judged.labels, judged.predicted))

    return compute


def _averaged(function: str, average: str | None = None) -> Callable[[Judged], float]:
    """Without `average`: the positive class (1) of two; the mean over classes of more; pooled over several labels."""

    def compute(judged: Judged) -> float:
        import sklearn.metrics

        single = judged.labels.ndim == 1
        usual = ("binary" if judged.logits.shape[1] == 2 else "macro") if single else "micro"
        return float(
            getattr(sklearn.metrics, function)(
                judged.labels, judged.predicted, average=average or usual, zero_division=0.0
            )
        )

    return compute


def _correlation(function: str) -> Callable[[Judged], float]:
    def compute(judged: Judged) -> float:
        import numpy as np
        import scipy.stats

        if len(judged.labels) < 2:
            return math.nan
        correlate = getattr(scipy.stats, function)
        pairs = zip(judged.labels.T, judged.predicted.T, strict=True)
        return float(np.mean([correlate(labels, predicted).statistic for labels, predicted in pairs]))

    return compute


def _auc(judged: Judged) -> float:
    import sklearn.metrics
    from scipy.special import softmax

    logits = judged.logits
    try:
        if judged.labels.ndim == 2:
            return float(sklearn.metrics.roc_auc_score(judged.labels, logits, average="macro"))
        if logits.shape[1] == 2:  # the rank decides, and unlike a probability a difference does not saturate
            return float(sklearn.metrics.roc_auc_score(judged.labels, logits[:, 1] - logits[:, 0]))
        return float(
            sklearn.metrics.roc_auc_score(
                judged.labels, softmax(logits, axis=1), multi_class="ovr", labels=list(range(logits.shape[1]))
            )
        )
    except ValueError:  # a class without examples, in scikit-learn before 1.6
        return math.nan


def why_undefined(judged: Judged, value: float) -> str:
    """Return why a metric has no value on these predictions, as far as the labels and predictions tell.

    Args:
        judged: The predictions.
        value: What came out: NaN, or infinite.
    """
    import numpy as np

    if len(judged.labels) < 2:
        return "fewer than two rows have a label"
    if math.isinf(value):
        return "it is too large for a number"
    if judged.labels.ndim == 1:
        classes = len(np.unique(judged.labels))
        if classes == 1:
            return "only one class among the labels"
        if classes < judged.logits.shape[1]:
            return "not every class is among the labels"
    for what, values in (("labels", judged.labels), ("predictions", judged.predicted)):
        columns = values.reshape(len(values), -1)
        if (columns == columns[:1]).all(0).any():
            return f"the {what} are all the same" if columns.shape[1] == 1 else f"the {what} of a column are all alike"
    return "it is not defined on these predictions"


def _summarised(judged: Judged) -> float:
    raise AssertionError("computed by the task, from figures over the whole split")


@lru_cache(maxsize=1 << 15)
def _spans(tags: Names) -> frozenset[tuple[str, int, int]]:
    """Return type, first and last word of every entity; kept, because a bootstrap asks for the same ones again."""
    from seqeval.metrics.sequence_labeling import get_entities

    return frozenset(get_entities(list(tags)))


def _span(divisor: Callable[[int, int], float]) -> Callable[[Judged], float]:
    """Entities right in type and both ends, of `divisor(true, predicted)`; as in seqeval, 0 where there are none."""

    def compute(judged: Judged) -> float:
        pairs = [(_spans(true), _spans(predicted)) for true, predicted in judged.sentences]
        right = sum(len(true & predicted) for true, predicted in pairs)
        count = divisor(sum(len(true) for true, _ in pairs), sum(len(predicted) for _, predicted in pairs))
        return right / count if count else 0.0

    return compute


_LABELS: tuple[Kind, ...] = ("classes", "binary")
_SINGLE: tuple[Kind, ...] = ("classes", "tags")

# f1, precision and recall: of class 1 where there are two, the mean over the classes that occur where there are more,
# pooled over labels (micro) where an example has several. Several values: correlations are averaged over columns.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(("classes",), _sklearn("accuracy_score")),
    "balanced_accuracy": Metric(_SINGLE, _sklearn("balanced_accuracy_score")),
    "f1": Metric((*_LABELS, "spans"), _averaged("f1_score")),
    "f1_macro": Metric((*_LABELS, "tags"), _averaged("f1_score", "macro")),
    "f1_micro": Metric(_LABELS, _averaged("f1_score", "micro")),
    "precision": Metric(_LABELS, _averaged("precision_score")),
    "recall": Metric(_LABELS, _averaged("recall_score")),
    "mcc": Metric(_SINGLE, _sklearn("matthews_corrcoef")),
    "auc": Metric(_LABELS, _auc),
    "exact_match": Metric(("binary", "spans"), _sklearn("accuracy_score")),
    "hamming_loss": Metric(("binary",), _sklearn("hamming_loss"), greater_is_better=False),
    "span_f1": Metric(("tags",), _span(lambda true, predicted: (true + predicted) / 2)),
    "span_precision": Metric(("tags",), _span(lambda true, predicted: predicted)),
    "span_recall": Metric(("tags",), _span(lambda true, predicted: true)),
    "token_accuracy": Metric(("tags",), _sklearn("accuracy_score")),
    "pearson": Metric(("values",), _correlation("pearsonr")),
    "spearman": Metric(("values",), _correlation("spearmanr")),
    "mse": Metric(("values",), _sklearn("mean_squared_error"), greater_is_better=False),
    "mae": Metric(("values",), _sklearn("mean_absolute_error"), greater_is_better=False),
    "r2": Metric(("values",), _sklearn("r2_score")),
    **{
        name: Metric(("spans",), _summarised)
        for name in ("exact_match_has_answer", "f1_has_answer", "accuracy_no_answer")
    },
    "perplexity": Metric(("tokens", "texts"), _summarised, greater_is_better=False),
    **{name: Metric(("texts",), _summarised) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf")},
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
# Where the tags mark no spans (parts of speech).
PLAIN_TAGS = ("token_accuracy", "f1_macro")
