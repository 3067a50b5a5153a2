"""Compute calibration, confusion with the teacher, and accuracy by label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """How far a model's confidence is from its accuracy.

    Attributes:
        ece: Expected calibration error, 0 to 1.
        counts: Predictions in each bin of confidence; the bins divide 0 to 1 evenly.
        confidence: Mean confidence of each bin; None for an empty one.
        accuracy: Share of correct predictions of each bin; None for an empty one.
    """

    ece: float
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]

    @property
    def error(self) -> float:
        """Standard error of the accuracy: the uncertainty of a calibration error is at least this."""
        rows = max(sum(self.counts), 1)
        right = sum(n * share for n, share in zip(self.counts, self.accuracy, strict=True) if share is not None) / rows
        return math.sqrt(max(right * (1 - right), 0.0) / rows)


def calibration(probabilities: Array, labels: Array, bins: int = 15) -> Calibration:
    """Return the expected calibration error of the most likely class, and its bins.

    `sum_b n_b / n * |accuracy_b - confidence_b|`, bins of equal width, closed at the upper end (Guo et al. 2017,
    arXiv 1706.04599, equation 3).

    Args:
        probabilities: `(rows, classes)`, each row sums to 1.
        labels: `(rows,)`, class indices; rows with a negative one are left out.
        bins: Number of bins.

    >>> round(calibration(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0])).ece, 6)
    0.4
    """
    labelled = labels >= 0
    probabilities, labels = probabilities[labelled], labels[labelled]
    # Upper edges inclusive: `right=True` gives edge[i - 1] < confidence <= edge[i].
    confidence = probabilities.max(-1).astype(np.float64)
    place = np.clip(np.digitize(confidence, np.linspace(0.0, 1.0, bins + 1), right=True) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    confident = np.bincount(place, confidence, bins)
    right = np.bincount(place, probabilities.argmax(-1) == labels, bins)
    rows = max(len(labels), 1)
    return Calibration(
        ece=float(np.abs(right - confident).sum() / rows),
        counts=tuple(int(count) for count in counts),
        confidence=_means(confident, counts),
        accuracy=_means(right, counts),
    )


def _means(sums: Array, counts: Array) -> tuple[float | None, ...]:
    return tuple(float(total / count) if count else None for total, count in zip(sums, counts, strict=True))


@dataclass(frozen=True)
class Confusion:
    """Counts of the student's predictions for each prediction of the teacher.

    Attributes:
        names: Class names.
        counts: `counts[i][j]`: number of rows for which the teacher predicts class i and the student class j.
        left_out: Number of classes that are not shown; their rows are not in `counts`.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    left_out: int = 0


def confusion(student: Array, teacher: Array, names: Sequence[str] | None = None, *, limit: int = 20) -> Confusion:
    """Count predictions of the student against those of the teacher.

    Args:
        student: Predicted class indices, any shape.
        teacher: The teacher's predicted class indices, same shape; negative ones are not counted.
        names: Names of the classes; their numbers if None.
        limit: Number of classes to show, those with the most disagreements: a vocabulary would not fit in memory.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), ["no", "yes"]).counts
    ((1, 1), (0, 1))
    """
    counted = (teacher >= 0) & (student >= 0)
    student, teacher = student[counted].ravel(), teacher[counted].ravel()
    different = student != teacher
    classes = max(len(names or ()), int(student.max(initial=-1)) + 1, int(teacher.max(initial=-1)) + 1)
    confused = np.bincount(np.concatenate((student[different], teacher[different])), minlength=classes)
    # A stable sort: of equally confused classes the lower index comes first, so that a report is reproducible.
    kept = np.sort(np.argsort(-confused, kind="stable")[:limit])
    place = np.full(classes, -1)
    place[kept] = np.arange(len(kept))
    rows, columns = place[teacher], place[student]
    shown = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[shown] * len(kept) + columns[shown], minlength=len(kept) ** 2).reshape(
        len(kept), len(kept)
    )
    return Confusion(
        names=tuple(_name(index, names) for index in kept.tolist()),
        counts=tuple(tuple(int(count) for count in row) for row in counts),
        left_out=classes - len(kept),
    )


def _name(label: int, names: Sequence[str] | None) -> str:
    # A teacher may have more classes than the recipe names.
    return names[label] if names is not None and label < len(names) else str(label)


@dataclass(frozen=True)
class Group:
    """The accuracy of each model on a part of the eval split.

    Attributes:
        name: Name of the group.
        count: Number of labelled rows in it.
        accuracy: Model -> share of correct predictions.
    """

    name: str
    count: int
    accuracy: Mapping[str, float]


def by_label(
    predictions: Mapping[str, Array], labels: Array, names: Sequence[str] | None = None, *, limit: int = 50
) -> tuple[Group, ...]:
    """Return the accuracy on the rows of each label, since an average hides a class that the student never predicts.

    Args:
        predictions: Model -> predicted class indices `(rows,)`.
        labels: `(rows,)`; negative ones are left out.
        names: Names of the classes; their numbers if None.
        limit: Number of labels to return, the most frequent ones.

    >>> by_label({"student": np.array([0, 0, 1])}, np.array([0, 1, 1]), ["no", "yes"])[1]
    Group(name='yes', count=2, accuracy={'student': 0.5})
    """
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:limit])
    return tuple(
        Group(
            name=_name(label, names),
            count=int(count),
            accuracy={model: float((guess[labels == label] == label).mean()) for model, guess in predictions.items()},
        )
        for label, count in zip(present[kept].tolist(), counts[kept], strict=True)
    )
