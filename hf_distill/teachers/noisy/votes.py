"""Noisy answers from the votes of teachers: LNMax, GNMax, Confident-GNMax, and means with Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hf_distill.teachers.noisy.privacy import PrivacyBudget

Array = NDArray[Any]


def shard(rows: int, count: int, index: int, seed: int) -> Array:
    """Return the rows of one of `count` disjoint shards of a random permutation; sizes differ by one at most.

    The shards depend on the number of rows alone: if a row is replaced by another one, one shard changes.

    Args:
        rows: Number of rows.
        count: Number of shards.
        index: Which shard.
        seed: Seed of the permutation.

    >>> sorted(int(row) for index in range(3) for row in shard(7, 3, index, seed=0))
    [0, 1, 2, 3, 4, 5, 6]
    """
    return np.array_split(np.random.default_rng(seed).permutation(rows), count)[index]


def noisy_max(votes: Array, draw: Callable[[int], Array]) -> int:
    """Return the class with the most votes after noise was added to every count.

    `argmax_j n_j(x) + noise_j`: LNMax with Laplace noise (Papernot et al. 2017, arXiv 1610.05755, equation 1), GNMax
    with Gaussian noise (Papernot et al. 2018, arXiv 1802.08908, section 4.1).

    Args:
        votes: Number of votes of each class, `(classes,)`.
        draw: Returns so many draws of the noise.
    """
    return int(np.argmax(votes + draw(len(votes))))


def on_simplex(values: Array) -> Array:
    """Return the distribution that is nearest to some values (Euclidean projection, Duchi et al. 2008).

    >>> on_simplex(np.array([1.2, 0.4, -0.3])).round(6).tolist()
    [0.9, 0.1, 0.0]
    """
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    return np.asarray(np.maximum(values - excess[falling > excess][-1], 0))


def answers(
    votes: Array,
    sums: Array | None,
    budget: PrivacyBudget,
    threshold: float | None,
    random: np.random.Generator,
) -> tuple[list[int], Array]:
    """Return the rows that were answered, and the answers.

    Rows are asked in order until the budget has no room. With a threshold, a row is answered if its highest number of
    votes is above it after Gaussian noise (Papernot et al. 2018, arXiv 1802.08908, algorithm 1).

    Args:
        votes: Number of votes of each class, `(rows, classes)`.
        sums: For soft answers: sums of the teachers' distributions, `(rows, classes)`. Two distributions differ by at
            most `sqrt(2)` (L2), as two votes do, so that Gaussian noise costs the same. None for classes.
        budget: Counts the queries, and says whether another one fits.
        threshold: Votes that a row needs to be answered; None without.
        random: Where the noise comes from.

    Returns:
        Positions of the rows that were answered; and distributions, float64 `(answered, classes)`.
    """
    own = budget.accountant

    def draw(size: int) -> Array:
        return random.laplace(0, own.noise, size) if own.mechanism == "laplace" else random.normal(0, own.noise, size)

    rows: list[int] = []
    found: list[Array] = []
    for row, counts in enumerate(votes):
        if not budget.has_room():
            break
        sure = threshold is None or bool(counts.max() + random.normal(0, own.threshold_noise or 0) >= threshold)
        budget.charge(answered=sure)
        if sure:
            rows.append(row)
            if sums is None:
                found.append(np.eye(votes.shape[1])[noisy_max(counts, draw)])
            else:
                found.append(on_simplex((sums[row] + draw(votes.shape[1])) / counts.sum()))
    return rows, np.array(found).reshape(len(rows), votes.shape[1])
