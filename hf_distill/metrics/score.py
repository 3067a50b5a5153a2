"""Check before training that metrics fit the task's predictions, and compute them."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_distill.data.label_names import shorten
from hf_distill.errors import UserError, did_you_mean
from hf_distill.metrics.evaluate_library import EVALUATE, check_evaluate, compute
from hf_distill.metrics.function import is_function
from hf_distill.metrics.table import METRICS, PLAIN_TAGS, Kind, LabelledPredictions, Metric, Undefined, why_undefined

if TYPE_CHECKING:
    import numpy as np


def marks_spans(label_names: Sequence[str] | None) -> bool:
    """Return whether tags mark spans, as `B-PER`, `I-PER`, `O` do (BIO, also with `E-` for last and `S-` for single).

    >>> marks_spans(["O", "B-PER", "I-PER"]), marks_spans(["NOUN", "VERB"])
    (True, False)
    """
    names = set(label_names or ()) - {"O"}
    return bool(names) and all(re.fullmatch(r"[BIES]-.+", name) for name in names)


def greater_is_better(name: str) -> bool:
    """Return whether a greater value of a metric is better; for `evaluate/...` and functions their name decides."""
    if name.startswith(EVALUATE) or is_function(name):
        stem = name.replace("#", "/").rstrip("/").rpartition("/")[2].removesuffix(".py").rpartition(":")[2]
        return not any(stem == word or stem.endswith((f"_{word}", "_error", "_loss")) for word in _ERRORS)
    return _find(name).greater_is_better


_ERRORS = ("mse", "mae", "rmse", "mape", "smape", "mase", "wer", "cer", "ter", "perplexity", "brier_score", "log_loss")


def shown_kind(kind: Kind, width: int) -> Kind:
    """Return the kind under which predictions are evaluated: a single yes/no label counts as one of two classes."""
    return "classes" if kind == "binary" and width == 1 else kind


def check_names(names: Sequence[str]) -> None:
    """Refuse unknown names of metrics, before the kind of predictions is known.

    Raises:
        UserError: One line for each unknown name; names of the `evaluate` library are not looked up.
    """
    mistakes: list[str] = []
    for name in names:
        try:
            greater_is_better(name)
        except UserError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UserError(*mistakes)


def check(names: Sequence[str], kind: Kind, num_labels: int, label_names: Sequence[str] | None = None) -> None:
    """Refuse metrics that cannot be computed, before anything is trained.

    Metrics of the `evaluate` library are loaded and tried on perfect predictions. Their code comes from the Hub and
    runs in this process.

    Args:
        names: From `METRICS`; `evaluate/<id or local path>`, where `evaluate/squad#f1` selects one of several values;
            or `module:function`, for generated texts.
        kind: What the task predicts.
        num_labels: Width of the head.
        label_names: Names of the tags, if they have any.

    Raises:
        UserError: A name is unknown, or its metric does not fit.
    """
    for name in names:
        if name.startswith(EVALUATE):
            check_evaluate(name, kind, num_labels, label_names)
        elif is_function(name):
            if kind != "texts":
                raise UserError(
                    f"'{name}' is a function of generated texts, and this task generates none here. Use "
                    f"{', '.join(known for known, metric in METRICS.items() if kind in metric.kinds)}.",
                    key="metrics",
                )
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
                f"'{name}' is not a metric of {what}, which this task predicts. Use {', '.join(fitting)}.",
                key="metrics",
            )
        elif name.startswith("span_") and not marks_spans(label_names):
            raise UserError(
                f"'{name}' is a metric of spans, which need tags such as B-PER, I-PER and O; found "
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
        labels: Class indices `(rows,)`, with -100 for no label; 0 or 1 `(rows, labels)`, or numbers, with a row of NaN
            for no label; for tags `(rows, tokens)`, negative for no label.
        kind: What the task predicts.
        label_names: Names of the tags, if they have any.

    Returns:
        Plain floats; NaN with its reason (`table.Undefined`) if a metric is not defined (correlation with a constant)
        or infinite, if no row has a label, or if the model predicted NaN, which `argmax` would take for class 0.

    >>> import numpy as np
    >>> score(["accuracy", "f1"], np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, -100]), "classes")
    {'accuracy': 1.0, 'f1': 1.0}
    """
    import numpy as np

    predictions = (
        _tag_predictions(logits, labels, label_names) if kind == "tags" else _row_predictions(logits, labels, kind)
    )
    finite = not np.isnan(predictions.logits).any() and (kind != "values" or np.isfinite(predictions.logits).all())
    if len(predictions.labels) == 0:
        return dict.fromkeys(names, Undefined("no row has a label"))
    if not finite:
        return dict.fromkeys(names, Undefined("the predictions are NaN or infinite"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they all say that a value is undefined, which the NaN says too
        shown: Kind = "classes" if kind == "binary" and predictions.labels.ndim == 1 else kind
        values = {
            name: compute(name, predictions, shown) if name.startswith(EVALUATE) else _find(name).compute(predictions)
            for name in names
        }
    return {
        name: value if math.isfinite(value) else Undefined(why_undefined(predictions, value))
        for name, value in values.items()
    }


def row_scores(name: str, logits: np.ndarray, labels: np.ndarray, kind: Kind) -> np.ndarray | None:
    """Return the score of each row, `(rows,)`, of a metric that is their mean; NaN for rows without a label.

    It saves a bootstrap from computing the metric anew for each sample.

    Args:
        name: As in `check`.
        logits: As in `score`.
        labels: As in `score`.
        kind: What the task predicts.

    Returns:
        None for other metrics, and where a prediction is not finite, of which `score` tells.
    """
    import numpy as np

    by_row = METRICS[name].by_row if name in METRICS and kind != "tags" else None
    if by_row is None or not np.isfinite(logits).all():
        return None
    columns = np.asarray(labels).reshape(len(labels), -1)
    labelled = columns[:, 0] != -100 if kind == "classes" else ~np.isnan(columns.astype(np.float64)).any(-1)
    found = np.full(len(labels), np.nan)
    found[labelled] = by_row(_row_predictions(logits, labels, kind))
    return found


def _row_predictions(logits: np.ndarray, labels: np.ndarray, kind: Kind) -> LabelledPredictions:
    import numpy as np

    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    if kind == "classes":
        labelled = labels != -100
        return LabelledPredictions(labels[labelled].astype(int), logits[labelled].argmax(-1), logits[labelled])
    logits, labels = (array if array.ndim == 2 else array[:, None] for array in (logits, labels.astype(np.float64)))
    labelled = ~np.isnan(labels).any(-1)
    logits, labels = logits[labelled], labels[labelled]
    if kind == "binary" and logits.shape[1] == 1:
        one = logits[:, 0]
        return LabelledPredictions(
            (labels[:, 0] > 0.5).astype(int), (one > 0).astype(int), np.stack([np.zeros_like(one), one], -1)
        )
    if kind == "binary":
        return LabelledPredictions((labels > 0.5).astype(int), (logits > 0).astype(int), logits)
    return LabelledPredictions(labels, logits, logits)


def _tag_predictions(logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> LabelledPredictions:
    import numpy as np

    labels, predicted = np.asarray(labels), np.asarray(logits).argmax(-1)
    called = tuple(names or map(str, range(logits.shape[-1])))
    labelled = labels >= 0
    sentences = [
        tuple(tuple(called[tag] for tag in tags[counted].tolist()) for tags in (true, guess))
        for true, guess, counted in zip(labels, predicted, labelled, strict=True)
    ]
    rows = np.asarray(logits[labelled], dtype=np.float64)
    return LabelledPredictions(labels[labelled], predicted[labelled], rows, sentences)  # type: ignore[arg-type]


def _find(name: str) -> Metric:
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise UserError(f"unknown metric '{name}'.{hint} Or name one of the Hub's: evaluate/{name}.", key="metrics")
    return METRICS[name]
