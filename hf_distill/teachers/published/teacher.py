"""A teacher of another party, of which only the targets for public texts are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives
from hf_distill.teachers.base import FineTune, Teacher, config_of_student, under

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.cache.published import Published
    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.rows.base import RowLayout
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task

GIVES = Gives("a teacher of another party")
_KINDS = {"classes": "one class a text", "binary": "several classes a text", "values": "numbers"}


@component
class PublishedTeacher(Teacher):
    """The targets that another party published for public texts (`hf-distill cache RECIPE --targets-only`): no model.

    Every text of the recipe, those of eval too, has to be among them. Classes are matched by name. The report has the
    metrics of the targets on the eval split, but no size or speed.

    Attributes:
        path: Directory of the published targets.
    """

    name: ClassVar[str] = "published"

    path: str

    @property
    def is_without_model(self) -> bool:
        """Always true: the model stays with the other party."""
        return True

    @property
    def is_published(self) -> bool:
        """Always true: only the targets are there."""
        return True

    @property
    def not_cached(self) -> str:
        """Why published targets are not stored again."""
        return "published targets are stored already: use them without cached"

    @property
    def has_head(self) -> bool:
        """Always true: the classes have an order."""
        return True

    def open(self) -> Published:
        """Return the targets.

        Raises:
            UserError: There are none, or they are damaged.
        """
        from hf_distill.cache.published import read

        return read(Path(self.path).expanduser())

    def config(self) -> PretrainedConfig:
        """Return a default configuration with the names of the classes."""
        from transformers import PretrainedConfig

        return self._named(PretrainedConfig())

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the student's checkpoint, with the teacher's class names.

        Raises:
            UserError: The student copies layers or sizes of a teacher model, and there is none.
        """
        return self._named(config_of_student(student, "the teacher stays with another party"))

    def _named(self, config: PretrainedConfig) -> PretrainedConfig:
        held = self.open()
        width = held.logits.shape[-1]
        names = held.labels or tuple(f"LABEL_{at}" for at in range(width))
        config.id2label = dict(enumerate(names))
        config.label2id = {name: at for at, name in enumerate(names)}
        config.architectures = None
        return config

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        held = self.open()
        of = "" if held.size is None else f", of a teacher that learned from {held.size:,} labelled rows"
        return f"no model, published targets of {len(held.known):,} texts{of}"

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Raise: there is no model, and no run calls this."""
        raise AssertionError("published targets have no model to load")

    def check_task(self, task: Task) -> None:
        """Refuse a task whose targets are not one row of logits for each text."""
        check_task(task)

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the targets give to objectives: whole logits."""
        return GIVES

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource]]:
        """Return the prepared data, and the same with the targets of each text."""
        from hf_distill.teachers.given.cache import numbered, replaying

        prepared = task.prepare(numbered(splits), setup)
        with under("teacher"):
            logits = self.read(task, splits, prepared.layout)
        return replaying(prepared, logits, pair.teacher, GIVES)

    def look(self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair) -> None:
        """Check that the first rows have targets, as `prepare` does in all rows."""
        held = self.open()
        for name, split in splits.items():
            held.of(split, name, inputs_of(task))

    def read(self, task: Task, splits: Mapping[str, Dataset], layout: RowLayout) -> dict[str, NDArray[Any]]:
        """Return the targets: split -> logits, float32 `(rows, classes)`.

        Raises:
            UserError: They are of another kind than the labels, or texts are not among them.
        """
        held, kind = self.open(), getattr(layout, "kind", None)
        if held.kind != kind:
            raise UserError(
                f"the targets in {held.path} are of {_KINDS.get(held.kind, held.kind)}, and here the task has "
                f"{_KINDS.get(str(kind), kind)}. Wanted the same for all parties.",
                key="path",
            )
        return {name: np.ascontiguousarray(held.of(split, name, inputs_of(task))) for name, split in splits.items()}


def check_task(task: Task) -> None:
    """Refuse to publish targets, or to learn from published ones, for a task without one row of logits for each text.

    Raises:
        UserError: It is another task.
    """
    if task.name != "text-classification":
        raise UserError(
            f"published targets are one row of logits for each text, whichever tokens a party's model reads, and those "
            f"of {task.name} are not. Wanted text-classification; in other tasks share a cache: {{name: cached}}.",
            key="name",
        )


def inputs_of(task: Task) -> list[str]:
    """Return the roles that models read."""
    return [role for role in task.roles if role != task.label_role]
