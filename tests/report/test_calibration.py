"""Figures of the report against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, recall_score

from hf_distill.report.calibration import by_label, calibration, confusion


def made_up(rows: int = 700, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probabilities, np.array([rng.choice(classes, p=row**0.5 / (row**0.5).sum()) for row in probabilities])


def test_calibration_bins_against_scikit_learn() -> None:
    """Bins shifted by one, or confidence of the wrong class, would call a bad student well calibrated."""
    probabilities, labels = made_up()
    found = calibration(probabilities, labels)
    accuracy, confidence = calibration_curve(
        probabilities.argmax(-1) == labels, probabilities.max(-1), n_bins=15, strategy="uniform"
    )
    assert [value for value in found.accuracy if value is not None] == pytest.approx(accuracy.tolist())
    assert [value for value in found.confidence if value is not None] == pytest.approx(confidence.tolist())
    counts = np.array([count for count in found.counts if count])
    assert found.ece == pytest.approx(float((counts / counts.sum() * np.abs(accuracy - confidence)).sum()))
    assert sum(found.counts) == len(labels)


def test_calibration_row_by_row() -> None:
    """The definition, in a loop: (0, 1/15], (1/15, 2/15], ..., confidence 1 in the last bin."""
    probabilities, labels = made_up(seed=1)
    probabilities[0] = [1.0, 0.0, 0.0, 0.0]
    probabilities[1] = [0.4, 0.2, 0.2, 0.2]  # 6/15: an edge
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities, labels, strict=True):
        inside = next(b for b in range(15) if row.max() <= np.linspace(0, 1, 16)[b + 1])
        bins.setdefault(inside, []).append((row.max(), row.argmax() == label))
    expected = sum(abs(sum(c for c, _ in rows) - sum(r for _, r in rows)) for rows in bins.values()) / len(labels)
    found = calibration(probabilities, labels)
    assert found.ece == pytest.approx(expected)
    assert {b: len(rows) for b, rows in bins.items()} == {b: n for b, n in enumerate(found.counts) if n}


def test_rows_without_label_do_not_count() -> None:
    """-100 read as a class would make every ignored row a wrong prediction."""
    probabilities, labels = made_up()
    masked = np.where(np.arange(len(labels)) % 3 == 0, -100, labels)
    kept = masked >= 0
    assert calibration(probabilities, masked) == calibration(probabilities[kept], labels[kept])
    guess = probabilities.argmax(-1)
    assert by_label({"student": guess}, masked) == by_label({"student": guess[kept]}, labels[kept])


def test_calibration_of_nothing() -> None:
    """An eval split whose labels are all ignored must not end a finished run."""
    assert calibration(np.zeros((0, 3)), np.zeros(0, dtype=int)).ece == 0.0


def test_confusion_against_scikit_learn() -> None:
    """Rows and columns exchanged would blame the teacher for what the student says."""
    rng = np.random.default_rng(0)
    teacher, student = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    found = confusion(student, teacher, list("abcde"))
    assert np.array_equal(found.counts, confusion_matrix(teacher, student))
    assert (found.names, found.left_out) == (tuple("abcde"), 0)


def test_confusion_keeps_the_most_confused_classes() -> None:
    """A full matrix over a vocabulary does not fit in memory; an arbitrary part of it hides what matters."""
    teacher = np.array([7] * 10 + [3] * 5 + [50_000] * 9 + [1, 2])
    student = np.array([9] * 10 + [7] * 5 + [50_000] * 9 + [1, 2])
    found = confusion(student, teacher, limit=3)
    assert found.names == ("3", "7", "9")
    assert found.counts == ((0, 5, 0), (0, 0, 10), (0, 0, 0))
    assert found.left_out == 50_001 - 3


def test_confusion_with_a_class_that_has_no_name() -> None:
    """A teacher with more classes than names must not end the run with an IndexError."""
    assert confusion(np.array([2, 0]), np.array([1, 0]), ["no", "yes"]).names == ("no", "yes", "2")


def test_confusion_of_nothing() -> None:
    """No rows, no crash."""
    assert confusion(np.array([], dtype=int), np.array([], dtype=int)).counts == ()


def test_groups_against_scikit_learn() -> None:
    """Accuracy by predicted class (precision) would look like accuracy by label (recall)."""
    probabilities, labels = made_up()
    guess = probabilities.argmax(-1)
    groups = by_label({"student": guess, "teacher": labels}, labels, list("abcd"))
    assert [group.accuracy["student"] for group in groups] == pytest.approx(
        recall_score(labels, guess, average=None).tolist()
    )
    assert {group.accuracy["teacher"] for group in groups} == {1.0}
    assert [group.count for group in groups] == np.bincount(labels).tolist()
