"""Choose which texts without a label are worth asking a teacher about: those of which a cheap classifier is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import scipy.sparse

Array = NDArray[Any]
By = Literal["margin", "entropy"]


@component
class Select:
    """Ask the teacher about a part of the train rows without a label, and leave the others out.

    A logistic regression on the TF-IDF of the words is fitted on the labelled rows. It is unsure of the rows that are
    chosen; rows of which it is equally sure are chosen in their order. With several labels a row, a row counts with the
    mean over the labels.

    Attributes:
        by: What says how unsure the classifier is: a small `margin` between its two most likely classes, or a large
            `entropy` of all of them.
        share: Which part of the rows without a label is chosen.
    """

    by: By = "margin"
    share: Annotated[float, Field(gt=0, lt=1)]


def uncertainty(probabilities: Array, by: By) -> Array:
    """Return how unsure each distribution over classes is, `(..., classes)` -> `(...)`.

    Margin (Scheffer et al. 2001): `p_2 - p_1`, with the largest probability `p_1` and the second largest `p_2`. Entropy
    (Shannon 1948): `-sum_c p_c log p_c`.

    >>> two = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> uncertainty(two, "margin").round(3).tolist(), uncertainty(two, "entropy").round(3).tolist()
    ([-0.8, -0.2], [0.325, 0.673])
    """
    if by == "margin":
        second, first = np.moveaxis(np.sort(probabilities, -1)[..., -2:], -1, 0)
        return np.asarray(second - first)
    from scipy.special import entr

    return np.asarray(entr(probabilities).sum(-1))


def most_uncertain(scores: Array, share: float) -> Array:
    """Return the positions of the largest scores in ascending order, at least one; of equal scores, the first ones.

    >>> most_uncertain(np.array([0.1, 0.7, 0.7, 0.7]), 0.5).tolist()
    [1, 2]
    """
    number = max(1, round(share * len(scores)))
    return np.sort(np.argsort(-scores, kind="stable")[:number])


def unlabelled(labels: Array) -> Array:
    """Return which rows have no label at all, bool `(rows,)`.

    Args:
        labels: Classes `(rows,)`, below 0 for none; or 0 and 1 for each label `(rows, labels)`, NaN where not known.
    """
    return np.asarray(labels < 0 if labels.ndim == 1 else np.isnan(labels).all(-1))


def choose(texts: Sequence[Sequence[str]], labels: Array, how: Select) -> Array:
    """Return the rows that stay, in ascending order: all labelled ones, and the chosen ones of the others.

    Args:
        texts: Columns of texts, one or two.
        labels: As for `unlabelled`.
        how: What is chosen.

    Raises:
        UserError: All rows have a label, or labels of fewer than two classes are known, or no labelled text has a word.
    """
    without = unlabelled(labels)
    if not without.any():
        raise UserError("every train row has a label, so there is nothing to choose from. Leave it out.", key="select")
    scores = uncertainty(_probabilities(texts, labels, ~without, without), how.by)
    chosen = np.flatnonzero(without)[most_uncertain(scores.reshape(len(scores), -1).mean(-1), how.share)]
    return np.sort(np.concatenate([np.flatnonzero(~without), chosen]))


def _probabilities(texts: Sequence[Sequence[str]], labels: Array, known: Array, asked: Array) -> Array:
    """Return the classifier's distributions of the rows that are `asked`, `(rows, classes)` or `(rows, labels, 2)`."""
    columns = labels[:, None] if labels.ndim == 1 else labels
    # A label that is the same in all rows teaches a classifier nothing, and is nothing to be unsure of.
    rows = [known & (column >= 0) for column in columns.T]  # NaN is not >= 0
    learned = [index for index, own in enumerate(rows) if len(np.unique(columns[own, index])) > 1]
    if not learned:
        raise UserError(
            f"{known.sum():,} train rows have a label, and they do not name two classes: a classifier cannot learn "
            "from them which of the other rows it is unsure of. Label more rows, or leave it out.",
            key="select",
        )
    found = [_fitted(texts, columns[:, index], rows[index], asked) for index in learned]
    return found[0] if labels.ndim == 1 else np.stack(found, 1)


def _fitted(texts: Sequence[Sequence[str]], labels: Array, known: Array, asked: Array) -> Array:
    from sklearn.linear_model import LogisticRegression

    read, others = _features(texts, known, asked)
    model: Any = LogisticRegression(max_iter=1000).fit(read, labels[known].astype(int))
    found: Array = model.predict_proba(others)
    return found


def _features(
    texts: Sequence[Sequence[str]], known: Array, asked: Array
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Return TF-IDF of the rows that are `known` and of those that are `asked`, the columns of texts side by side."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    sides: list[tuple[Any, Any]] = []
    for column in texts:
        every = np.asarray(column, dtype=object)
        # One letter is a word too, unlike in scikit-learn's default.
        words: Any = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True)
        try:
            sides.append((words.fit_transform(every[known]), words.transform(every[asked])))
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise UserError(
                "the texts of the labelled train rows have no words to fit a classifier on.", key="select"
            ) from error
    first, second = zip(*sides, strict=True)
    return hstack(first).tocsr(), hstack(second).tocsr()
