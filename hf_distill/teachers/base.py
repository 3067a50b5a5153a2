"""What a teacher is: a recipe entry that loads (or first trains) the model to learn from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

    from hf_distill.cache.cache import Cache
    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task


class FineTune(Protocol):
    """Trains a model on the run's own data, or finds it trained; the run provides it to teachers that need it."""

    def __call__(self, model: PreTrainedModel, training: dict[str, object], directory: str | None) -> PreTrainedModel:
        """Return `model` trained with the `labels` objective; its `name_or_path` is the directory that it is kept in.

        Args:
            model: Where to start.
            training: Training arguments that differ from the recipe's.
            directory: Where to keep it; beside the student if None.
        """


# How a model is opened where an entry does not say.
_OPENING: dict[str, Any] = {"revision": None, "trust_remote_code": False}


@dataclass(frozen=True)
class Storing:
    """What a run tells an entry that stores its targets.

    Attributes:
        data: As the teacher reads it.
        task: The recipe's.
        objectives: Of all stages.
        pair: Both models.
        args: Processes, device and precision.
        say: Tells the user what goes on.
    """

    data: Prepared
    task: Task
    objectives: Sequence[Objective]
    pair: Pair
    args: TrainingArguments
    say: Callable[[str], None]


@component
class Teacher(ABC):
    """Where the teacher comes from."""

    name: ClassVar[str]

    @property
    def source(self) -> str | None:
        """The model the entry names, if it names one."""
        return getattr(self, "model", None)

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are quantized when it is loaded, so that a student cannot copy them."""
        return getattr(self, "quantization", None) is not None

    @property
    def fine_tuning(self) -> Mapping[str, Mapping[str, Any]]:
        """Key path -> training arguments with which the run first trains a model of it; empty where it trains none."""
        return {}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Where the models lie that it first trains; None for the directory of the run."""
        return () if self.has_head else (getattr(self, "output_dir", None),)

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield each entry that names a model, by its key path below this one; itself, under no key, as a rule."""
        yield "", self

    def every_entry(self) -> Iterator[Teacher]:
        """Yield itself and the entries inside it."""
        yield self

    @property
    def opening(self) -> dict[str, Any]:
        """How what lies beside its model is opened: `revision` and `trust_remote_code`."""
        return {name: getattr(self, name, default) for name, default in _OPENING.items()}

    @property
    def trusts_code(self) -> bool:
        """Whether a model of it may bring Python code of its own, which then runs."""
        return any(one.opening["trust_remote_code"] for one in self.every_entry())

    @property
    def is_without_model(self) -> bool:
        """Whether it has no model of its own, so that its configuration is the student's."""
        return False

    @property
    def not_cached(self) -> str | None:
        """Why its targets cannot be stored; None where they can."""
        return None

    @property
    def caches(self) -> bool:
        """Whether its targets are stored, and read back by students (see `cache_for`)."""
        return False

    @property
    def published(self) -> tuple[str | None, bool | None] | None:
        """Repository and visibility of the stored targets on the Hub; None where they are not published."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the data that hold its targets."""
        return ()

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """Return the teacher's configuration, without loading weights."""

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the teacher in a run with this student.

        Raises:
            UserError: It is not there, or the student cannot be made without a model.
        """
        return self.config()

    @property
    @abstractmethod
    def has_head(self) -> bool:
        """Whether the checkpoint brings the task's head, and with it an order of labels."""

    def check_task(self, task: Task) -> None:  # noqa: B027
        """Refuse a task that it cannot teach, or a teacher that cannot be had here, before anything is loaded.

        Raises:
            UserError: It cannot.
        """

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:  # noqa: B027
        """Refuse a student, or a teacher of this kind, with which this entry cannot do what it says.

        Args:
            task: The recipe's.
            every: The objectives of all stages.
            pair: Both models, before anything is loaded.

        Raises:
            UserError: It cannot; `key` is the setting.
        """

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what it gives in a training, as far as that is known before anything is loaded.

        Args:
            task: The recipe's.
            every: The objectives of all stages.
            pair: Both models; None where they cannot be looked at.
        """
        return Gives.everything()

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return what the task makes of the splits; and the same with targets, where these are columns of the data.

        Args:
            task: The recipe's.
            splits: What the models read.
            beside: The same rows, with the columns that it `reads`.
            setup: What the task prepares the data for.
            pair: Both models.

        Returns:
            The data; and the data with targets in every batch and the source that gives them, or None where a model is
            loaded or trained first.

        Raises:
            UserError: The data does not fit the task, or (the key starts with `teacher`) holds no such targets.
        """
        return self.freeze(task.prepare(splits, setup)), None

    def look(  # noqa: B027
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair
    ) -> None:
        """Refuse targets of the first rows of large data, as `prepare` does those of all. See there.

        Raises:
            UserError: A row has none, or impossible ones.
        """

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return what `--check` says of it.

        Args:
            config: Its configuration.
            size: What it says of a model.
        """
        return size(config)

    def cached_in_words(self, task: Task, objectives: Sequence[Objective], pair: Pair) -> str:
        """Return what will be stored of it, where it `caches`, and what that takes.

        Args:
            task: The recipe's.
            objectives: Of all stages.
            pair: Both models.
        """
        return ""

    def freeze(self, prepared: Prepared) -> Prepared:
        """Return the data as this teacher is to see it."""
        return prepared

    @abstractmethod
    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return the model, in eval mode; or a source of targets, where it is not one model."""

    def cache_for(self, model: PreTrainedModel, storing: Storing) -> Cache:
        """Return the cache that belongs to a run, be it there or not, of an entry that `caches`.

        Args:
            model: What `load` returned.
            storing: What the run knows.
        """
        raise NotImplementedError(f"{self.name} does not store its targets")


def config_of_student(student: Student, why: str) -> PretrainedConfig:
    """Return the configuration of the student's checkpoint, for a teacher that has no model.

    Args:
        student: The recipe's.
        why: The beginning of the message.

    Raises:
        UserError: The student is to be made from the teacher.
    """
    from hf_distill.models.loading import open_config

    if student.copies_teacher or student.source is None:
        raise UserError(
            f"{why}: there is no model to take layers or sizes from. Wanted a checkpoint, student: {{name: pretrained, "
            "model: ...}, or from_config with model: ..."
        )
    return copy.deepcopy(student.own_config() or open_config(student.source))


@contextmanager
def under(path: str) -> Iterator[None]:
    """Have mistakes of an entry inside another one told at its own keys."""
    try:
        yield
    except UserError as error:
        raise UserError(*error.mistakes, key=".".join(part for part in (path, error.key) if part)) from error
