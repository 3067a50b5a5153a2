"""The base class of teachers: recipe entries that load, or first train, the model to learn from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_distill.component import component, settings
from hf_distill.errors import UserError
from hf_distill.errors import under as under
from hf_distill.models.needs import Gives
from hf_distill.models.training_hooks import TrainingHooks

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback, TrainingArguments

    from hf_distill.cache.replay import Data
    from hf_distill.models.loading import Head
    from hf_distill.models.lora import Lora
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task
    from hf_distill.tasks.base import View
    from hf_distill.teachers.early_stopping import EarlyStopping


@dataclass(frozen=True)
class FineTuning(TrainingHooks):
    """How a teacher is trained before it teaches.

    Attributes:
        training: Training arguments that differ from the recipe's.
        directory: Directory to store the model in; None for a folder in the student's directory.
        objectives: What it learns from; empty for the labels.
        rows: Number of rows with a label -> those of them to train on, as indices; one may come twice. None for all.
        private: Whether these rows are private, so that the curves of the training are in no report.
        lora: Adapters to train in place of the weights, merged at the end; None to train all weights.
        early_stopping: When the training ends before its last step; None for never.
        view: The data as this teacher reads it, if it is one of several with data of their own.
        which: Which of several teachers this is, as in `teacher 2`: a number, or its name; empty for a single one.
    """

    training: Mapping[str, Any]
    directory: str | None = None
    objectives: Sequence[Objective] = ()
    rows: Callable[[int], Sequence[int]] | None = None
    private: bool = False
    lora: Lora | None = None
    early_stopping: EarlyStopping | None = None
    view: View | None = None
    which: str = ""

    def arguments(self, shared: Mapping[str, Any], metrics: Iterable[str] = ()) -> dict[str, Any]:
        """Return all its training arguments.

        Args:
            shared: The recipe's, except those of its length and learning rate.
            metrics: Metrics that evaluations on held-out rows have, the headline first; empty if not known.
        """
        early = {} if self.early_stopping is None else self.early_stopping.arguments(shared, self.training, metrics)
        return {**shared, **self.training, **early}

    @property
    def wraps(self) -> bool:  # type: ignore[override]
        """Whether adapters are trained in place of the weights."""
        return self.lora is not None

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the model, with adapters if there are any."""
        if self.lora is None:
            return model
        with under("lora"):
            return self.lora.wrap(model)

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        """Return the model with its adapters merged."""
        from hf_distill.models.lora import merged

        with under("lora"):
            return merged(model)

    def callbacks(self, model: nn.Module) -> Sequence[TrainerCallback]:
        """Return the callback that ends the training early, if there is one."""
        return () if self.early_stopping is None else (self.early_stopping.callback(),)

    def in_words(self, model: nn.Module) -> Sequence[str]:
        """Return a line that says how much is trained, if adapters are."""
        return () if self.lora is None else (self.lora.trained_in_words(model),)

    def deciding(self) -> dict[str, Any]:
        """Return what decides the trained weights besides model, data, objectives and training arguments."""
        own = {"lora": self.lora, "early_stopping": self.early_stopping}
        return {name: settings(one) for name, one in own.items() if one is not None}

    def facts(self, history: Sequence[Mapping[str, Any]], args: TrainingArguments, held_out: int) -> dict[str, Any]:
        """Return what the report and the model card say about the training; empty for a plain one.

        Args:
            history: `log_history` of the training.
            args: Its training arguments.
            held_out: Number of rows of its evaluations.
        """
        facts = {} if self.lora is None else {"LoRA": {"rank": self.lora.r, "alpha": self.lora.alpha}}
        if self.early_stopping is not None:
            facts |= self.early_stopping.facts(history, args, held_out)
        return facts


class FineTune(Protocol):
    """Fine-tunes a model on the run's own data, or loads it if that was done before; the run passes it to teachers."""

    def __call__(self, model: PreTrainedModel, how: FineTuning) -> PreTrainedModel:
        """Return `model` trained; its `name_or_path` is the directory where it is stored.

        Args:
            model: The model to start from.
            how: Training arguments, rows, and where to store the result.
        """


# How a model is opened if its entry does not say.
_OPENING: dict[str, Any] = {"revision": None, "trust_remote_code": False}


@dataclass(frozen=True)
class Storing:
    """What an entry needs to know about a run to store its targets.

    Attributes:
        data: The data with the teacher's tokens.
        task: The task of the recipe.
        objectives: Objectives of all stages.
        pair: Teacher and student.
        args: Processes, device and precision.
        say: Called with each line for the user.
    """

    data: Prepared
    task: Task
    objectives: Sequence[Objective]
    pair: Pair
    args: TrainingArguments
    say: Callable[[str], None]


