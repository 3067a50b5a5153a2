"""The base class of entries around another teacher, whose model is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_distill.teachers.base import FineTuning, Teacher, under

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class AroundTeacher(Teacher):
    """An entry with one entry inside it, under the key `teacher`, which says everything about the model.

    Attributes:
        teacher: The entry inside.
    """

    teacher: Teacher

    @property
    def source(self) -> str | None:
        """Id or path of the model that the inner entry names."""
        return self.teacher.source

    @property
    def opening(self) -> dict[str, Any]:
        """`revision` and `trust_remote_code` of the inner entry."""
        return self.teacher.opening

    @property
    def is_quantized(self) -> bool:
        """Whether the inner teacher is quantized."""
        return self.teacher.is_quantized

    @property
    def writes(self) -> bool:
        """Whether the inner teacher can write completions."""
        return super().writes and self.teacher.writes

    @property
    def writes_elsewhere(self) -> bool:
        """Whether the inner teacher writes by its own means."""
        return self.teacher.writes_elsewhere

    @property
    def reads_another_prompt(self) -> bool:
        """Whether the inner teacher reads another prompt than the student."""
        return self.teacher.reads_another_prompt

    @property
    def has_head(self) -> bool:
        """Whether the inner teacher's checkpoint has a trained head."""
        return self.teacher.has_head

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """Key path -> training of each model that the run trains first for the inner entry."""
        return {f"teacher.{path}": how for path, how in self.teacher.fine_tuning.items()}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Directories of the models that the run trains first for the inner entry."""
        return self.teacher.output_directories

    def every_entry(self) -> Iterator[Teacher]:
        """Yield this entry and those inside it."""
        yield self
        yield from self.teacher.every_entry()

    def config(self) -> PretrainedConfig:
        """Return the configuration of the inner teacher."""
        with under("teacher"):
            return self.teacher.config()
