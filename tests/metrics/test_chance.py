"""What a model reaches that has learned nothing, against numbers worked out by hand: `hf_distill/metrics/chance.py`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from hf_distill.metrics.answers import Questions
from hf_distill.metrics.chance import Chance, find_chance, uniform
from hf_distill.metrics.score import score

Array = np.ndarray[Any, Any]


def classes(labels: Array, share_right: float, width: int, seed: int = 1) -> Array:
    """Return logits that are right on this share of the labels, and any class elsewhere."""
    rng = np.random.default_rng(seed)
    guesses = np.where(rng.random(labels.shape) < share_right, labels, rng.integers(0, width, labels.shape))
    return np.eye(width)[np.maximum(guesses, 0)]


def found(logits: Array, labels: Array, metric: str, kind: Any, names: Any = None, greater: bool = True) -> Chance:
    of_metrics = "tags" if labels.ndim == 2 and kind == "classes" else kind
    metrics = partial(score, [metric], kind=of_metrics, label_names=names)
    chance = find_chance(metrics, metric, logits, labels, kind=kind, names=names, greater_is_better=greater)
    assert chance is not None
    return chance


def test_the_majority_is_what_accuracy_is_measured_against() -> None:
    """90 % accuracy where 95 % of the rows are of one class is what nobody needs a teacher for."""
    labels = np.array([0] * 950 + [1] * 50 + [-100] * 500)
    chance = found(classes(labels, 0.9, 2), labels, "accuracy", "classes", ("no", "yes"))
    assert (chance.value, chance.answer) == (0.95, "always 'no'")
    assert chance.explains(0.90, greater_is_better=True)
    assert not chance.explains(0.99, greater_is_better=True)


def test_a_perplexity_is_measured_against_all_tokens_equally_likely() -> None:
    """A language model without knowledge is the uniform one, whose perplexity is the number of tokens: below, a
    teacher knows something; at it or above, it does not."""
    losses = np.full(7, math.log(39))
    chance = uniform(39)
    assert chance.value == pytest.approx(math.exp(losses.mean()))
    assert chance.explains(39.45, greater_is_better=False)
    assert chance.explains(39.0, greater_is_better=False)
    assert not chance.explains(26.15, greater_is_better=False)


@pytest.mark.parametrize(
    ("metric", "value", "answer"),
    [
        ("accuracy", 0.8, "always 'no'"),
        ("f1", 2 * 0.2 / 1.2, "always 'yes'"),  # precision 0.2, recall 1
        ("mcc", 0.0, "always 'no'"),
        ("balanced_accuracy", 0.5, "always 'no'"),
    ],
)
def test_every_metric_has_a_chance_of_its_own(metric: str, value: float, answer: str) -> None:
    """An F1 of 0.33 against "always the majority", whose F1 is 0, would look like knowledge."""
    labels = np.array([0] * 80 + [1] * 20)
    constant = np.eye(2)[np.zeros(100, int)]
    chance = found(constant, labels, metric, "classes", ("no", "yes"))
    assert (chance.value, chance.answer) == (pytest.approx(value), answer)
    assert chance.error == 0.0, "a model that always says the same is not lifted by chance"


def test_chance_lifts_a_guesser_as_far_as_probability_says() -> None:
    """A coin that is right on 54 of 100 rows is a coin: its standard deviation is 5 rows."""
    labels = np.arange(100) % 2
    guesses = np.eye(2)[np.random.default_rng(3).integers(0, 2, 100)]
    chance = found(guesses, labels, "accuracy", "classes")
    assert chance.value == pytest.approx(0.5, abs=0.02)
    assert chance.error == pytest.approx(0.05, rel=0.4)  # of 20 draws
    assert chance.explains(0.54, greater_is_better=True)
    assert not chance.explains(0.8, greater_is_better=True)


def test_classes_of_words() -> None:
    """Nine in ten words are outside of every entity, and `always 'O'` finds none of the entities."""
    rng = np.random.default_rng(0)
    names = ("O", "B-PER", "B-LOC")
    labels = np.where(rng.random((60, 12)) < 0.9, 0, rng.integers(1, 3, (60, 12)))
    labels[:, 9:] = -100
    share = float((labels[:, :9] == 0).mean())
    logits = classes(labels, 0.0, 3)
    assert found(logits, labels, "token_accuracy", "classes", names).value == pytest.approx(share)
    spans = found(logits, labels, "span_f1", "classes", names)
    assert spans.answer == "shuffled predictions"
    own = score(["span_f1"], logits, labels, "tags", names)["span_f1"]
    assert own > 0.0
    assert spans.explains(own, greater_is_better=True), "guesses hit an entity now and then"
    right = score(["span_f1"], classes(labels, 0.8, 3), labels, "tags", names)["span_f1"]
    assert not spans.explains(right, greater_is_better=True)


def test_several_labels() -> None:
    """Where most labels hold most of the time, all of them every time have a high F1."""
    labels = (np.random.default_rng(0).random((500, 3)) < np.array([0.9, 0.6, 0.2])).astype(float)
    labels[:20] = math.nan
    logits = np.random.default_rng(1).normal(size=labels.shape)
    known = labels[20:]
    usual = np.stack([known[:, 0] * 0 + 1, known[:, 0] * 0 + 1, known[:, 0] * 0], -1)
    right = (usual * known).sum()
    chance = found(logits, labels, "f1_micro", "binary")
    assert chance.value == pytest.approx(2 * right / (usual.sum() + known.sum()))
    assert chance.answer == "the same labels every time"
    assert found(logits, labels, "hamming_loss", "binary", greater=False).value == pytest.approx(
        float((usual != known).mean())
    )


@pytest.mark.parametrize("shape", [(300,), (300, 1)])
def test_numbers(shape: tuple[int, ...]) -> None:
    """The mean is the best constant for a squared error, the median for an absolute one; it correlates with nothing."""
    labels = np.random.default_rng(0).gamma(1.0, size=300)
    logits = np.random.default_rng(1).normal(size=shape)
    squared = found(logits, labels, "mse", "values", greater=False)
    assert squared.value == pytest.approx(labels.var())
    assert squared.explains(labels.var(), greater_is_better=False)
    assert not squared.explains(0.01, greater_is_better=False)
    absolute = found(logits, labels, "mae", "values", greater=False)
    assert absolute.value == pytest.approx(np.abs(labels - np.median(labels)).mean())
    assert found(logits, labels, "r2", "values").value == pytest.approx(0.0)
    correlated = found(logits, labels, "pearson", "values")
    assert correlated.value == pytest.approx(0.0, abs=0.03)
    assert correlated.error == pytest.approx(1 / math.sqrt(299), rel=0.5)
    assert not correlated.explains(0.3, greater_is_better=True)


@pytest.mark.parametrize("unanswered", [0, 30])
def test_spans(unanswered: int) -> None:
    """On SQuAD 2.0 half of the questions have no answer: saying so every time is half right and knows nothing."""
    rng = np.random.default_rng(0)
    words = [list(rng.permutation([f"w{number}" for number in range(9)])) for _ in range(40)]
    places = rng.integers(0, 9, 40)
    answers = [[] if row < unanswered else [words[row][places[row]]] for row in range(40)]
    logits = rng.normal(size=(40, 10, 2))
    for row, place in enumerate(places):
        logits[row, 0 if row < unanswered else 1 + place] += 4.0
    questions = Questions(
        names=("exact_match", "f1"),
        contexts=[" ".join(row) for row in words],
        answers=answers,
        row=range(40),
        starts=[np.array([0, *range(0, 27, 3)])] * 40,
        ends=[np.array([0, *range(2, 27, 3)])] * 40,
        allowed=[np.arange(10) > 0] * 40,
        nothing=[0 if unanswered else -1] * 40,
        longest=1,
    )
    chance = find_chance(questions.metrics, "f1", logits, np.zeros((40, 2)), kind="spans", shuffles=3)
    assert chance is not None
    always_first = unanswered / 40 if unanswered else float((places == 0).mean())
    assert chance.value >= always_first
    assert chance.value == pytest.approx(always_first, abs=0.12)
    if unanswered:
        assert (chance.value, chance.answer) == (0.75, "the same positions every time")
    own = questions.metrics(logits)["f1"]
    assert own > 0.9
    assert not chance.explains(own, greater_is_better=True)
    assert chance.explains(questions.metrics(rng.normal(size=logits.shape))["f1"], greater_is_better=True)


def test_a_metric_that_refuses_does_not_end_a_run() -> None:
    """The figure is computed at the end of hours of training, with metrics that anyone may have written."""

    def refuse(logits: Array, labels: Array) -> dict[str, float]:
        raise ValueError("only on Sundays")

    labels = np.array([0, 1])
    assert find_chance(refuse, "own", np.eye(2), labels, kind="classes") is None
    assert find_chance(lambda *_: {}, "own", np.eye(2), labels, kind="classes") is None
    assert find_chance(lambda *_: {"own": 1.0}, "own", np.eye(2), np.array([math.nan, math.nan]), kind="values")
