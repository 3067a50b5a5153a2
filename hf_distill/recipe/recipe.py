"""The recipe: what a run is made of, as frozen typed objects. Reading one from YAML is `reader.py`'s work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field, SkipValidation, field_validator

from hf_distill.component import component
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.objectives.base import Objective
from hf_distill.recipe.origin import Origin
from hf_distill.students.base import Student
from hf_distill.tasks.base import Task
from hf_distill.teachers.base import Teacher


@component
class Evaluation:
    """How models are compared.

    Attributes:
        metrics: Names from `metric_table.METRICS`, or `evaluate/<id or local path>` for the `evaluate` library. The
            first is the headline metric of the report. The task's own list if left out.
    """

    metrics: list[str] = Field(default_factory=list)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: list[str]) -> list[str]:
        from hf_distill.metrics.score import check_names

        check_names(metrics)
        return metrics


@component
class ReportOptions:
    """What the report measures beyond the one student.

    Attributes:
        baseline: Also train the same student, from the same start and with the same budget, without the teacher.
        seeds: Train student (and baseline) this many times with consecutive seeds; the gain then has a spread.
        latency: Measure the speed of every model after training.
    """

    baseline: bool = False
    seeds: Annotated[int, Field(ge=1)] = 1
    latency: bool = True


@component
class Hub:
    """Where the finished student is published.

    Attributes:
        push: Push at the end of the run. The token comes from the environment or the login store, never from here.
        repo_id: `user/name`; the name of `output_dir` under the logged-in user if left out.
        private: Visibility of a repository that the push creates; the Hub's default if left out.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool | None = None


@component
class Stage:
    """One training of several in a row: it starts where the one before it ended.

    Attributes:
        objectives: What this stage compares.
        training: Arguments in which it differs from the recipe's `training`.
    """

    objectives: SkipValidation[tuple[Objective, ...]]
    training: dict[str, Any] = Field(default_factory=dict)


@component
class Recipe:
    """One distillation run.

    Attributes:
        objectives: What is compared; empty where every stage has its own.
        stages: Trainings in a row, in place of one training with `objectives`; all else is the same for them.
        training: Arguments of `transformers.TrainingArguments`; names and types are checked when the recipe is read,
            but the object is only built when the run starts (`bf16=True` raises on a machine without it).
        tokenizer: Model whose tokenizer feeds both models; the student's own (or the teacher's) if left out.
        origin: Set by the reader, so that a mistake found later still names its line.
    """

    task: SkipValidation[Task]
    data: Data
    teacher: SkipValidation[Teacher]
    student: SkipValidation[Student]
    objectives: SkipValidation[tuple[Objective, ...]] = ()
    stages: SkipValidation[tuple[Stage, ...]] = ()
    training: dict[str, Any]
    tokenizer: str | None = None
    evaluation: Evaluation = Evaluation()
    report: ReportOptions = ReportOptions()
    hub: Hub = Hub()
    origin: SkipValidation[Origin | None] = field(default=None, repr=False, compare=False)

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The trainings of the student, in their order: one, or the stages."""
        return self.stages or (Stage(objectives=self.objectives),)

    @property
    def trusts_code(self) -> bool:
        """Whether a model may bring Python code of its own, which then runs."""
        return self.teacher.trusts_code or getattr(self.student, "trust_remote_code", False)

    def stage_path(self, index: int) -> str:
        """Return the key path of a stage of the plan; `""` where the recipe has none and the path starts with a key."""
        return f"stages[{index}]" if self.stages else ""

    def mistake(self, path: str, message: str) -> UserError:
        """Return the error for the key at `path`, with file and line where the recipe was read from a file."""
        place = self.origin.locate(path) if self.origin else path
        hint = self.origin.hint(path) if self.origin else ""
        return UserError((f"{place}: {message}" if place else message) + hint)

    @contextmanager
    def locate(self, section: str) -> Iterator[None]:
        """Give a `UserError` raised inside the block the recipe's file, line and `section` path."""
        try:
            yield
        except UserError as error:
            paths = (".".join(part for part in (section, key) if part) for key in error.keys)
            lines = zip(paths, error.mistakes, strict=True)
            raise UserError(*(self.mistake(path, line).mistakes[0] for path, line in lines)) from error
