"""Which rows of large data a check looks at, and how it says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

# Rows of a split that a check looks at; of a larger one, as many random ones.
ROWS = 5_000


def chosen(total: int, rows: int = ROWS) -> NDArray[np.int64]:
    """Return the numbers of some random rows in order, the same ones each time; of all rows if there are no more.

    >>> chosen(3), len(chosen(10_000))
    (array([0, 1, 2]), 5000)
    """
    if total <= rows:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, rows, replace=False))


def sample(split: Dataset, rows: int = ROWS) -> Dataset:
    """Return some random rows of a split, in order."""
    return split if len(split) <= rows else split.select(chosen(len(split), rows))


def of_rows(split: Dataset, rows: int = ROWS) -> str:
    """Return the rows that `sample` chooses, in words: `500 rows`, `5,000 random rows of 80,000`."""
    return f"{len(split):,} rows" if len(split) <= rows else f"{rows:,} random rows of {len(split):,}"


def flat(split: Dataset, name: str) -> NDArray[Any]:
    """Return all values of a column of numbers, of lists, or of lists of lists, as one array."""
    values = column(split, name).combine_chunks()
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))


def token_ids(split: Dataset) -> Iterator[list[int]]:
    """Yield the token ids of each text; a row may have several texts."""
    for row in split["input_ids"]:
        if row and isinstance(row[0], list):
            yield from row
        else:
            yield row


@contextmanager
def unheard() -> Iterator[None]:
    """Context manager: no warnings, which would be about a sample of the rows."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
