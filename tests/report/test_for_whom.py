"""For whom it got worse: the comparison by group, its sentences, and the metrics of fairness."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import fairlearn.metrics
import numpy as np
import pytest
import scipy.stats
from reports import by_group, whole

from hf_distill.metrics.bootstrap import Units
from hf_distill.metrics.table import Undefined
from hf_distill.report.comparison import compare, parts_by_class, parts_by_group
from hf_distill.report.fairness import Fairness, fairness
from hf_distill.report.for_whom import ForWhom, GroupResult
from hf_distill.report.group_text import notes

NAMES = ("short", "medium", "long")
ROWS = {"short": 400, "medium": 200, "long": 100}


def right(**shares: tuple[float, float, float]) -> dict[str, Any]:
    """Return whether each model is right on each row: on the first rows of each group, so that all err on the same."""
    return {
        model: np.concatenate(
            [np.arange(count) < round(share * count) for count, share in zip(ROWS.values(), wanted, strict=True)]
        )
        for model, wanted in shares.items()
    }


GROUP = np.repeat(np.arange(3), list(ROWS.values()))
LOST = right(teacher=(0.9, 0.9, 0.9), student=(0.9, 0.88, 0.6), baseline=(0.8, 0.8, 0.75))
EVEN = right(teacher=(0.9, 0.9, 0.9), student=(0.89, 0.89, 0.9), baseline=(0.8, 0.8, 0.75))


def sentence(whom: ForWhom) -> str:
    return " ".join(whole(for_whom=(whom,)).verdict())


def test_each_group_has_its_own_figures() -> None:
    """Figures of another group, or of all rows, look just as plausible."""
    whom = by_group(NAMES, LOST, GROUP)
    assert [group.name for group in whom.groups] == ["long", "medium", "short"]
    for group in whom.groups:
        rows = NAMES.index(group.name) == GROUP
        assert group.rows == ROWS[group.name]
        assert group.metrics == pytest.approx({model: one[rows].mean() for model, one in LOST.items()})
        differences = LOST["student"][rows].astype(float) - LOST["teacher"][rows]
        assert group.difference == pytest.approx(differences.mean())
        if differences.any():
            error = scipy.stats.sem(differences)
            assert group.interval == pytest.approx(scipy.stats.t.ppf(0.975, len(differences) - 1) * error, rel=0.25)
        else:
            assert (group.interval, group.p_value) == (None, 1.0)
    assert [group.outcome for group in whom.groups] == ["worse", "not significant", "not significant"]


def test_the_distance_between_best_and_worst() -> None:
    """A gap of other groups than the best and the worst, or of one model alone, says nothing of distillation."""
    distance = by_group(NAMES, LOST, GROUP).distance
    assert distance is not None
    assert distance.metrics == pytest.approx({"teacher": 0.0, "student": 0.3, "baseline": 0.05})
    assert (distance.best["student"], distance.worst["student"]) == ("short", "long")
    assert distance.widened == pytest.approx({"teacher": 0.3, "baseline": 0.25})
    # By hand: the long ones vary most, 30 of 100 rows changed.
    assert distance.interval["teacher"] == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 100), rel=0.3)
    assert (distance.changed("teacher"), distance.changed("baseline")) == (1, 1)
    even = by_group(NAMES, EVEN, GROUP).distance
    assert even is not None
    assert even.changed("teacher") == 0


def test_the_verdict_says_for_whom() -> None:
    """An average that fell by 5 points hides that one group lost 30."""
    text = sentence(by_group(NAMES, LOST, GROUP))
    assert "It got worse for 1 of 3 groups of 'age', 'long': accuracy 60.0 against the teacher's 90.0" in text
    assert "gap between the best and the worst group grew: 30.0 against the teacher's 0.0" in text
    assert "without the teacher it is 5.0 (smaller)" in text
    text = sentence(by_group(NAMES, EVEN, GROUP))
    assert "not shown to be worse than the teacher for any of 3 groups of 'age'" in text
    assert "did not change significantly" in text
    classes = ForWhom("class", "class", "accuracy", True, by_group(NAMES, LOST, GROUP).groups)
    assert "It got worse for 1 of 3 classes, 'long'" in sentence(classes)
    worst = classes.groups[0]
    few = GroupResult("short", 5, worst.metrics, None, outcome="too few rows")
    alone = ForWhom("class", "class", "accuracy", True, (worst, few))
    assert "It got worse for 'long', the only class with at least" in sentence(alone), "not 1 of 1 classes"
    assert "Holm" not in sentence(alone)
    assert "class" not in sentence(ForWhom("class", "class", "accuracy", True, by_group(NAMES, EVEN, GROUP).groups))


def test_of_an_error_less_is_better() -> None:
    """Sorted the wrong way round, the group that gained most is called the one that lost."""
    units = {model: Units.means(1.0 - one) for model, one in LOST.items()}
    groups, distance = compare(parts_by_group(units, NAMES, GROUP), greater_is_better=False)
    assert (groups[0].name, groups[0].outcome) == ("long", "worse")
    assert distance is not None
    assert (distance.best["student"], distance.worst["student"]) == ("short", "long")
    assert distance.metrics["student"] == pytest.approx(0.3)


def test_few_rows_say_nothing() -> None:
    """Five rows of a group, two of them lost, would be the headline of every report."""
    group = np.where(np.arange(len(GROUP)) >= len(GROUP) - 20, 2, GROUP % 2)
    whom = by_group(NAMES, LOST, group)
    small = whom.groups[-1]
    assert (small.name, small.rows, small.outcome, small.interval) == ("long", 20, "too few rows", None)
    assert small.difference is not None
    assert whom.compared == 2
    assert "1 more cannot be judged" in sentence(whom) or "It got worse" in sentence(whom)
    none = by_group(NAMES, LOST, np.where(np.arange(len(GROUP)) < 20, 0, -1))
    assert none.distance is None
    assert "is not known: no group of 'age' has 30 rows" in sentence(none)


def test_a_metric_that_a_group_does_not_have() -> None:
    """One class in a group: its AUC is not 0, and the other groups still have theirs."""

    def metric(scores: np.ndarray) -> float:
        return float(scores.mean()) if scores.any() else Undefined("only one class among the labels")

    values = np.where(GROUP == 0, 0.0, LOST["student"].astype(float))
    units = {model: Units((values,), metric, np.ones(len(GROUP), dtype=bool)) for model in ("teacher", "student")}
    groups, distance = compare(parts_by_group(units, NAMES, GROUP), greater_is_better=True)
    assert (groups[-1].name, groups[-1].outcome, groups[-1].metrics) == ("short", "not defined", {})
    assert distance is not None
    whom = ForWhom("age", "group", "auc", True, groups, distance)
    assert "short: not defined, only one class among the labels." in notes(whole(for_whom=(whom,)), whom, 9)
    assert " nan" not in sentence(whom)


def test_rows_without_a_label_do_not_count() -> None:
    """Counted as wrong, a group with few labels would be the worst of every model."""
    scores = {model: np.where(np.arange(len(GROUP)) % 2, np.nan, one) for model, one in LOST.items()}
    whom = by_group(NAMES, scores, GROUP)
    assert {group.name: group.rows for group in whom.groups} == {name: rows // 2 for name, rows in ROWS.items()}
    assert all(group.metrics["teacher"] == pytest.approx(0.9) for group in whom.groups)


def test_models_are_compared_on_the_same_rows() -> None:
    """A row that only one model has a score of moves all draws after it: the interval is that of unpaired models."""
    rng = np.random.default_rng(0)
    teacher = (rng.random(200) < 0.9).astype(float)
    student = np.where(rng.random(200) < 0.05, 0.0, teacher)
    few = {"teacher": np.r_[np.nan, teacher[1:]], "student": student}
    (found, *_), (wanted, *_) = (
        by_group(("a",), one, group).groups
        for one, group in ((few, np.zeros(200)), ({"teacher": teacher[1:], "student": student[1:]}, np.zeros(199)))
    )
    assert found == wanted


def test_several_seeds_are_averaged() -> None:
    """The first seed's groups alone, or its spread for that of all: one lucky seed decides for whom it got worse."""
    units = {model: Units.means(one.astype(float)) for model, one in LOST.items()}
    parts = parts_by_group(units, NAMES, GROUP)
    first = {model: {name: one.value() for name, one in zip(NAMES, (parts[n][model] for n in NAMES), strict=True)}
             for model in ("student", "baseline")}  # fmt: skip
    second = {"student": {"short": 0.9, "medium": 0.9, "long": 0.9}, "baseline": first["baseline"]}
    groups, distance = compare(parts, greater_is_better=True, seeds=[first, second])
    lost = next(group for group in groups if group.name == "long")
    assert lost.metrics["student"] == pytest.approx(0.75)
    assert lost.std["student"] == pytest.approx(np.std([0.6, 0.9], ddof=1))
    assert lost.difference == pytest.approx(-0.15)
    assert lost.interval == pytest.approx(scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([-0.3, 0.0]))
    assert lost.outcome == "not significant"
    assert distance is not None
    assert distance.metrics["student"] == pytest.approx(np.mean([0.3, 0.0]))
    assert distance.std["student"] == pytest.approx(np.std([0.3, 0.0], ddof=1))


