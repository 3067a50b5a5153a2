"""What a server said about the tokens of a text: checked, and in the form of sparse rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.teachers.served.apis import Entries, Unusable

Array = NDArray[Any]

# What servers write where there is no number: vLLM replaces -inf, which JSON does not have.
MISSING = -9999.0
# How far the sum of rounded probabilities may be above 1.
ROUNDED = 1e-3
# Least mass of the tokens that are not told, where there are some: it is 1 minus a sum of rounded numbers, of which the
# smallest part is chance, and a mass of nearly 0 would make a divergence from the student's huge.
LEAST_MASS = 1e-7


@dataclass(frozen=True)
class TextRows:
    """The rows of one text.

    Attributes:
        indices: The likeliest tokens, the likeliest first, int32 `(rows, top)`.
        log_probabilities: Theirs, float32 `(rows, top)`.
        remaining: Logarithm of the mass of all other tokens, float32 `(rows,)`; -inf where there are none.
        written: Log-probability of the token of the text, float32 `(rows,)`.
    """

    indices: Array
    log_probabilities: Array
    remaining: Array
    written: Array

    @classmethod
    def empty(cls, top: int) -> TextRows:
        """Return no rows."""
        return cls(np.zeros((0, top), np.int32), *(np.zeros(shape, np.float32) for shape in ((0, top), (0,), (0,))))

    def to_bytes(self) -> bytes:
        """Return all numbers as bytes."""
        return b"".join(np.ascontiguousarray(one).tobytes() for one in vars(self).values())

    @classmethod
    def from_bytes(cls, content: bytes, rows: int, top: int) -> TextRows | None:
        """Return what `to_bytes` wrote; None if it is not of this size."""
        if len(content) != 8 * rows * (top + 1):
            return None
        cells, ends = 4 * rows * top, 8 * rows * top + 4 * rows
        return cls(
            np.frombuffer(content[:cells], np.int32).reshape(rows, top),
            np.frombuffer(content[cells : 2 * cells], np.float32).reshape(rows, top),
            np.frombuffer(content[2 * cells : ends], np.float32),
            np.frombuffer(content[ends:], np.float32),
        )


def scored(cells: Sequence[Entries], tokens: Sequence[int], top: int, classes: int, width: int) -> TextRows:
    """Return the rows of a text.

    Args:
        cells: What the server said about each token.
        tokens: These tokens.
        top: How many of the likeliest to take; `classes` for all.
        classes: Number of tokens of the vocabulary. Columns of the server's model after them are padding, which takes
            no part.
        width: Number of columns of the model.

    Raises:
        Unusable: A number is missing, is not a probability, or belongs to a token that there is not.
    """
    indices = np.zeros((len(cells), top), np.int32)
    values = np.zeros((len(cells), top), np.float64)
    written = np.zeros(len(cells), np.float64)
    for row, (cell, own) in enumerate(zip(cells, tokens, strict=True)):
        known = _known(cell, classes, width)
        if own not in known:
            raise Unusable(f"no log-probability of the text's own token {own}")
        best = sorted(known, key=lambda token: (-known[token], token))[:top]
        if len(best) < top:
            raise Unusable(f"log-probabilities of {len(best)} tokens in place of {top}")
        total = math.fsum(map(math.exp, known.values()))
        if total > 1 + ROUNDED:
            raise Unusable(f"probabilities that sum to {total:.4g}")
        if top == classes:  # without the padding columns
            known = {token: value - math.log(total) for token, value in known.items()}
        indices[row], values[row] = best, [known[token] for token in best]
        written[row] = known[own]
    # Rounded to at most 0.
    values, written = np.minimum(values, 0.0), np.minimum(written, 0.0)
    remaining = np.full(len(cells), -np.inf)
    if top < classes:
        remaining = np.log(np.maximum(1.0 - np.exp(values).sum(-1), LEAST_MASS))
    return TextRows(indices, *(one.astype(np.float32) for one in (values, remaining, written)))


def _known(cell: Entries, classes: int, width: int) -> dict[int, float]:
    """Return the tokens of a position whose log-probability is a number."""
    known: dict[int, float] = {}
    for token, value in cell.items():
        if not 0 <= token < width:
            raise Unusable(f"the token {token}, and the vocabulary of the student ends at {width - 1}: another one")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unusable(f"a log-probability that is not a number ({str(value)[:40]})")
        if math.isnan(value) or value <= MISSING or token >= classes:
            continue
        if value > ROUNDED:
            raise Unusable(f"the log-probability {value:.4g}, which is above 0")
        known[token] = float(value)
    return known
