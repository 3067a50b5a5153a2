"""Weights of groups in a loss: one number for each group of the data, or the group that is worst at present."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from hf_distill.data.label_names import shorten
from hf_distill.errors import UserError, did_you_mean

GroupWeights = Literal["inverse_frequency", "worst_group"] | dict[str, float]
STEP = 0.01
"""Step size of `worst_group`: `q_g <- q_g exp(STEP * loss_g)`, that of the authors' code (Sagawa et al. 2020)."""
NO_GROUPS = (
    "there are no groups. Name their column, data: {columns: {group: ...}} (in Python, a column example_group of "
    "train_dataset), or leave it out."
)
WITHIN_BATCH = (
    "compares the examples of a batch with each other: one of weight 0 would still count for the others, and one of "
    "weight 2 would not count as two. Leave it out, or the weights."
)


def resolve(
    weights: Literal["inverse_frequency"] | Mapping[str, float],
    names: Sequence[str],
    counts: Sequence[float],
    key: str = "group_weights",
) -> dict[str, float]:
    """Return the weight of each group.

    Args:
        weights: `"inverse_frequency"`: `n / (G * n_g)` of `n` rows, `n_g` of them of group `g`, and `G` groups that
            occur, so that the mean weight of a row is 1; a group that does not occur gets 1. Or name -> weight, 1 for
            those left out.
        names: Of the groups.
        counts: Rows of each group.
        key: Of the setting.

    Raises:
        UserError: A name is unknown, or a weight is not a finite number of 0 or more, or all are 0.

    >>> resolve("inverse_frequency", ["a", "b"], [3, 1])
    {'a': 0.6666666666666666, 'b': 2.0}
    >>> resolve({"b": 3.0}, ["a", "b"], [3, 1])
    {'a': 1.0, 'b': 3.0}
    """
    if weights == "inverse_frequency":
        present, rows = sum(count > 0 for count in counts), float(sum(counts))
        return {name: rows / (present * count) if count else 1.0 for name, count in zip(names, counts, strict=True)}
    assert isinstance(weights, Mapping)
    unknown = next((name for name in weights if name not in names), None)
    if unknown is not None:
        hint = did_you_mean(unknown, names) if len(names) <= 50 else f" The groups are {shorten(list(names))}."
        raise UserError(f"there is no group '{unknown}'.{hint}", key=key)
    found = {name: float(weights.get(name, 1.0)) for name in names}
    if any(not math.isfinite(weight) or weight < 0 for weight in found.values()) or not any(found.values()):
        raise UserError("wanted finite numbers of 0 or more, not all of them 0.", key=key)
    return found
