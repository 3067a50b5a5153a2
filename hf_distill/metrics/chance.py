"""What a model reaches that has learned nothing: one answer to every example, or answers that fit other examples."""

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

# They are not defined where one side is constant, which knows nothing of the other.
CORRELATIONS = ("pearson", "spearman")


@dataclass(frozen=True)
class Chance:
    """The headline metric without knowledge.

    Attributes:
        value: The better of the best constant answer and of answers that fit other examples.
        error: Standard deviation of the latter: how far chance alone may lift a model above the value.
        answer: Which answer it is, in words.
    """

    value: float
    error: float
    answer: str

    def explains(self, value: float, *, greater_is_better: bool) -> bool:
        """Whether a model with this value of the metric need not know anything (at the level of 5 %, two-sided)."""
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
    """Return what a model without knowledge reaches on an eval split.

    The answers that fit other examples are the model's own, against labels in a random order: a permutation test. Where
    the metric knows the true answers itself (spans), it is the model's answers that are put in a random order.

    Args:
        metrics: `(logits, labels) -> {name: value}`.
        metric: The one to look at.
        logits: The model's, `(rows, width)`, `(rows,)`, or `(rows, tokens, classes)`.
        labels: Class indices `(rows,)` or `(rows, tokens)`, negative for none; else `(rows, ...)`, NaN for none.
        kind: What the labels are: one class a row (or token), several, numbers, or the two ends of a span, of which the
            logits are `(rows, tokens, 2)`.
        names: Of the classes.
        greater_is_better: Of the metric.
        shuffles: Random orders.
        seed: Of them.

    Returns:
        None where the metric is not defined without knowledge.

    >>> from functools import partial
    >>> from hf_distill.metrics.score import score
    >>> logits, labels = np.eye(2)[[0, 0, 1, 0]], np.array([0, 1, 0, 0])
    >>> find_chance(partial(score, ["accuracy"], kind="classes"), "accuracy", logits, labels, kind="classes").value
    0.75
    """

    def judged(logits: Array, labels: Array) -> float:
        try:
            value = metrics(logits, labels).get(metric, math.nan)
        except ValueError:  # an order, or an answer, that the metric is not made for
            return math.nan
        return 0.0 if metric in CORRELATIONS and math.isnan(value) else value

    rng = np.random.default_rng(seed)
    shuffled = [judged(*_shuffled(logits, labels, kind, rng)) for _ in range(shuffles)]
    random = [value for value in shuffled if math.isfinite(value)]
    constant = [
        (judged(np.broadcast_to(answer, logits.shape), labels), words)
        for answer, words in _constants(logits, labels, kind, names)
    ]
    known = [(value, words) for value, words in constant if math.isfinite(value)]
    if random:
        known.append((mean(random), "the same answers to other examples"))
    if not known:
        return None
    # The first of equals: a constant answer is easier to imagine.
    value, words = (max if greater_is_better else min)(known, key=lambda one: one[0])
    return Chance(float(value), stdev(random) if len(random) > 1 else 0.0, words)


def uniform(classes: int) -> Chance:
    """Return the perplexity of a language model without knowledge: the number of tokens it chooses from.

    One that knows how frequent each token is has a lower one already: a teacher below this bound need not know much.

    Args:
        classes: Tokens that the head can choose from.

    >>> uniform(39)
    Chance(value=39.0, error=0.0, answer='all tokens equally likely')
    """
    return Chance(float(classes), 0.0, "all tokens equally likely")


def _shuffled(logits: Array, labels: Array, kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return logits and labels that do not belong together; positions without a label stay without."""
    if kind == "spans":
        return rng.permutation(logits), labels
    if kind != "classes":
        return logits, rng.permutation(labels)
    found = labels.copy()
    found[labels >= 0] = rng.permutation(labels[labels >= 0])
    return logits, found


def _constants(logits: Array, labels: Array, kind: str, names: Sequence[str] | None) -> Iterator[tuple[Array, str]]:
    """Yield constant answers, in the shape of one row's logits, that may do best, and what they are called."""
    if kind == "classes":
        counts = np.bincount(labels[labels >= 0].astype(int), minlength=logits.shape[-1])[: logits.shape[-1]]
        # Of two classes F1 looks at one only, which need not be the more frequent.
        usual = np.argsort(-counts, kind="stable")[: 2 if len(counts) == 2 else 1].tolist()
        for label in usual:
            name = names[label] if names is not None and label < len(names) else str(label)
            yield np.eye(len(counts))[label], f"always '{name}'"
        return
    if kind == "spans":
        # At the first token, which often stands for "no answer"; else the first words.
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
        # `(rows,)` numbers may be the `(rows, 1)` logits of a head.
        yield np.broadcast_to(answer, logits.shape[1:]), "the same number every time"
