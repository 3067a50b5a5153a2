"""The recipe: what a run is made of, as frozen typed objects. Reading one from YAML is `reader.py`'s work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, SkipValidation, Strict, field_validator

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives.base import Objective
from hf_distill.students.base import Student
from hf_distill.tasks.base import Task
from hf_distill.teachers.base import Teacher

# Split of a run -> what data sets on the Hub mostly call it.
USUAL_SPLITS = {"train": "train", "eval": "validation"}


@dataclass(frozen=True)
class Origin:
    """Where a recipe was read.

    Attributes:
        file: As the user named it.
        lines: Key path -> line, for every key of the file (`"objectives[1].weight"` -> 12).
        overrides: Key path -> the `key=value` of the command line that set it.
        hints: Key path of a list of objectives -> what to say of a mistake in a key of its entries.
    """

    file: str
    lines: Mapping[str, int]
    overrides: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)

    def nearest(self, path: str) -> str:
        """Return `path` if it was given, else the nearest key above it that was; `""` for the whole recipe."""
        while path and path not in self.lines and path not in self.overrides:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return path

    def locate(self, path: str) -> str:
        """Return `file:line: path`, or `override 'key=value': path` for what came from the command line."""
        at = self.nearest(path)
        place = f"override '{self.overrides[at]}'" if at in self.overrides else f"{self.file}:{self.lines.get(at, 1)}"
        return f"{place}: {path}" if path else place

    def hint(self, path: str) -> str:
        """Return what to add to a mistake at `objectives[0].key`: how to change what the file does not spell out."""
        place, _, key = path.rpartition("].")
        return self.hints.get(place.rpartition("[")[0], "") if key else ""


def _usual() -> dict[str, str | int | float]:
    return {**USUAL_SPLITS}


@component
class Data:
    """Where the examples come from.

    Attributes:
        path: Hub id, local file or directory, `package:NAME/PATH` (a file inside an installed Python package), or
            a mapping from split name to one or more files.
        name: Configuration of a Hub dataset (`sst2` of `nyu-mll/glue`).
        revision: Git revision of a Hub dataset.
        columns: Role -> column (`{text: sentence}`), or for labels the columns, one a class; a role left out is looked
            up under its own name. Of files without a header, its number from the left (`0`) or the right (`-1`).
        splits: `train` and `eval` -> split of the dataset, slicing included (`"train[:2000]"`); one that is left out is
            `train` or `validation`. A number for `eval` holds out that share of train (`0.1`), or so many rows (`500`).
        labels: Names of integer labels, in the order of the integers, where the dataset does not carry them; or, for
            some labels or all, as text, the name of their class, None where they stand for "no label".
        label_separator: What stands between the labels of a row that has several in one text (`joy,love`).
        max_length: Longest input in tokens; longer ones are truncated. The tokenizer's limit if left out.
    """

    path: str | dict[str, str | list[str]]
    name: str | None = None
    revision: str | None = None
    columns: dict[str, str | Annotated[int, Strict()] | Annotated[list[str], Field(min_length=2)]] = Field(
        default_factory=dict
    )
    splits: dict[str, str | Annotated[int, Strict()] | Annotated[float, Strict()]] = Field(default_factory=_usual)
    labels: list[str] | dict[str, str | None] | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(gt=0)] | None = None

    @field_validator("splits")
    @classmethod
    def _fill_in(cls, splits: dict[str, str | int | float]) -> dict[str, str | int | float]:
        """Naming one split, in a recipe or on the command line, leaves the other where it usually is."""
        return {**_usual(), **splits}


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
        return any(getattr(entry, "trust_remote_code", False) for entry in (self.teacher, self.student))

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
