"""Which task a model is for, and which reads the columns of a data set, for those who bring models and no recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.models.outline import is_of
from hf_distill.models.sentence_encoder import encoding_of
from hf_distill.tasks import TASKS, SentenceSimilarity, Task

if TYPE_CHECKING:
    from torch import nn


def tasks_of(model: nn.Module) -> list[Task]:
    """Return the tasks that a model has the head for, with their default settings; none for a head that none has.

    Args:
        model: PEFT-wrapped or not.
    """
    inside = base_model(model)
    if encoding_of(inside) is not None:
        return [SentenceSimilarity()]
    own = type(inside).__name__
    # "AutoModel" fits every class: encoders of sentences are known by what they were made with.
    return [task() for task in TASKS.values() if task.auto_class != "AutoModel" and is_of(own, task.auto_class)]


def reader_of(columns: Sequence[str], tasks: Sequence[Task], name: str) -> Task:
    """Return the task that reads a data set with these columns.

    Args:
        columns: Of the data set.
        tasks: Those that the student has the head for; one at least.
        name: What a message calls the data set.

    Raises:
        UserError: None of them reads it.
    """

    def known(task: Task) -> set[str]:
        found = set(task.roles) & set(columns)
        return found if all(role in found for role, needed in task.roles.items() if needed) else set()

    best = max(tasks, key=lambda task: len(known(task)))
    if known(best):
        return best
    wanted = "; or ".join(f"{', '.join(task.roles)} ({task.name})" for task in tasks)
    raise UserError(
        f"{name} has the columns {', '.join(columns)}, and the student reads none of them. Wanted, to be tokenised: "
        f"{wanted}. Rename them ({name}.rename_column('{columns[0]}', '{next(iter(tasks[0].roles))}')), or tokenise it."
    )
