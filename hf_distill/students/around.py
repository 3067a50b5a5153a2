"""The base class of entries around another student, which make something else of its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, SkipValidation, field_validator

from hf_distill.component import component
from hf_distill.errors import under
from hf_distill.students.base import Made, MeasuredStudent, Student
from hf_distill.students.copy_layers import CopyLayers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.cut_tokenizer import Cut
    from hf_distill.models.loading import Head
    from hf_distill.models.token_counts import TokenCounts
    from hf_distill.students.cost import Cost


@component
class WholeTeacher(CopyLayers):
    """A copy of the teacher with all of its layers."""

    name: ClassVar[str] = "whole_teacher"

    layers: int | list[int] = 0

    def apart_from_teacher(self, checkpoint: str) -> str:
        """Return the entry to start from in its place, which stands in no recipe."""
        return f"student: {{name: pretrained, model: {checkpoint}}}"

    def chosen(self, total: int, field: str = "layers") -> list[int]:
        """Return the numbers of all layers."""
        return list(range(total))


@component
class AroundStudent(MeasuredStudent):
    """An entry with one entry inside it, under the key `student`, whose model it starts from.

    Attributes:
        student: The student to start from. Default: the teacher, whole.
    """

    student: SkipValidation[Student] = Field(default_factory=WholeTeacher)

    @field_validator("student")
    @classmethod
    def _fits_inside(cls, student: Student) -> Student:
        for key in ("freeze", "qat"):
            if getattr(student, key):
                raise ValueError(f"{key} is a key of the outer entry: write it beside `student`, not in it")
        if type(student).hooks is not Student.hooks:  # the hooks of the outer entry are the ones that are called
            raise ValueError(
                f"{student.name} does something while the model trains, which is lost inside another entry: only the "
                f"outermost one can. {_way_out(cls, student)}"
            )
        return student

    @property
    def inside(self) -> Student:
        """The student to start from."""
        return self.student

    def below(self) -> AbstractContextManager[None]:
        """Context manager: put the key of the inner entry before the keys of errors."""
        return under("student")

    @property
    def source(self) -> str | None:
        """The model that the inner entry names; None if it names none."""
        return self.inside.source

    @property
    def revision(self) -> str | None:
        """The Git revision of that model; None for the main branch."""
        return getattr(self.inside, "revision", None)

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with that model may run."""
        return bool(getattr(self.inside, "trust_remote_code", False))

    @property
    def vocabulary(self) -> str | None:
        """The model whose tokenizer the inner entry's weights were trained with; None for the teacher."""
        return self.inside.vocabulary

    @property
    def copies_teacher(self) -> bool:
        """Whether the inner entry copies weights from the teacher."""
        return self.inside.copies_teacher

    def apart_from_teacher(self, checkpoint: str) -> str:
        """Return what to write for the inner student, so that nothing is copied from the teacher."""
        return self.inside.apart_from_teacher(checkpoint)

    def every_entry(self) -> Iterator[Student]:
        """Yield this entry and those inside it."""
        yield self
        yield from self.student.every_entry()

    @property
    def cost(self) -> Cost | None:
        """What the inner student may cost, if a run is to choose its shape by that; else None."""
        return self.student.cost

    def shapes(self, teacher: PretrainedConfig) -> Iterator[Student]:
        """Yield this entry around each shape of the inner student."""
        with under("student"):
            for one in self.student.shapes(teacher):
                yield replace(self, student=one)

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the inner student."""
        with self.below():
            return self.inside.config(teacher)

    def in_words(self, model: PreTrainedModel) -> Sequence[str]:
        """Return what the inner student says of itself."""
        return self.inside.in_words(model)

    def own_config(self) -> PretrainedConfig | None:
        """Return the configuration of the inner student's checkpoint; None if it is derived from the teacher."""
        with self.below():
            return self.inside.own_config()

    def cut(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, count: Callable[[], TokenCounts]
    ) -> Cut | None:
        """Return the part of a vocabulary that the inner student has; None for all of it."""
        with self.below():
            return self.inside.cut(tokenizer, config, count)

    def check_steps(self, steps: int) -> None:
        """Refuse what the inner student refuses."""
        with self.below():
            self.inside.check_steps(steps)

    def inner(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Return the model of the inner student, and what the report says about how it was made."""
        with self.below():
            return self.inside.made(teacher, head, rows)


def _way_out(outer: type[AroundStudent], inner: Student) -> str:
    """Return what to do about an entry that is inside another one, and cannot be."""
    if isinstance(inner, AroundStudent) and outer.hooks is Student.hooks:
        return f"Turn the two around: {{name: {inner.name}, student: {{name: {outer.name}}}}}."
    return "Keep one of the two."