def test_words_of_a_sentence_are_resampled_together() -> None:
    """Of tags, words of one sentence err together: counted one by one, every class got significantly worse."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 12))
    labels[:, 8:] = -100
    wrong = rng.random((200, 1)) < 0.2
    student = np.where(wrong, 1 - labels, labels)
    parts = parts_by_class({"teacher": labels, "student": student}, labels, ["no", "yes"])
    own = labels == 1
    assert parts["yes"]["student"].value() == pytest.approx((student[own] == 1).mean())
    groups, _ = compare(parts, greater_is_better=True)
    group = next(one for one in groups if one.name == "yes")
    ratio = own.sum(1) * (wrong[:, 0] - wrong[:, 0].mean())
    expected = 1.96 * ratio.std() / own.sum(1).mean() / math.sqrt(200)
    assert group.interval == pytest.approx(expected, rel=0.3)


# ---- Fairness --------------------------------------------------------------------------------------------------------


def of_classes(indices: Any, width: int) -> np.ndarray:
    return np.asarray(indices)[:, None] == np.arange(width)


def test_fairness_by_hand() -> None:
    """Shares of the wrong rows are numbers between 0 and 1 as well."""
    labels = [1, 1, 0, 0, 1, 1, 0, 0]
    guess = [1, 1, 1, 0, 1, 0, 0, 0]
    group = np.array(list("aaaabbbb"))
    found = fairness({"student": of_classes(guess, 2)}, of_classes(labels, 2), group, ["a", "b"], ["no", "yes"])
    # Predicted "yes": 3/4 and 1/4. Right among "yes": 2/2 and 1/2; wrong among "no": 1/2 and 0/2.
    assert found.demographic_parity_difference == {"student": pytest.approx(0.5)}
    assert found.equalized_odds_difference == {"student": pytest.approx(0.5)}
    assert (found.of, found.note) == ({}, "")


def test_of_several_classes_the_largest_difference_is_named() -> None:
    """A mean over twenty classes hides the one that a group is never given."""
    rng = np.random.default_rng(0)
    labels, guess, group = rng.integers(0, 3, 300), rng.integers(0, 3, 300), np.array(["a", "b"] * 150)
    guess[(group == "b") & (guess == 2)] = 0
    found = fairness({"student": of_classes(guess, 3)}, of_classes(labels, 3), group, ["a", "b"], ["x", "y", "z"])
    shares = [abs((guess[group == "a"] == one).mean() - (guess[group == "b"] == one).mean()) for one in range(3)]
    assert found.demographic_parity_difference["student"] == pytest.approx(max(shares))
    assert found.of["student"][0] == "xyz"[int(np.argmax(shares))]
    odds = [
        fairlearn.metrics.equalized_odds_difference(labels == one, guess == one, sensitive_features=group)
        for one in range(3)
    ]
    assert found.equalized_odds_difference["student"] == pytest.approx(max(odds))


def test_two_labels_of_a_row_are_not_two_classes() -> None:
    """Of two classes one says it all; of two labels of the same row, the first was never looked at."""
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]] * 2, dtype=bool)
    guess = labels.copy()
    guess[4:, 0] = False
    found = fairness({"student": guess}, labels, np.array(list("aaaabbbb")), ["a", "b"], ["joy", "anger"])
    assert found.demographic_parity_difference == {"student": pytest.approx(0.5)}
    assert found.of["student"] == ("joy", "joy")


def test_a_group_without_a_class_has_no_odds() -> None:
    """fairlearn takes a share of no rows for 0: a group without any "yes" would be the most unfair one found."""
    labels, group = [1, 0, 1, 0, 0, 0], np.array(list("aaaabb"))
    found = fairness({"student": of_classes(labels, 2)}, of_classes(labels, 2), group, ["a", "b"], ["no", "yes"])
    assert found.equalized_odds_difference == {}
    assert found.note.startswith("Equalised odds are not defined: 'yes'")
    assert found.demographic_parity_difference == {"student": pytest.approx(0.5)}


def test_without_fairlearn_one_line_says_so() -> None:
    """A finished training must not end with an ImportError, nor without a word."""
    with mock.patch("hf_distill.report.fairness.is_here", return_value=False):
        found = fairness({}, of_classes([0, 1], 2), np.array(["a", "b"]), ["a", "b"], ["no", "yes"])
    assert "pip install 'hf-distill[fairness]'" in found.note
    whom = by_group(NAMES, LOST, GROUP, fairness=found)
    assert found.note in notes(whole(for_whom=(whom,)), whom, 9)


def test_the_figures_are_shown() -> None:
    """Computed, stored, and nowhere to be seen."""
    fair = Fairness(
        {"teacher": 0.1, "student": 0.25}, {"teacher": 0.2, "student": 0.3}, {"student": ("x", "y")}, ("a",)
    )
    whom = by_group(NAMES, LOST, GROUP, fairness=fair)
    text = " ".join(notes(whole(for_whom=(whom,)), whom, 2))
    assert "Difference in demographic parity between groups (0 is equal): teacher 0.1, student 0.25 ('x')." in text
    assert "student 0.3 ('y')" in text
    assert "1 more are in report.json" in text
