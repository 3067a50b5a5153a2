"""Load the teacher that a `DistillationTrainer` gets as an id, a path or a recipe entry."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

from torch import nn

from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.tasks.inferred import tasks_of
from hf_distill.teachers.base import Teacher
from hf_distill.teachers.pretrained import PretrainedTeacher

# Types of the `teacher` argument.
Given: TypeAlias = nn.Module | Teacher | str | os.PathLike[str]


def can_open(given: object) -> bool:
    """Whether a value is a teacher, names one, or is None."""
    return given is None or isinstance(given, nn.Module | Teacher | str | os.PathLike)


def open_teacher(given: Given | None, student: nn.Module) -> tuple[nn.Module | None, Teacher | None]:
    """Return the teacher, and the entry that stores its targets (None where they are not stored).

    A named teacher is loaded with the same kind of head as the student; a model is returned unchanged.

    Args:
        given: A model; a Hub id, a directory or `package:NAME/PATH`; or an entry of a recipe, such as
            `PretrainedTeacher(model=..., dtype="bfloat16")`.
        student: The student, whose class says which head to load.

    Raises:
        UserError: The teacher is missing, has no such head, or works only in a run of a recipe.
    """
    if given is None or isinstance(given, nn.Module):
        return given, None
    entry = given if isinstance(given, Teacher) else PretrainedTeacher(model=os.fspath(given))
    name = type(entry).__name__
    wanted = "Wanted: a model, its id or path, or PretrainedTeacher(model=...)."
    if entry.own_inputs:
        raise UserError(f"teacher: {name} makes its own inputs from the columns of a recipe's data. {wanted}")
    if entry.reads_another_prompt:
        raise UserError(
            f"teacher: the context of {name} is put into prompts by a run of a recipe. Wanted a model, with data that "
            "has what it reads: columns teacher_input_ids and aligned_at (docs/language_models.md)."
        )
    if any(one.is_published for one in entry.every_entry()):
        raise UserError(f"teacher: {name} finds published targets by the texts of a recipe's data. {wanted}")
    if entry.reads:
        raise UserError(f"teacher: {name} reads its targets from columns of a recipe's data. {wanted}")
    if entry.output_directories:
        raise UserError(f"teacher: {name} is trained by a run before it teaches, from a recipe. {wanted}")
    tasks = tasks_of(student)
    auto_class = tasks[0].auto_class if tasks else "AutoModel"
    if auto_class == "AutoModel" and not entry.is_without_model:
        raise UserError(
            f"teacher: the head of '{entry.source}' cannot be chosen from the student, a "
            f"{type(student).__name__}. Load the teacher, and pass the model."
        )
    return entry.load(Head(auto_class), _not_here), entry if entry.caches else None


def _not_here(model: Any, how: Any) -> Any:
    raise UserError("teacher: it is not trained, and only a run trains one. Wanted: a trained model.")
