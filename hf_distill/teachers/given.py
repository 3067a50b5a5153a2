"""A teacher given as data: its targets are columns that stand beside the examples."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models import open_config
from hf_distill.teachers.base import FineTune, Teacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models import Head
    from hf_distill.objectives import Objective
    from hf_distill.pairing import Pair
    from hf_distill.students import Student
    from hf_distill.tasks import Task
    from hf_distill.teachers.target_columns import Array

What = Literal["probabilities", "logits"]


@component
class GivenTeacher(Teacher):
    """Probabilities or logits of every class, row by row: of a model that is not here, of several, or of people.

    The report has its metrics on the eval split; there is no model whose size or speed could be measured.

    Attributes:
        columns: `probabilities` or `logits` -> the column that holds a list of them in every row (`{probabilities:
            soft}`), or one column a class (`{probabilities: [negative, positive]}`).
        labels: Names of the classes in the order of the list or of the columns; the columns' own names if left out.
    """

    name: ClassVar[str] = "given"

    columns: dict[What, str | list[str]]
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse columns that say nothing, or two things, and classes without an order."""
        if len(self.columns) != 1:
            raise ValueError("columns: wanted either probabilities or logits, such as {probabilities: COLUMN}")
        (columns,) = self.columns.values()
        if isinstance(columns, str) and self.labels is None:
            raise ValueError(
                f"which class is which in the lists of '{columns}' is not known. Name the classes in their order: "
                "labels: [name of the first, ...]"
            )
        names = self.classes
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"wanted two classes or more, each named once; found {', '.join(names) or 'none'}")
        if not isinstance(columns, str) and len(columns) != len(names):
            raise ValueError(f"labels: {len(names)} names for {len(columns)} columns; wanted one for each")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the targets."""
        (columns,) = self.columns.values()
        return tuple(self.labels if self.labels is not None else columns)

    @property
    def has_model(self) -> bool:
        """See `Teacher.has_model`."""
        return False

    @property
    def has_head(self) -> bool:
        """See `Teacher.has_head`."""
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Teacher.reads`."""
        (columns,) = self.columns.values()
        return (columns,) if isinstance(columns, str) else tuple(columns)

    def config(self) -> PretrainedConfig:
        """Return what there is of a configuration: the names of the classes."""
        from transformers import PretrainedConfig

        return self._named(PretrainedConfig())

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the student's checkpoint, with the teacher's classes: it has no other model.

        Raises:
            UserError: The student is to be made from the teacher.
        """
        if student.copies_teacher or student.source is None:
            raise UserError(
                "the teacher is given as data: there is no model to take layers or sizes from. Wanted a checkpoint, "
                "student: {name: pretrained, model: ...}, or from_config with model: ..."
            )
        return self._named(copy.deepcopy(student.own_config() or open_config(student.source)))

    def _named(self, config: PretrainedConfig) -> PretrainedConfig:
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: at for at, name in enumerate(self.classes)}
        config.architectures = None
        return config

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Is not called: there is no model."""
        raise AssertionError("a teacher given as data has no model to load")

    def check_task(self, task: Task) -> None:
        """Refuse a task whose targets cannot be given row by row."""
        if task.name != "text-classification":
            raise UserError(
                f"targets given as data are those of text-classification, but the task is {task.name}. Take a model as "
                "the teacher: {name: pretrained, model: ...}.",
                key="name",
            )

    def check_objective(self, objective: Objective, task: Task, every: Sequence[Objective], pair: Pair | None) -> None:
        """Refuse an objective that looks into a model, or that wants logits where probabilities are given."""
        if not objective.needs_teacher:
            return
        if objective.looks_inside:
            raise UserError(
                f"'{objective.name}' looks into the teacher, and this one is given as data. Wanted one that compares "
                "answers, such as kl."
            )
        if objective.name == "logits_mse" and "logits" not in self.columns:
            raise UserError(
                "'logits_mse' compares logits, and the teacher is given as probabilities, which are logits up to a "
                "constant. Use kl, or give columns: {logits: ...}."
            )

    def read(self, splits: Mapping[str, Dataset], *, exclusive: bool | None) -> dict[str, Array]:
        """See `Teacher.read`."""
        from hf_distill.teachers.target_columns import read_targets  # which takes torch with it

        ((what, columns),) = self.columns.items()
        if exclusive is None:
            raise UserError("targets of classes are given, but the labels are numbers (regression).", key="columns")
        return {
            name: read_targets(split, name, columns, len(self.classes), what, exclusive=exclusive)
            for name, split in splits.items()
        }
