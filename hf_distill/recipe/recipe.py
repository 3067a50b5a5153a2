"""The recipe of a run as frozen, typed objects; `reader.py` reads one from YAML."""

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
    """Which metrics are computed.

    Attributes:
        metrics: Names of metrics; the first is the headline of the report. `evaluate/<id or local path>` takes one from
            the `evaluate` library. Default: the task's own.
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
    """What the report measures besides the student.

    Attributes:
        baseline: Also train the same student without the teacher, on the labels alone: same initial weights, same
            training arguments, same number of optimiser steps.
        seeds: How many times to train student and baseline, with consecutive seeds. With several, the report gives the
            spread of the gain.
        latency: Measure the speed of every model after training.
    """

    baseline: bool = False
    seeds: Annotated[int, Field(ge=1)] = 1
    latency: bool = True


@component
class Hub:
    """Where the finished student is published.

    Attributes:
        push: Publish the student with its tokenizer, model card and report when the run ends. Write access is checked
            before training. The token comes from `HF_TOKEN` or `hf auth login`, never from the recipe.
        repo_id: Repository to publish to, `user/name`. Default: the name of `output_dir`, under your account.
        private: Whether a repository that the push creates is private. Default: the Hub's.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool | None = None


@component
class Stage:
    """One of several trainings in a row. It starts from the student of the stage before.

    Attributes:
        objectives: The losses of this stage, or a `preset` in their place.
        training: Training arguments that differ from the recipe's `training` in this stage.
    """

    objectives: SkipValidation[tuple[Objective, ...]]
    training: dict[str, Any] = Field(default_factory=dict)


@component
class Recipe:
    """One distillation run.

    `training` stays a mapping. The object is built when the run starts, because `bf16=True` raises on a machine without
    it.

    Attributes:
        objectives: The losses: a list. The training loss is their weighted sum.
        stages: Several trainings in a row, each with its own losses; in place of `objectives`.
        training: Arguments of `transformers.TrainingArguments`. Names and types are checked when the recipe is read.
        tokenizer: Model whose tokenizer both models use. Without it, tokenizers that differ are each used by their own
            model, if the task allows that. Default: the student's, or the teacher's if the student has none.
        origin: Set by the reader, so that an error found later still names its line.
        task: What the models do: a pipeline tag of the Hub, such as `text-classification`.
        data: Where the examples come from.
        teacher: The model to learn from, or where its stored outputs are.
        student: The model to train.
        evaluation: Which metrics are computed.
        report: What the report measures besides the student.
        hub: Where the finished student is published.
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
        """The trainings of the student in order: the stages, or a single one."""
        return self.stages or (Stage(objectives=self.objectives),)

    @property
    def trusts_code(self) -> bool:
        """Whether a model may run Python code from its repository."""
        return self.teacher.trusts_code or getattr(self.student, "trust_remote_code", False)

    def stage_path(self, index: int) -> str:
        """Return the prefix of key paths in a stage of the plan; `""` if the recipe has no stages."""
        return f"stages[{index}]" if self.stages else ""

    def mistake(self, path: str, message: str) -> UserError:
        """Return the error for the key at `path`, with file and line if the recipe was read from a file."""
        place = self.origin.locate(path) if self.origin else path
        hint = self.origin.hint(path) if self.origin else ""
        return UserError((f"{place}: {message}" if place else message) + hint)

    @contextmanager
    def locate(self, section: str) -> Iterator[None]:
        """Context manager: add the recipe's file and line and the path of `section` to a `UserError` raised inside."""
        try:
            yield
        except UserError as error:
            paths = (".".join(part for part in (section, key) if part) for key in error.keys)
            lines = zip(paths, error.mistakes, strict=True)
            raise UserError(*(self.mistake(path, line).mistakes[0] for path, line in lines)) from error
