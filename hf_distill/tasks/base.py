"""What a task is: how examples become model inputs, which logits count, and how models are evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.match import match
from hf_distill.models.needs import Gives, TaskFacts
from hf_distill.models.outline import HeadKind, head_kind
from hf_distill.objectives.class_weights import NO_CLASSES
from hf_distill.tasks.class_counts import ClassCounts, count_classes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.loading import Head
    from hf_distill.objectives.base import Objective
    from hf_distill.objectives.class_weights import ClassWeights
    from hf_distill.rows.base import RowLayout
    from hf_distill.tasks.class_counts import ClassCounts
    from hf_distill.tasks.evaluator import Evaluator

# What a recipe says of labels: names of integers, or what each label means (None: no label).
SaidLabels = list[str] | dict[str, str | None] | None


@dataclass(frozen=True)
class Setup:
    """What a task prepares data for.

    Attributes:
        tokenizer: Feeds both models; the student alone where the teacher has one of its own.
        teacher_tokenizer: The teacher's own, where it differs; None where one feeds both.
        teacher: Configuration of a teacher that brings its own head; None for a head still to be trained.
        student: Likewise.
        configs: Configurations of teacher and student, whether they bring the head or not.
        max_length: Longest input in tokens; None where nothing limits it.
        label_names: What the recipe says of labels: names of integers, or what each label means (None: no label).
        label_separator: What stands between the labels of a row that has several in one text.
        metrics: Names, headline first; the task's own choice if empty.
        left_out: Tokens of the tokenizer that are others to the teacher, or none, and take no part in a comparison.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase | None = None
    teacher: PretrainedConfig | None = None
    student: PretrainedConfig | None = None
    configs: tuple[PretrainedConfig, ...] = ()
    max_length: int | None = None
    label_names: SaidLabels = None
    label_separator: str | None = None
    metrics: Sequence[str] = ()
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What a task makes of raw data: everything a trainer needs to know about it.

    Attributes:
        train: Tokenised; columns `input_ids`, `attention_mask`, ..., `labels` (where there are any) and `length`.
        eval: Likewise, sorted by length (metrics do not depend on the order, padding does).
        head: How to load a model for the task.
        layout: Which logits count.
        collator: Pads examples to a batch.
        evaluator: Computes the metrics of a model on the eval split.
        label_names: Class names in the order of the student's head; None where nothing names them.
        labelled: Whether the train split has labels.
        for_teacher: The same data, row by row, as the teacher reads it, where it has a tokenizer of its own; None where
            both read the same tokens.
    """

    train: Dataset
    eval: Dataset
    head: Head
    layout: RowLayout
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    evaluator: Evaluator
    label_names: tuple[str, ...] | None
    labelled: bool
    for_teacher: Prepared | None = None


@component
class Task(ABC):
    """A Hub pipeline tag."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    # Role -> whether a recipe must have a column for it.
    roles: ClassVar[Mapping[str, bool]]
    # The one of them that holds what is to be predicted.
    label_role: ClassVar[str] = "label"
    # Whether teacher and student may read a text through tokenizers of their own (`Setup.teacher_tokenizer`): not where
    # their answers are compared token by token.
    own_tokenizers: ClassVar[bool] = False
    # Whether what is compared are distributions over tokens, of which some may be left out.
    compares_tokens: ClassVar[bool] = False
    # Whether the models return a vector of each text.
    vectors: ClassVar[bool] = False
    # Whether the models see other inputs in every epoch.
    changes_inputs: ClassVar[bool] = False
    # Whether a row may have several labels in one text (`data.label_separator`).
    several_labels: ClassVar[bool] = False
    # Whether examples have lengths so different that a training groups them by it, where a recipe does not say.
    groups_by_length: ClassVar[bool] = False

    @property
    def head_kind(self) -> HeadKind:
        """What the head of its models predicts."""
        return head_kind(self.auto_class)

    @abstractmethod
    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Tokenise and describe the data.

        Args:
            splits: `train` and `eval`, columns already renamed to their roles.
            setup: The models it is prepared for, and what the recipe says about it.

        Raises:
            UserError: The data does not fit the task.
        """

    def look(self, splits: Mapping[str, Dataset], setup: Setup) -> ClassCounts | None:
        """Read the labels of some rows as `prepare` reads those of all, without tokenising.

        Returns:
            How often each class occurs in them; None for a task without classes.

        Raises:
            UserError: As `prepare`, as far as labels are concerned.
        """
        return None

    def check_model(self, config: PretrainedConfig) -> None:  # noqa: B027
        """Refuse a model the task cannot use, before its weights are loaded.

        Raises:
            UserError: Its configuration, or what lies beside it, says that it does not fit; `key` is `"model"`.
        """

    def facts(self, prepared: Prepared | None = None) -> TaskFacts:
        """Return what is learned, as far as the task alone tells, or the prepared data. See `models.match`."""
        if prepared is None:
            return TaskFacts(task=self.name, vectors=self.vectors)
        return TaskFacts(
            task=self.name,
            classes=prepared.layout.has_classes,
            vectors=prepared.layout.vectors,
            labelled=prepared.labelled,
            label_role=self.label_role,
        )

    def check(self, objectives: tuple[Objective, ...], prepared: Prepared) -> None:
        """Refuse objectives that mean nothing on this data.

        Raises:
            UserError: A softmax over one predicted value, which is constant and its loss silently zero; an objective
                on labels where there are none; weights of classes that are not there.
        """
        gives = Gives.everything(own_tokens=prepared.for_teacher is not None)
        facts = self.facts(prepared)
        for index, objective in enumerate(objectives):
            key = f"objectives[{index}]"
            match(objective.needs(), gives, facts, key)
            if (weights := getattr(objective, "class_weights", None)) is not None:
                check_class_weights(weights, prepared, f"{key}.class_weights")


def check_class_weights(weights: ClassWeights, prepared: Prepared, key: str) -> None:
    """Refuse weights that do not fit the classes of a run.

    Raises:
        UserError: There are no classes that exclude each other, or other ones.
    """
    from hf_distill.objectives.class_weights import resolve

    found = classes_of(prepared) if prepared.layout.has_named_classes else None
    if found is None:
        raise UserError(NO_CLASSES, key=key)
    resolve(weights, found.names, found.counts.get("train"), key)


def classes_of(prepared: Prepared) -> ClassCounts | None:
    """Return how often each class occurs in a run's data; None where nothing is classified, or nothing has labels."""
    from hf_distill.rows.examples import ExampleRows

    width = prepared.head.settings.get("num_labels")
    # The answers of question answering are places in a text.
    classified = prepared.layout.has_named_classes or isinstance(prepared.layout, ExampleRows)
    if width is None or not classified or not prepared.layout.has_classes:
        return None
    return count_classes({"train": prepared.train, "eval": prepared.eval}, width, prepared.label_names)