class StoredTargets(Protocol):
    """Targets that are computed once for all examples of a run, and read back in training; from `Teacher.cache_for`."""

    @property
    def path(self) -> Path:
        """Directory of the files."""

    @property
    def found(self) -> bool:
        """Whether all targets were stored already when `fill` was called."""

    @property
    def size(self) -> int:
        """Size of all files in bytes, approximately."""

    def in_words(self) -> str:
        """Return a description of what is stored, with its size, for the user and the report."""

    def fill(self, args: TrainingArguments) -> None:
        """Compute and store what is missing; called once, by all processes together.

        Args:
            args: Device, precision, batch size and processes.

        Raises:
            UserError: The directory holds other targets, cannot be written, or has too little room.
        """

    def apply(self, prepared: Data) -> tuple[Data, TargetSource]:
        """Return the data with what the source reads in every batch, and the source that students are trained with.

        Args:
            prepared: The data with the student's tokens; row by row the same examples as in `Storing.data`.
        """


@component
class Teacher(ABC):
    """Base class of the teachers: a recipe entry that says where the teacher comes from."""

    name: ClassVar[str]

    @property
    def source(self) -> str | None:
        """Id or path of the model that the entry names; None if it names none."""
        return getattr(self, "model", None)

    @property
    def is_quantized(self) -> bool:
        """Whether weights are quantized when the teacher is loaded, so that a student cannot copy them."""
        return getattr(self, "quantization", None) is not None

    @property
    def is_offloaded(self) -> bool:
        """Whether weights wait in memory or on disk until they are needed, so that a student cannot copy them."""
        return any(getattr(one, "offload", None) is not None for one in self.every_entry())

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """Key path of its training arguments -> how each model is trained that the run trains first; mostly empty."""
        return {}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Directories of the models that the run trains first; None stands for the directory of the run."""
        return () if self.has_head else (getattr(self, "output_dir", None),)

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield key path (below this entry) and entry of each model; by default this entry with an empty path."""
        yield "", self

    def every_entry(self) -> Iterator[Teacher]:
        """Yield this entry and the entries inside it."""
        yield self

    @property
    def opening(self) -> dict[str, Any]:
        """`revision` and `trust_remote_code`, for opening the files of its model."""
        return {name: getattr(self, name, default) for name, default in _OPENING.items()}

    @property
    def trusts_code(self) -> bool:
        """Whether Python code that comes with one of its models may run."""
        return any(one.opening["trust_remote_code"] for one in self.every_entry())

    @property
    def is_without_model(self) -> bool:
        """Whether it has no model of its own, so that its configuration is the student's."""
        return False

    @property
    def writes(self) -> bool:
        """Whether it is one model that is there before the student trains, so that it can write completions."""
        return not self.is_without_model and len(list(self.members())) == 1

    @property
    def writes_elsewhere(self) -> bool:
        """Whether it writes by its own means, so that no backend runs it (`TargetSource.writer`)."""
        return False

    @property
    def own_inputs(self) -> bool:
        """Whether it makes its own inputs from the columns of the data (see `own_inputs.OwnInputsTeacher`).

        Architecture, head, vocabulary and tokenizer of its model are then not compared with the task and the student.
        """
        return False

    @property
    def reads_another_prompt(self) -> bool:
        """Whether it reads another prompt than the student before the same completions (`context`)."""
        return False

    @property
    def members_apart(self) -> bool:
        """Whether each of its models may read tokens or inputs of its own (`Pair.members`, `Prepared.for_members`)."""
        return False

    @property
    def not_cached(self) -> str | None:
        """Why its targets cannot be stored; None if they can."""
        return None

    @property
    def follows_student(self) -> bool:
        """Whether its targets depend on the student that trains."""
        return any(one.follows_student for one in self.every_entry() if one is not self)

    def for_next(self, model: Teacher) -> Teacher:
        """Return the teacher of the next student of a chain: with this one's settings of a cache, if it has some.

        Args:
            model: The entry of the student that was trained with this teacher.
        """
        return model

    @property
    def by_temperature(self) -> bool:
        """Whether its distributions at one temperature do not follow from those at another, as for their mean."""
        return False

    @property
    def caches(self) -> bool:
        """Whether its targets are stored in a cache (`cache_for`) and read back in training."""
        return False

    @property
    def is_published(self) -> bool:
        """Whether another party published its targets for public texts, and its model is not there."""
        return False

    @property
    def place(self) -> str | None:
        """Directory that the entry names for its targets; None if it names none."""
        return None

    @property
    def keeps_private(self) -> bool:
        """Whether the rows with a label are private: student and baseline must not learn from them."""
        return False

    @property
    def published(self) -> tuple[str | None, bool | None] | None:
        """Hub repository to which the stored targets are pushed, and whether it is private; None without push."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the data that hold its targets, or that it reads beside those of the task."""
        return ()

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """Return the teacher's configuration, without loading weights."""

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the teacher in a run with this student.

        Raises:
            UserError: There is no configuration, or the student cannot be made without a teacher model.
        """
        return self.config()

    @property
    @abstractmethod
    def has_head(self) -> bool:
        """Whether the checkpoint has a trained head for the task, and with it an order of labels."""

    def check_task(self, task: Task) -> None:  # noqa: B027
        """Refuse a task that the teacher cannot teach, or a missing package, before anything is loaded.

        Raises:
            UserError: The teacher cannot be used.
        """

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:  # noqa: B027
        """Refuse a teacher and a student with which the settings of this entry do not work.

        Args:
            task: The task of the recipe.
            every: The objectives of all stages.
            pair: Teacher and student, before weights are loaded.

        Raises:
            UserError: A setting does not work; `key` names it.
        """

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the teacher gives to objectives, as far as it is known before anything is loaded.

        Args:
            task: The task of the recipe.
            every: The objectives of all stages.
            pair: Teacher and student; None if their configurations cannot be read.
        """
        return Gives.everything()

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data; and the same with targets, if the targets are columns of the data.

        Args:
            task: The task of the recipe.
            splits: The columns that the models read.
            beside: The same rows, with those columns in `reads` that the data has.
            setup: The models, and what the recipe says about the data.
            pair: Teacher and student.

        Returns:
            The data; and either the data with targets in every batch and the source that reads them, or None if a
            model is loaded or trained.

        Raises:
            UserError: The data does not fit the task, or its targets are wrong (`key` then starts with `teacher`).
        """
        return self.freeze(task.prepare(splits, setup)), None

    def look(  # noqa: B027
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair
    ) -> None:
        """Check the targets in the first rows of large data, as `prepare` does in all rows; used by `--check`.

        The arguments are those of `prepare`.

        Raises:
            UserError: A row has no targets, or impossible ones.
        """

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description of the teacher that `--check` prints.

        Args:
            config: Configuration of the teacher.
            size: Returns the description of a model.
        """
        return size(config)

    def cached_in_words(self, task: Task, objectives: Sequence[Objective], pair: Pair) -> str:
        """Return a description of what will be stored and its size, if the teacher `caches`; else an empty text.

        Args:
            task: The task of the recipe.
            objectives: Objectives of all stages.
            pair: Teacher and student.
        """
        return ""

    def answers(self, rows: int) -> int | None:
        """Return for how many of some rows without a label it gives targets at most; None for all of them.

        Args:
            rows: Number of rows of the train split that have no label.
        """
        return None

    def rows_in_words(self, labelled: str) -> str:
        """Return in words the rows on which the run trains its models.

        Args:
            labelled: The rows with a label, such as `200 with a label`.
        """
        return f"a part of the {labelled}" if self._stops_early else labelled

    @property
    def _stops_early(self) -> bool:
        return any(how.early_stopping for how in self.fine_tuning.values())

    def freeze(self, prepared: Prepared) -> Prepared:
        """Return the data, with fixed inputs if this teacher needs them in every epoch."""
        return prepared

    @abstractmethod
    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return the model in eval mode; or a source of targets, if the teacher is not a single model."""

    def load_beside(self, student: Student, head: Head, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return what `load` returns, in a run with this student.

        Args:
            student: The student entry of the recipe.
            head: The task's head.
            fine_tune: Trains a model on the run's data.
        """
        return self.load(head, fine_tune)

    def load_on(self, data: Prepared, student: Student, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return what `load` returns, in a run on this data.

        Args:
            data: The data, with the head of the task.
            student: The student entry of the recipe.
            fine_tune: Trains a model on the run's data.
        """
        return self.load_beside(student, (data.for_teacher or data).head, fine_tune)

    def cache_for(self, model: Any, storing: Storing) -> StoredTargets:
        """Return the stored targets of a run, computed already or not; only for an entry that `caches`.

        Mostly a `cache.cache.Cache`; an entry whose targets are computed in a way of its own returns its own object.

        Args:
            model: The teacher: `model` of the source that `load` returned, which is the source itself unless it
                stands for one model.
            storing: Data, task and objectives of the run.
        """
        raise NotImplementedError(f"{self.name} does not store its targets")


def described(teacher: Teacher, config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return the configurations of the models of which a teacher says how large they are; none if it has no model.

    Args:
        teacher: The teacher.
        config: Its configuration in the run.
    """
    found: list[PretrainedConfig] = []

    def record(one: PretrainedConfig) -> str:
        found.append(one)
        return ""

    teacher.in_words(config, record)
    return found


def config_of_student(student: Student, why: str) -> PretrainedConfig:
    """Return the configuration of the student's checkpoint, for a teacher that has no model.

    Args:
        student: The student entry of the recipe.
        why: Beginning of the error message.

    Raises:
        UserError: The student copies layers or sizes of a teacher model, and there is none.
    """
    from hf_distill.models.loading import open_config

    if student.copies_teacher or student.source is None:
        raise UserError(
            f"{why}: there is no model to take layers or sizes from. Wanted a checkpoint, student: {{name: pretrained, "
            "model: ...}, or from_config with model: ..."
        )
    return copy.deepcopy(student.own_config() or open_config(student.source))


@contextmanager
def deeper(path: str) -> Iterator[None]:
    """Context manager: put `path` after `teacher` in the keys of errors, but for those that are about the data."""
    try:
        yield
    except UserError as error:
        first, _, rest = error.key.partition(".")
        if first != "teacher":
            raise
        raise UserError(*error.mistakes, key=".".join(filter(None, (first, path, rest)))) from error
