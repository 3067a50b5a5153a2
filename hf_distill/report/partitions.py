"""Into which parts the eval split is taken apart to see for whom it got worse: groups of the data, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.report.comparison import ByGroup, Parts, compare, parts_by_class, parts_by_group, values_of
from hf_distill.report.fairness import Fairness, fairness
from hf_distill.report.for_whom import FEWEST, ForWhom, Kind
from hf_distill.report.predictions import guesses_of

if TYPE_CHECKING:
    from hf_distill.report.predictions import Evaluated
    from hf_distill.report.results import SeedResult
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.base import Groups

CLASS = "class"


@dataclass(frozen=True)
class Partition:
    """The eval split in parts.

    Attributes:
        by: Name of the column of groups, or `class`.
        kind: Whether the parts are groups or classes.
        metric: The metric that is computed on each.
        greater_is_better: Whether a greater value is better.
        parts: The parts.
    """

    by: str
    kind: Kind
    metric: str
    greater_is_better: bool
    parts: Parts


def partitions(prepared: Prepared, evaluated: Mapping[str, Evaluated], column: str) -> list[Partition]:
    """Return the eval split by group, if the data has groups, and by class, if each example or word has one.

    Args:
        prepared: The data.
        evaluated: Some models on its eval split.
        column: Name of the column of groups.
    """
    evaluator, found = prepared.evaluator, []
    if not evaluator.names:
        return []
    if (groups := prepared.groups) is not None:
        units = {model: _read_by(prepared, model).evaluator.units(one.predictions) for model, one in evaluated.items()}
        if parts := parts_by_group(units, groups.names, groups.eval):
            found.append(Partition(column, "group", evaluator.headline, evaluator.greater_is_better, parts))
    guesses = guesses_of(evaluated) if prepared.layout.has_named_classes else None
    if guesses is not None and (parts := parts_by_class(*guesses, prepared.label_names or ())):
        found.append(Partition(CLASS, "class", "accuracy", True, parts))
    return found


def _read_by(prepared: Prepared, model: str) -> Prepared:
    """Return the data as a model read it for the report: the teacher with its own tokenizer, if it has one."""
    return (prepared.for_teacher or prepared) if model == "teacher" else prepared


def by_partition(prepared: Prepared, evaluated: Mapping[str, Evaluated], column: str) -> dict[str, ByGroup]:
    """Return the metrics of some models on each part: `group` or `class` -> model -> part -> value."""
    return {one.kind: values_of(one.parts) for one in partitions(prepared, evaluated, column)}


def for_whom(
    prepared: Prepared, evaluated: Mapping[str, Evaluated], column: str, seeds: Sequence[SeedResult] = ()
) -> tuple[ForWhom, ...]:
    """Return the models compared on each part of the eval split.

    Args:
        prepared: The data.
        evaluated: `teacher`, `student` and, if there is one, `baseline`, of the first seed.
        column: Name of the column of groups.
        seeds: The results of each seed, with the metrics of each part; empty for a single seed.
    """
    found = []
    for one in partitions(prepared, evaluated, column):
        values = [seed.parts.get(one.kind, {}) for seed in seeds]
        groups, distance = compare(one.parts, greater_is_better=one.greater_is_better, seeds=values)
        made = ForWhom(one.by, one.kind, one.metric, one.greater_is_better, groups)
        if one.kind == "group" and prepared.groups is not None:
            enough = [group.name for group in groups if group.rows >= FEWEST]
            fair = _fairness(prepared, evaluated, prepared.groups, enough)
            made = replace(made, distance=distance, fairness=fair, notes=tuple(unseen(prepared.groups)))
        found.append(made)
    return tuple(found)


def unseen(groups: Groups) -> list[str]:
    """Return sentences on groups that only one of the splits has."""
    train, held_out = (set(np.unique(one).tolist()) for one in (groups.train, groups.eval))
    found = []
    for numbers, text in (
        (train - held_out, "has no rows in the eval split: nothing is known of it."),
        (held_out - train, "has no rows in the train split: the student never saw it."),
    ):
        for number in sorted(number for number in numbers if 0 <= number < len(groups.names)):
            found.append(f"'{groups.names[number]}' {text}")
    return found


def _fairness(
    prepared: Prepared, evaluated: Mapping[str, Evaluated], groups: Groups, enough: Sequence[str]
) -> Fairness | None:
    """Return the metrics of fairness between groups with enough rows; None where no class is chosen."""
    evaluator = prepared.evaluator
    chosen = {model: evaluator.choices(one.predictions) for model, one in evaluated.items()}
    units = evaluator.units(evaluated["student"].predictions)
    if len(enough) < 2 or units is None or (own := chosen["student"]) is None:
        return None
    kept = units.counted
    width = own[1].shape[1]
    return fairness(
        {model: one[0][kept] for model, one in chosen.items() if one is not None},
        own[1][kept],
        np.asarray(groups.names, dtype=object)[groups.eval[kept]],
        enough,
        prepared.label_names or [str(index) for index in range(width)],
    )
