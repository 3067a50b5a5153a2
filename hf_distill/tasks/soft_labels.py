"""Soft labels: each label is a distribution over the classes, from annotators or another model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.data import column as arrow_column
from hf_distill.rows.examples import TOLERANCE
from hf_distill.tasks.label_column import LabelColumn

if TYPE_CHECKING:
    from hf_distill.errors import UserError


def is_soft(column: LabelColumn) -> bool:
    """Whether every label is a distribution over classes: numbers of at least 0 that sum to 1.

    False for lists of only 0 and 1: they have one entry for each class.
    """
    if not _may_be(column):
        return False
    return all(bool(_are(rows).all()) for rows in _rows(column))


def is_one_hot(column: LabelColumn) -> bool:
    """Whether every label is a list of one 0 or 1 for each class with exactly one 1."""
    if not column.lists or column.nested or column.names or len(column.lengths) != 1 or max(column.lengths) < 2:
        return False
    if any(isinstance(value, str) or value not in (0, 1) for value in column.values):
        return False
    return all(bool((rows.sum(-1) == 1).all()) for rows in _rows(column))


def refuse_soft(column: LabelColumn) -> UserError | None:
    """Return the error for the first label that is not a distribution, if most labels are; else None."""
    if not _may_be(column) or not (shares := [_are(rows) for rows in _rows(column)]):
        return None
    if np.concatenate(shares).mean() <= 0.5:
        return None
    return column.refuse(lambda row: not _are(np.array([row], float))[0], _WANTED, whole=True)


_WANTED = "probabilities of the classes, 0 or more with a sum of 1, as in other rows"


def _may_be(column: LabelColumn) -> bool:
    if not column.lists or column.nested or column.names or not any(isinstance(one, float) for one in column.values):
        return False
    if not all(isinstance(value, float) for value in column.values) or len(column.lengths) != 1:
        return False
    return max(column.lengths) > 1 and any(value not in (0, 1) for value in column.values)


def _rows(column: LabelColumn) -> Iterator[NDArray[Any]]:
    """Yield the labels of each split with labels, `(rows, classes)`."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for split in column.splits.values():
        labels = pc.drop_null(arrow_column(split, column.role).combine_chunks())
        if len(labels):
            yield pc.list_flatten(labels).to_numpy(zero_copy_only=False).reshape(len(labels), -1).astype(float)


def _are(rows: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = (rows >= 0).all(-1) & (np.abs(rows.sum(-1) - 1) <= TOLERANCE)
    return found
