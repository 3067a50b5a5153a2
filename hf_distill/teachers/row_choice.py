"""Which labelled rows each of several teachers is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_distill.errors import UserError

# Number of labelled rows -> those of them that are chosen, as indices.
Choice = Callable[[int], Sequence[int]]
# One of so many labelled rows is held out for weights by validation; there must be at least `FEWEST` labelled rows.
SHARE = 10
FEWEST = 20


def held_out(rows: int) -> list[int]:
    """Return the rows that no teacher is trained on: a tenth of them, drawn once and for all.

    Raises:
        UserError: There are too few rows.
    """
    if rows < FEWEST:
        raise UserError(
            f"a tenth of the labelled rows is held out to find the weights, and there are {rows:,} of them. Wanted "
            f"{FEWEST} or more; or write the weights themselves.",
            key="weights",
        )
    return sorted(np.random.default_rng(0).permutation(rows)[: rows // SHARE].tolist())


def not_held_out(rows: int) -> list[int]:
    """Return the other rows than `held_out`."""
    return sorted(set(range(rows)) - set(held_out(rows)))


def bag(seed: int) -> Choice:
    """Return what draws as many rows as there are, with replacement: a bootstrap sample."""

    def draw(rows: int) -> list[int]:
        drawn: list[int] = np.random.default_rng(seed).integers(rows, size=rows).tolist()
        return drawn

    return draw


def together(choices: Sequence[Choice]) -> Choice:
    """Return the choice that makes each of these among the rows that the one before has left.

    >>> together([lambda rows: range(1, rows), lambda rows: [0, 0]])(3)
    [1, 1]
    """

    def choose(rows: int) -> list[int]:
        chosen = list(range(rows))
        for one in choices:
            chosen = [chosen[index] for index in one(len(chosen))]
        return chosen

    return choose
