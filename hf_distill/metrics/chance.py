"""The score of a trivial guesser: a constant prediction, or the model's predictions shuffled over the examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Metrics = Callable[[Array, Array], Mapping[str, float]]

# Correlations are not defined if one side is constant; for a trivial guesser they count as 0.
CORRELATIONS = ("pearson", "spearman")


@dataclass(frozen=True)
class Chance:
    """The headline metric of a trivial guesser.

    Attributes:
        value: The better of two scores: that of the best constant prediction, and the mean of shuffled predictions.
        error: Standard deviation over shuffles: how far a model may be above `value` by chance alone.
        answer: Which of the two it is, in words.
    """

    value: float
    error: float
    answer: str

    def explains(self, value: float, *, greater_is_better: bool) -> bool:
        """Return whether a model's score is not significantly better than a trivial guess (5 % level, two-sided)."""
        ahead = value - self.value if greater_is_better else self.value - value
        return ahead <= 1.96 * self.error


def find_chance(
    metrics: Metrics,
    metric: str,
    logits: Array,
    labels: Array,
    *,
    kind: Literal["classes", "binary", "values", "spans"],
    names: Sequence[str] | None = None,
    greater_is_better: bool = True,
    shuffles: int = 20,
    seed: int = 0,
) -> Chance | None:
    """Return the score of a trivial guesser on an eval split.

    The model's predictions are compared with labels in a random order (a permutation test). If the metric itself knows
    the true answers (spans), the predictions are put in a random order instead.

    Args:
        metrics: `(logits, labels) -> {name: value}`.
        metric: Name of the metric.
        logits: The model's logits, `(rows, width)`, `(rows,)`, or `(rows, tokens, classes)`.
        labels: Class indices `(rows,)` or `(rows, tokens)`, negative for none; else `(rows, ...)`, NaN for none.
        kind: What the labels are: one class per row (or token), several labels, numbers, or the two ends of a span,
            whose logits are `(rows, tokens, 2)`.
        names: Names of the classes.
        greater_is_better: Whether a greater value of the metric is better.
        shuffles: Number of random orders.
        seed: Seed of the random orders.

    Returns:
        The score; None if the metric is not defined for trivial guesses.

    >>> from functools import partial
    >>> from hf_distill.metrics.score import score
    >>> logits, labels = np.eye(2)[[0, 0, 1, 0]], np.array([0, 1, 0, 0])
    >>> find_chance(partial(score, ["accuracy"], kind="classes"), "accuracy", logits, labels, kind="classes").value
    0.75
    """

    def evaluate(logits: Array, labels: Array) -> float:
        try:
            value = metrics(logits, labels).get(metric, math.nan)
        except ValueError:  # the metric does not accept this order or constant
            return math.nan
        return 0.0 if metric in CORRELATIONS and math.isnan(value) else value

    rng = np.random.default_rng(seed)
    shuffled = [evaluate(*_shuffled(logits, labels, kind, rng)) for _ in range(shuffles)]
    random = [value for value in shuffled if math.isfinite(value)]
    constant = [
        (evaluate(np.broadcast_to(answer, logits.shape), labels), words)
        for answer, words in _constants(logits, labels, kind, names)
    ]
    known = [(value, words) for value, words in constant if math.isfinite(value)]
    if random:
        known.append((mean(random), "shuffled predictions"))
    if not known:
        return None
    # Of equal values the first: a constant prediction is easier to understand.
    value, words = (max if greater_is_better else min)(known, key=lambda one: one[0])
    return Chance(float(value), stdev(random) if len(random) > 1 else 0.0, words)


def uniform(classes: int) -> Chance:
    """Return the perplexity of a uniform distribution over the vocabulary: the number of tokens.

    A model that only knows the frequencies of tokens is below it already, so a teacher below it may still be poor.

    Args:
        classes: Number of tokens in the vocabulary.

    >>> uniform(39)
    Chance(value=39.0, error=0.0, answer='all tokens equally likely')
    """
    return Chance(float(classes), 0.0, "all tokens equally likely")


def _shuffled(logits: Array, labels: Array, kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return logits and labels in different orders; positions without a label still have none."""
    if kind == "spans":
        return rng.permutation(logits), labels
    if kind != "classes":
        return logits, rng.permutation(labels)
    found = labels.copy()
    found[labels >= 0] = rng.permutation(labels[labels >= 0])
    return logits, found


def _constants(logits: Array, labels: Array, kind: str, names: Sequence[str] | None) -> Iterator[tuple[Array, str]]:
    """Yield constant predictions that may score best, in the shape of one row's logits, and their names."""
    if kind == "classes":
        counts = np.bincount(labels[labels >= 0].astype(int), minlength=logits.shape[-1])[: logits.shape[-1]]
        # Both of two classes: F1 counts only one of them, which may be the less frequent.
        usual = np.argsort(-counts, kind="stable")[: 2 if len(counts) == 2 else 1].tolist()
        for label in usual:
            name = names[label] if names is not None and label < len(names) else str(label)
            yield np.eye(len(counts))[label], f"always '{name}'"
        return
    if kind == "spans":
        # The first token, which often stands for "no answer".
        yield np.eye(1, logits.shape[1]).T.repeat(logits.shape[2], 1), "the same positions every time"
        return
    known = labels[~np.isnan(labels.reshape(len(labels), -1).astype(float)).any(-1)].astype(float)
    if not len(known):
        return
    if kind == "binary":
        yield np.where(known.mean(0) > 0.5, 1.0, -1.0), "the same labels every time"
        yield np.ones(known.shape[1:]), "all labels every time"
        return
    for answer in (known.mean(0), np.median(known, axis=0)):
        # Labels may be `(rows,)` while the logits are `(rows, 1)`.
        yield np.broadcast_to(answer, logits.shape[1:]), "the same number every time"
