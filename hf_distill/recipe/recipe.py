"""The recipe of a run as frozen, typed objects; `reader.py` reads one from YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, replace
from typing import Annotated, Any, Literal, cast

from pydantic import Field, SkipValidation

from hf_distill.completions.section import Completions
from hf_distill.component import component
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.export.section import Export
from hf_distill.metrics.section import Evaluation
from hf_distill.objectives.base import Objective
from hf_distill.recipe.origin import Origin
from hf_distill.students.base import Student
from hf_distill.tasks.base import Task
from hf_distill.teachers.base import Teacher

NO_STUDENT = "missing. Wanted: the model to train, or a chain of them."
TWO_STUDENTS = "given together with student. A chain lists all students, the last one too: remove one of the two."
TWO_CHAINS = "given together with chain. Generations are of one student: remove one of the two."


@component
class ReportOptions:
    """What the report measures besides the student.

    Attributes:
        baseline: Also train the same student without the teacher, on the labels alone: same initial weights, same
            training arguments, same number of optimiser steps.
        seeds: How many times to train student and baseline, with consecutive seeds. With several, the report gives the
            spread of the gain.
        latency: Measure the speed of every model after training.
        direct: For a `chain`: also train its last student with the first teacher, for as long, to see what the students
            between them are good for.
    """

    baseline: bool = False
    seeds: Annotated[int, Field(ge=1)] = 1
    latency: bool = True
    direct: bool = False


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
        completions: Keys of the recipe's `completions` that differ in this stage, such as `{by: data}` for a stage that
            learns from the data before the student writes. Default: those of the recipe.
    """

    objectives: SkipValidation[tuple[Objective, ...]]
    training: dict[str, Any] = Field(default_factory=dict)
    completions: SkipValidation[Completions | None] = None


@component
class Link:
    """One student of a chain: an entry like `student`, and what differs in its training.

    Attributes:
        student: The model to train; its keys stand beside the others.
        objectives: The losses of this student, or a `preset` in their place. Default: those of the recipe.
        training: Training arguments that differ from the recipe's `training` for this student.
    """

    student: SkipValidation[Student]
    objectives: SkipValidation[tuple[Objective, ...]] = ()
    training: dict[str, Any] = Field(default_factory=dict)


@component
class Generations:
    """The same student again and again, from fresh weights: each generation teaches the next one.

    Born-again networks (Furlanello et al. 2018, arXiv 1805.04770).

    Attributes:
        count: How many generations; the first learns from `teacher`.
        learn_from: `previous`: each generation learns from the one before. `all`: from the mean of all before it.
        ensemble: Also evaluate the mean of all generations, in the report of the last one.
    """

    count: Annotated[int, Field(ge=1)]
    learn_from: Literal["previous", "all"] = "previous"
    ensemble: bool = False


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
        chain: Several students, each the teacher of the next one; in place of `student`. Beside the keys of a student,
            each may have `objectives` and `training` of its own.
        generations: How many times the same student is trained, each generation being the teacher of the next one:
            `3`, or `{count: 3, ensemble: true}`.
        origin: Set by the reader, so that an error found later still names its line.
        unread: Objectives that were left out since their code may not run now: key path, and class and file of each.
        places: For one run of a chain: key path in this recipe -> key path in the recipe of the chain.
        task: What the models do: a pipeline tag of the Hub, such as `text-classification`.
        data: Where the examples come from.
        teacher: The model to learn from, or where its stored outputs are.
        student: The model to train; of a chain, the last one.
        completions: Who writes the completions that a language model learns from. Default: they are in the data.
        evaluation: Which metrics are computed.
        report: What the report measures besides the student.
        export: In which formats the finished student is written, to run without PyTorch.
        hub: Where the finished student is published.
    """

    task: SkipValidation[Task]
    data: Data
    teacher: SkipValidation[Teacher]
    student: SkipValidation[Student] = cast("Student", None)  # with a chain, its last one
    chain: SkipValidation[tuple[Link, ...]] = ()
    generations: SkipValidation[Generations | None] = None
    objectives: SkipValidation[tuple[Objective, ...]] = ()
    stages: SkipValidation[tuple[Stage, ...]] = ()
    training: dict[str, Any]
    tokenizer: str | None = None
    completions: Completions = Completions()
    evaluation: Evaluation = Evaluation()
    report: ReportOptions = ReportOptions()
    export: Export = Export()
    hub: Hub = Hub()
    origin: SkipValidation[Origin | None] = field(default=None, repr=False, compare=False)
    unread: SkipValidation[tuple[tuple[str, str], ...]] = field(default=(), repr=False, compare=False)
    places: SkipValidation[Mapping[str, str]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Take the student of a chain from its end.

        Raises:
            ValueError: There is neither a student nor a chain, or both, or a chain of generations.
        """
        given: Student | None = self.student
        last = self.chain[-1].student if self.chain else None
        if given is None and last is None:
            raise ValueError(f"student: {NO_STUDENT}")
        if last is not None and given is not None and given != last:
            raise ValueError(f"chain: {TWO_STUDENTS}")
        if self.chain and self.generations is not None:
            raise ValueError(f"generations: {TWO_CHAINS}")
        if last is not None:
            object.__setattr__(self, "student", last)

    @property
    def students(self) -> tuple[tuple[str, Student], ...]:
        """Key path and entry of each student."""
        links = tuple((f"chain[{index}]", link.student) for index, link in enumerate(self.chain))
        return links or (("student", self.student),)

    def with_student(self, student: Student) -> Recipe:
        """Return the recipe with another student; of a chain, another last one."""
        last = tuple(replace(link, student=student) for link in self.chain[-1:])
        return replace(self, student=student, chain=(*self.chain[:-1], *last))

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The trainings of the student in order: the stages, or a single one."""
        return self.stages or (Stage(objectives=self.objectives),)

    def completions_in(self, stage: Stage) -> Completions:
        """Return who writes the completions in a stage of the plan."""
        own = stage.completions
        return self.completions if own is None else replace(own, backend=self.completions.backend)

    @property
    def trusts_code(self) -> bool:
        """Whether a model may run Python code from its repository."""
        return self.teacher.trusts_code or any(getattr(one, "trust_remote_code", False) for _, one in self.students)

    def stage_path(self, index: int) -> str:
        """Return the prefix of key paths in a stage of the plan; `""` if the recipe has no stages."""
        return f"stages[{index}]" if self.stages else ""

    def mistake(self, path: str, message: str) -> UserError:
        """Return the error for the key at `path`, with file and line if the recipe was read from a file."""
        path = self.written_at(path)
        place = self.origin.locate(path) if self.origin else path
        hint = self.origin.hint(path) if self.origin else ""
        return UserError((f"{place}: {message}" if place else message) + hint)

    def written_at(self, path: str) -> str:
        """Return where the recipe's author wrote the key at `path`; another place for one run of a chain."""
        for ours, theirs in self.places.items():
            if path == ours or path.startswith((f"{ours}.", f"{ours}[")):
                return theirs + path.removeprefix(ours)
        return path

    @contextmanager
    def locate(self, section: str) -> Iterator[None]:
        """Context manager: add the recipe's file and line and the path of `section` to a `UserError` raised inside."""
        try:
            yield
        except UserError as error:
            paths = (".".join(part for part in (section, key) if part) for key in error.keys)
            lines = zip(paths, error.mistakes, strict=True)
            raise UserError(*(self.mistake(path, line).mistakes[0] for path, line in lines)) from error
