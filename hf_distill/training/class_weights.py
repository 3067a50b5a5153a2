"""Turns class weights given as `balanced` or by class name into numbers, before a training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.objectives.class_weights import NO_CLASSES, resolve
from hf_distill.objectives.logits import Labels

if TYPE_CHECKING:
    from torch import nn

    from hf_distill.objectives import Objective
    from hf_distill.rows.base import RowLayout


def settle_class_weights(
    objectives: Sequence[Objective], layout: RowLayout, model: nn.Module, train: Any
) -> tuple[Objective, ...]:
    """Return the objectives, with the `class_weights` of each `Labels` as one number per class.

    Args:
        objectives: Objectives of the training.
        layout: Which logits count.
        model: The student, whose configuration names the classes.
        train: The train split; for `balanced` it must be a `datasets.Dataset` with `labels`.

    Raises:
        UserError: There are no classes, or the weights do not fit them.
    """
    if not any(isinstance(one, Labels) and one.class_weights is not None for one in objectives):
        return tuple(objectives)
    student: Any = base_model(model)
    if not layout.has_named_classes or student.get_output_embeddings() is not None:
        raise UserError(NO_CLASSES, key="class_weights")
    names = [str(name) for _, name in sorted((student.config.id2label or {}).items())]
    return tuple(
        replace(one, class_weights=resolve(one.class_weights, names, _counts(one, train, len(names))))
        if isinstance(one, Labels) and one.class_weights is not None
        else one
        for one in objectives
    )


def _counts(objective: Labels, train: Any, width: int) -> list[float] | None:
    if objective.class_weights != "balanced":
        return None
    import datasets

    from hf_distill.tasks.class_counts import count_classes

    if not isinstance(train, datasets.Dataset):
        raise UserError(
            "'balanced' counts the labels of train_dataset, which must be a datasets.Dataset for that. Pass one, or "
            "give the weights as a list.",
            key="class_weights",
        )
    found = count_classes({"train": train}, width, None)
    return None if found is None else found.counts["train"].tolist()
