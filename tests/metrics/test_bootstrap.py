"""The noise of a gain, against its formula and against metrics computed anew: `hf_distill/metrics/bootstrap.py`."""

from __future__ import annotations

import numpy as np
import pytest

from hf_distill.metrics.bootstrap import Units, gain_error
from hf_distill.metrics.text import has_units, score_texts, units_of_texts


def of_accuracy(logits: np.ndarray, labels: np.ndarray) -> Units:
    return Units(
        (logits, labels), lambda some, true: float((some.argmax(-1) == true).mean()), np.ones(len(labels), dtype=bool)
    )


def of_texts(name: str, student: list[str], baseline: list[str], references: list[str]) -> float | None:
    own, other = (units_of_texts(name, texts, references) for texts in (student, baseline))
    assert own is not None
    assert other is not None
    return gain_error(own, other)


def test_gain_error_is_that_of_paired_differences() -> None:
    """Two models on the same rows err together: the unpaired error would call every real gain noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    student = np.eye(2)[labels] + rng.normal(size=(2000, 2))
    baseline = student + 0.3 * rng.normal(size=(2000, 2))
    difference = (student.argmax(-1) == labels).astype(float) - (baseline.argmax(-1) == labels)
    own, other = of_accuracy(student, labels), of_accuracy(baseline, labels)
    found = gain_error(own, other, samples=600)
    assert found == pytest.approx(difference.std() / np.sqrt(2000), rel=0.12)
    assert found == gain_error(own, other, samples=600)


def test_gain_error_of_an_undefined_metric() -> None:
    """A metric that is NaN on resampled rows must give no error bar, not a NaN one."""

    def undefined(values: np.ndarray) -> float:
        return float("nan")

    def refuses(values: np.ndarray) -> float:
        raise ValueError("only one class present")

    for metric in (undefined, refuses):
        units = Units((np.ones(4),), metric, np.ones(4, dtype=bool))
        assert gain_error(units, units) is None
    none = Units((np.ones(4),), lambda values: float(values.mean()), np.zeros(4, dtype=bool))
    assert gain_error(none, none) is None


def texts(right: float, seed: int) -> tuple[list[str], list[str]]:
    """Return texts in which a share of the words is that of the references, and these."""
    rng = np.random.default_rng(seed)
    words = np.array(["film", "plot", "cast", "story", "scene", "great", "dull", "moving", "bad", "."])
    true = np.random.default_rng(0).choice(words, (60, 8))
    made = np.where(rng.random(true.shape) < right, true, rng.choice(words, true.shape))
    return [" ".join(row) for row in made], [" ".join(row) for row in true]


@pytest.mark.parametrize("name", ["rouge2", "rougeLsum", "bleu", "chrf"])
def test_the_noise_of_texts_is_that_of_the_metric_computed_anew(name: str) -> None:
    """The mean of sentence scores has another spread than a score of the corpus; and models resampled apart have more.
    Also the canary of what sacrebleu counts in a text: it has no public name."""
    (student, references), (baseline, _) = texts(0.8, 1), texts(0.6, 2)
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(100):
        rows = rng.integers(0, 60, 60)
        own, other, true = ([side[row] for row in rows] for side in (student, baseline, references))
        gains.append(score_texts([name], own, true)[name] - score_texts([name], other, true)[name])
    error = of_texts(name, student, baseline, references)
    assert error == pytest.approx(np.std(gains, ddof=1), rel=1e-9)
    assert error > 0


def test_the_noise_of_rouge_is_the_standard_error_of_its_mean() -> None:
    """A bootstrap with another number of rows, or unpaired, is off by a factor and looks the same."""
    (student, references), (baseline, _) = texts(0.8, 1), texts(0.6, 2)
    pairs = zip(student, baseline, references, strict=True)
    gains = [
        score_texts(["rouge1"], [a], [t])["rouge1"] - score_texts(["rouge1"], [b], [t])["rouge1"] for a, b, t in pairs
    ]
    found = np.random.default_rng(0).choice(gains, (2000, len(gains))).mean(axis=1).std()
    assert of_texts("rouge1", student, baseline, references) == pytest.approx(found, rel=0.2)
    assert units_of_texts("evaluate/own", student, references) is None
    assert not has_units("evaluate/own")
