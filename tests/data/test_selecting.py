"""Which texts without a label are chosen: scores by hand, ties, several labels, pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prepared import refused
from scipy.stats import entropy

from hf_distill.data.selecting import Select, choose, most_uncertain, uncertainty

GOOD, BAD = ["great film", "moving plot", "great cast"], ["dull film", "awful plot", "dull cast"]
OTHERS = ["great great cast", "film and plot", "awful dull", "great and dull", "a moving story", "the the"]


def test_scores_are_those_by_hand() -> None:
    """A sign or an axis the wrong way round would choose the texts that are of no use."""
    chance = np.random.default_rng(0)
    rows = chance.dirichlet(np.ones(4), 50)
    rows[0] = [1, 0, 0, 0]
    best = np.array([sorted(row)[-1] - sorted(row)[-2] for row in rows])
    np.testing.assert_allclose(uncertainty(rows, "margin"), -best)
    np.testing.assert_allclose(uncertainty(rows, "entropy"), [entropy(row) for row in rows], atol=1e-12)


def test_of_equal_scores_the_first_rows_are_chosen() -> None:
    """Rows chosen by an unstable sort differ between processes, each of which would train on other rows."""
    assert most_uncertain(np.zeros(1000), 0.3).tolist() == list(range(300))
    assert most_uncertain(np.array([0.0, 1.0]), 0.01).tolist() == [1]  # at least one


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_the_rows_of_which_a_classifier_is_unsure_stay_with_all_labelled_ones(by: Any) -> None:
    """Labelled rows could be dropped, or scores could belong to other rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [*GOOD, *OTHERS, *BAD]
    labels = np.array([1] * 3 + [-100] * 6 + [0] * 3)
    found = choose([texts], labels, Select(by=by, share=0.5))
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000).fit(words.fit_transform([*GOOD, *BAD]), [1] * 3 + [0] * 3)
    probabilities = model.predict_proba(words.transform(OTHERS))
    scores = [-abs(row[0] - row[1]) if by == "margin" else entropy(row) for row in probabilities]
    least = sorted(range(6), key=lambda row: -scores[row])[:3]
    assert found.tolist() == sorted([0, 1, 2, *(3 + row for row in least), 9, 10, 11])
    assert 3 not in found  # great great cast


def test_several_labels_count_with_their_mean() -> None:
    """A label known in some rows only, or the same in all, could spoil the classifiers of the others."""
    nan = np.nan
    texts = [*GOOD, *BAD, *OTHERS]
    labels = np.array([[1, 1, 0]] * 3 + [[0, nan, 0]] * 2 + [[0, 0, 0]] + [[nan] * 3] * 6)
    found = choose([texts], labels, Select(share=0.5))
    both = [choose([texts], np.where(np.isnan(row), -1, row), Select(share=0.99)) for row in labels.T[:2]]
    assert [len(one) for one in both] == [12, 12]
    from hf_distill.data.selecting import _probabilities

    known, asked = np.arange(12) < 6, np.arange(12) >= 6
    probabilities = _probabilities([texts], labels, known, asked)
    assert probabilities.shape == (6, 2, 2)  # the third label is the same in all rows
    margins = np.abs(probabilities[..., 0] - probabilities[..., 1]).mean(1)
    assert found.tolist() == sorted([*range(6), *(6 + np.argsort(margins, kind="stable")[:3])])


def test_both_texts_of_a_pair_count() -> None:
    """Only the first text could be read, which is the same in many pairs of one question."""
    first = ["what is it"] * 12
    second = [*GOOD, *BAD, *OTHERS]
    labels = np.array([1] * 3 + [0] * 3 + [-1] * 6)
    assert (
        choose([first, second], labels, Select(share=0.3)).tolist()
        == choose([second], labels, Select(share=0.3)).tolist()
    )


@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (["a b"] * 3, [0, 1, 0], "every train row has a label"),
        (["a b"] * 3, [0, 0, -100], "two classes"),
        (["a b"] * 3, [-100] * 3, "two classes"),
        (["!", "?", "a"], [0, 1, -100], "no words"),
    ],
)
def test_what_no_classifier_can_learn_from_is_refused(texts: list[str], labels: list[int], words: str) -> None:
    """A classifier of one class is sure of everything: the first rows would be chosen, as if they were worth it."""
    key, line = refused(choose, [texts], np.array(labels), Select(share=0.5))
    assert key == "select"
    assert words in line
