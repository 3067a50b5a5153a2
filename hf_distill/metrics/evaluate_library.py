"""Metrics of the `evaluate` library, loaded from the Hub or from a script on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from hf_distill.errors import UserError
from hf_distill.locations import resolve
from hf_distill.metrics.table import DEFAULTS, METRICS, Kind, LabelledPredictions
from hf_distill.outside import may_run

EVALUATE = "evaluate/"


def check_evaluate(name: str, kind: Kind, num_labels: int, label_names: Sequence[str] | None) -> None:
    """Load a metric and try it on perfect predictions.

    Args:
        name: `evaluate/<id or local path>`.
        kind: What the task predicts.
        num_labels: Width of the head.
        label_names: Names of the tags, if there are any.

    Raises:
        UserError: It cannot be loaded, or does not fit the task.
    """
    import numpy as np

    if kind == "tokens":
        raise UserError(
            f"'{name}' needs predictions, and those of a language model are not stored. Use "
            f"{', '.join(DEFAULTS[kind])}.",
            key="metrics",
        )
    if kind == "spans":
        raise UserError(
            f"'{name}' does not fit question answering, which is evaluated by SQuAD's own metrics. Use "
            f"{', '.join(DEFAULTS[kind])}.",
            key="metrics",
        )
    if not may_run():
        return
    if kind == "texts":
        compute_on_texts(name, ["a text"], ["a text"])
        return
    labels = np.arange(max(num_labels, 2))
    if kind in ("binary", "values"):
        labels = np.stack([np.arange(4) % 2] * num_labels, -1).astype(int if kind == "binary" else float)
    tags = tuple(label_names or map(str, labels.tolist()))
    compute(name, LabelledPredictions(labels, labels, labels, [(tags, tags)]), kind)


def check_here(names: Sequence[str]) -> None:
    """Load those metrics that are scripts on this machine, so that missing packages show before training.

    Raises:
        UserError: A script cannot be loaded.
    """
    for name in names:
        if name.startswith(EVALUATE) and is_here(name) and may_run():
            _load(_location(name), None)


def is_here(name: str) -> bool:
    """Return whether a metric needs no download from the Hub."""
    return not name.startswith(EVALUATE) or os.path.exists(resolve(_location(name), "metrics"))


def _location(name: str) -> str:
    return name.removeprefix(EVALUATE).partition("#")[0]


def compute(name: str, predictions: LabelledPredictions, kind: Kind) -> float:
    """Return the value of a metric for predictions.

    Raises:
        UserError: It cannot be loaded, or does not accept these predictions.
    """
    labels, predicted = predictions.labels, predictions.predicted
    if kind == "tags":  # seqeval and poseval want names, sentence by sentence
        references, tags = (list(side) for side in zip(*predictions.sentences, strict=True))
        return _by_library(name, tags, references)
    if kind == "values" and labels.shape[1] == 1:
        labels, predicted = labels[:, 0], predicted[:, 0]
    config = {"binary": "multilabel", "values": "multilist" if labels.ndim == 2 else None}.get(kind)
    return _by_library(name, predicted.tolist(), labels.tolist(), config)


def compute_on_texts(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the value of a metric for generated texts.

    Raises:
        UserError: It cannot be loaded, or does not accept texts.
    """
    return _by_library(name, list(predictions), list(references))


def _by_library(name: str, predictions: list[Any], references: list[Any], config: str | None = None) -> float:
    import numpy as np

    location, _, wanted = name.removeprefix(EVALUATE).partition("#")
    module = _load(location, config)
    try:
        results: dict[str, Any] = module.compute(predictions=predictions, references=references)
    # Metric scripts are third-party code and may raise any exception.
    except Exception as error:
        raise UserError(f"'{name}' does not accept this task's predictions: {_line(error)}", key="metrics") from error
    numbers = {key: float(value) for key, value in results.items() if isinstance(value, int | float | np.number)}
    if not wanted and len(numbers) == 1:
        wanted = next(iter(numbers))
    if wanted in numbers:
        return numbers[wanted]
    choices = ", ".join(f"'{EVALUATE}{location}#{key}'" for key in numbers)
    raise UserError(f"'{name}' returns several values. Choose one of: {choices or 'none'}.", key="metrics")


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
