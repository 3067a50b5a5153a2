"""Metrics: how predictions are judged. The formulas are scikit-learn's and SciPy's; this table is the list."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.errors import UserError, did_you_mean
from hf_distill.labels import shorten
from hf_distill.locations import resolve

if TYPE_CHECKING:
    import numpy as np

# As in `rows.ExampleRows`: one label, several labels, or numbers; or the tokens of a language model, whose figures come
# from `tasks.Prepared.summary`; or one label for each word of a sentence; or generated texts (`text_metrics`); or
# spans of a text (`tasks.answer_scores`).
Kind = Literal["classes", "binary", "values", "tokens", "tags", "texts", "spans"]

Names = tuple[str, ...]

EVALUATE = "evaluate/"


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


def marks_spans(label_names: Sequence[str] | None) -> bool:
    """Whether tags mark spans, as `B-PER`, `I-PER` and `O` do (BIO, also with `E-` for the last word and `S-` for one).

    >>> marks_spans(["O", "B-PER", "I-PER"]), marks_spans(["NOUN", "VERB"])
    (True, False)
    """
    names = set(label_names or ()) - {"O"}
    return bool(names) and all(re.fullmatch(r"[BIES]-.+", name) for name in names)


def greater_is_better(name: str) -> bool:
    """Return whether a better model has a greater `name`; for `evaluate/...` its name has to tell."""
    if name.startswith(EVALUATE):
        stem = name.replace("#", "/").rstrip("/").rpartition("/")[2].removesuffix(".py")
        return not any(stem == word or stem.endswith((f"_{word}", "_error", "_loss")) for word in _ERRORS)
    return _find(name).greater_is_better


_ERRORS = ("mse", "mae", "rmse", "mape", "smape", "mase", "wer", "cer", "ter", "perplexity", "brier_score", "log_loss")


def check(names: Sequence[str], kind: Kind, num_labels: int, label_names: Sequence[str] | None = None) -> None:
    """Refuse metrics that cannot be computed, before anything is trained.

    Those of the `evaluate` library are loaded here and tried on perfect predictions. Their code comes from the Hub
    and runs in this process.

    Args:
        names: From `METRICS`, or `evaluate/<id or local path>`; `evaluate/squad#f1` picks one of several numbers.
        kind: What the task predicts.
        num_labels: Width of the head.
        label_names: Of tags, where they have any.

    Raises:
        UserError: A name is unknown, or its metric does not fit.
    """
    import numpy as np

    for name in names:
        if name.startswith(EVALUATE) and kind == "tokens":
            raise UserError(
                f"'{name}' judges predictions, and those of a language model are not kept. Use "
                f"{', '.join(DEFAULTS[kind])}.",
                key="metrics",
            )
        if name.startswith(EVALUATE) and kind == "spans":
            raise UserError(
                f"'{name}': answers are judged question by question, by what SQuAD's own scripts compute. Use "
                f"{', '.join(DEFAULTS[kind])}.",
                key="metrics",
            )
        if name.startswith(EVALUATE) and kind == "texts":
            judge_texts(name, ["a text"], ["a text"])
        elif name.startswith(EVALUATE):
            if kind in _SINGLE:
                labels = np.arange(max(num_labels, 2))
            else:
                labels = np.stack([np.arange(4) % 2] * num_labels, -1).astype(int if kind == "binary" else float)
            tags = tuple(label_names or map(str, labels.tolist()))
            _evaluate(name, Judged(labels, labels, labels, [(tags, tags)]), kind)
        elif kind not in _find(name).kinds:
            fitting = [known for known, metric in METRICS.items() if kind in metric.kinds]
            what = {
                "classes": "one label of several",
                "binary": "several labels",
                "values": "numbers",
                "tokens": "tokens",
                "tags": "one label for each word",
                "texts": "generated texts",
                "spans": "answers",
            }[kind]
            raise UserError(
                f"'{name}' does not judge {what}, which this task predicts. Use {', '.join(fitting)}.", key="metrics"
            )
        elif name.startswith("span_") and not marks_spans(label_names):
            raise UserError(
                f"'{name}' judges spans, which are marked by tags such as B-PER, I-PER and O; found "
                f"{shorten(label_names or ('tags without names',))}. Use {', '.join(PLAIN_TAGS)}.",
                key="metrics",
            )


def score(
    names: Sequence[str],
    logits: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    label_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return each metric over the rows that have a label, in the order of `names`.

    Args:
        names: As in `check`.
        logits: `(rows, classes)`, `(rows, labels)`, or `(rows,)` and `(rows, values)`; for tags
            `(rows, tokens, classes)`.
        labels: Class indices `(rows,)`, -100 for none; 0 or 1 `(rows, labels)`, or numbers, a row with NaN for none;
            for tags `(rows, tokens)`, negative for none.
        kind: What they are.
        label_names: Of tags, where they have any.

    Returns:
        Plain floats; NaN where a metric is undefined (correlation with a constant), where no row has a label, and
        where the model answered with NaN: `argmax` would take that for class 0.

    >>> import numpy as np
    >>> score(["accuracy", "f1"], np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, -100]), "classes")
    {'accuracy': 1.0, 'f1': 1.0}
    """
    import numpy as np

    judged = _judge_tags(logits, labels, label_names) if kind == "tags" else _judge(logits, labels, kind)
    finite = not np.isnan(judged.logits).any() and (kind != "values" or np.isfinite(judged.logits).all())
    if len(judged.labels) == 0 or not finite:
        return dict.fromkeys(names, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all say that a value is undefined; NaN says so too, and once
        return {
            name: _evaluate(name, judged, kind) if name.startswith(EVALUATE) else _find(name).compute(judged)
            for name in names
        }


def _judge(logits: np.ndarray, labels: np.ndarray, kind: Kind) -> Judged:
    import numpy as np

    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    if kind == "classes":
        labelled = labels != -100
        return Judged(labels[labelled].astype(int), logits[labelled].argmax(-1), logits[labelled])
    logits, labels = (array if array.ndim == 2 else array[:, None] for array in (logits, labels.astype(np.float64)))
    labelled = ~np.isnan(labels).any(-1)
    logits, labels = logits[labelled], labels[labelled]
    if kind == "binary":
        return Judged((labels > 0.5).astype(int), (logits > 0).astype(int), logits)
    return Judged(labels, logits, logits)


def _judge_tags(logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> Judged:
    import numpy as np

    labels, predicted = np.asarray(labels), np.asarray(logits).argmax(-1)
    called = tuple(names or map(str, range(logits.shape[-1])))
    labelled = labels >= 0
    sentences = [
        tuple(tuple(called[tag] for tag in tags[counted].tolist()) for tags in (true, guess))
        for true, guess, counted in zip(labels, predicted, labelled, strict=True)
    ]
    rows = np.asarray(logits[labelled], dtype=np.float64)
    return Judged(labels[labelled], predicted[labelled], rows, sentences)  # type: ignore[arg-type]


def _find(name: str) -> Metric:
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise UserError(f"unknown metric '{name}'.{hint} Or name one of the Hub's: evaluate/{name}.", key="metrics")
    return METRICS[name]


def _evaluate(name: str, judged: Judged, kind: Kind) -> float:
    labels, predicted = judged.labels, judged.predicted
    if kind == "tags":  # their names, sentence by sentence (seqeval, poseval)
        references, predictions = (list(side) for side in zip(*judged.sentences, strict=True))
        return _by_library(name, predictions, references)
    if kind == "values" and labels.shape[1] == 1:
        labels, predicted = labels[:, 0], predicted[:, 0]
    config = {"binary": "multilabel", "values": "multilist" if labels.ndim == 2 else None}.get(kind)
    return _by_library(name, predicted.tolist(), labels.tolist(), config)


def judge_texts(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return what a metric of the `evaluate` library says of generated texts.

    Raises:
        UserError: It cannot be loaded, or does not take texts.
    """
    return _by_library(name, list(predictions), list(references))


def _by_library(name: str, predictions: list[Any], references: list[Any], config: str | None = None) -> float:
    import numpy as np

    location, _, wanted = name.removeprefix(EVALUATE).partition("#")
    module = _load(location, config)
    try:
        results: dict[str, Any] = module.compute(predictions=predictions, references=references)
    # Metric scripts are anyone's code and fail in any way they like.
    except Exception as error:
        raise UserError(f"'{name}' does not fit this task's predictions: {_line(error)}", key="metrics") from error
    numbers = {key: float(value) for key, value in results.items() if isinstance(value, int | float | np.number)}
    if not wanted and len(numbers) == 1:
        wanted = next(iter(numbers))
    if wanted in numbers:
        return numbers[wanted]
    choices = ", ".join(f"'{EVALUATE}{location}#{key}'" for key in numbers)
    raise UserError(f"'{name}' is not one number. Choose one of: {choices or 'none'}.", key="metrics")


@cache
def _load(location: str, config: str | None) -> Any:
    import evaluate

    try:
        return evaluate.load(resolve(location, "metrics"), config, keep_in_memory=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot load 'evaluate/{location}': {_line(error)} The evaluate library gets its metrics from the Hub; "
            f"without it use one of {', '.join(METRICS)}, or the path of a metric script.",
            key="metrics",
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
