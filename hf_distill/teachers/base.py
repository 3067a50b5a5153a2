"""What a teacher is: a recipe entry that loads (or first trains) the model to learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_distill.component import component

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Task
    from hf_distill.teachers.token_columns import Names, Positions


class FineTune(Protocol):
    """Trains a model on the run's own data, or finds it trained; the run provides it to teachers that need it."""

    def __call__(self, model: PreTrainedModel, training: dict[str, object], directory: str | None) -> PreTrainedModel:
        """Return `model` trained with the `labels` objective; its `name_or_path` is the directory that it is kept in.

        Args:
            model: Where to start.
            training: Training arguments that differ from the recipe's.
            directory: Where to keep it; beside the student if None.
        """


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
    def fine_tuning(self) -> tuple[str, Mapping[str, Any]] | None:
        """Key path and training arguments with which the run first trains it; None where it does not."""
        return None

    @property
    def has_model(self) -> bool:
        """Whether there is a model to load; without one, its targets are columns of the data."""
        return True

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

    def check_objective(  # noqa: B027
        self, objective: Objective, task: Task, every: Sequence[Objective], pair: Pair | None
    ) -> None:
        """Refuse an objective that wants what this teacher does not give, before anything is loaded.

        Args:
            objective: What is compared.
            task: The recipe's.
            every: The objectives of all stages.
            pair: Both models; None where they cannot be looked at.

        Raises:
            UserError: It does; `key` is the setting.
        """

    def read(self, splits: Mapping[str, Dataset], *, exclusive: bool | None) -> dict[str, NDArray[Any]]:
        """Return its targets, where they are columns: split -> logits `(rows, classes)`, float32.

        Args:
            splits: With the columns that it `reads`.
            exclusive: Whether an example has one class of all, or any number of them; None where there are no classes.

        Raises:
            UserError: A row has none, or impossible ones; `key` is the setting.
        """
        return {}

    def read_tokens(
        self, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], names: Names
    ) -> dict[str, list[Positions]]:
        """Return its targets, where they are columns with the likeliest tokens at every position of a completion.

        Args:
            splits: What the student reads.
            beside: The same rows, with the columns that it `reads`.
            names: The student's tokens.

        Raises:
            UserError: A row has none, impossible ones, or those of another text; `key` is the setting.
        """
        return {}

    def freeze(self, prepared: Prepared) -> Prepared:
        """Return the data as this teacher is to see it."""
        return prepared

    @abstractmethod
    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Return the model, in eval mode."""
