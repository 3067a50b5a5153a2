"""Turns group weights given as `inverse_frequency` or by name into a number for each group, before a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_distill.data.example_columns import GROUP, WEIGHT, group_names, group_numbers
from hf_distill.data.labelled import has_label
from hf_distill.errors import UserError
from hf_distill.objectives.base import Objective
from hf_distill.objectives.group_weights import NO_GROUPS, WITHIN_BATCH, resolve

if TYPE_CHECKING:
    from datasets import Dataset


def settle_group_weights(objectives: Sequence[Objective], train: Any, key: str = "") -> tuple[Objective, ...]:
    """Return the objectives, with the `group_weights` of each as a number for each group, unless it is `worst_group`.

    Args:
        objectives: Objectives of the training.
        train: The train split; to count groups it must be a `datasets.Dataset` with the column `example_group`.
        key: Place of the objectives in a recipe, such as `objectives`.

    Raises:
        UserError: There are no groups or other ones; an objective compares examples of a batch with each other, and
            these have weights.
    """
    import datasets

    columns = train.column_names if isinstance(train, datasets.Dataset) else []
    settled = []
    for index, objective in enumerate(objectives):
        place, given = f"{key}[{index}]" if key else objective.name, objective.group_weights
        if objective.within_batch and (given is not None or WEIGHT in columns):
            raise UserError(f"{objective.name} {WITHIN_BATCH}", key=place)
        if given is not None and train is not None:  # nothing is trained without a train split
            if GROUP not in columns:
                raise UserError(NO_GROUPS, key=f"{place}.group_weights")
            objective = _settled(objective, train, f"{place}.group_weights", strict=bool(key))
        settled.append(objective)
    return tuple(settled)


def _settled(objective: Objective, train: Dataset, key: str, *, strict: bool) -> Objective:
    import numpy as np

    given, names = objective.group_weights, group_names(train)
    if given is None or given == "worst_group":
        return objective
    if isinstance(given, dict) and not strict and given.keys() >= set(names):
        given = {name: given[name] for name in names}  # of a larger split, of which these rows are a part
    rows = group_numbers(train, names)
    learned = rows[has_label(train)] if objective.unit == "label" else rows
    counts = np.bincount(learned, minlength=len(names)).tolist()
    return replace(objective, group_weights=resolve(given, names, counts, key))
