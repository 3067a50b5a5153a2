"""What a task is: how examples become model inputs, which logits count, and how models are evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_distill.completions.section import Completions
from hf_distill.component import component
from hf_distill.data.example_columns import GROUP, group_names, group_numbers
from hf_distill.data.two_tokenizers import ALIGNED_AT
from hf_distill.errors import UserError
from hf_distill.metrics.section import Evaluation
from hf_distill.models.match import match
from hf_distill.models.needs import Gives, TaskFacts
from hf_distill.models.outline import HeadKind, head_kind
from hf_distill.models.tokenizers import Reading
from hf_distill.objectives.class_weights import NO_CLASSES
from hf_distill.objectives.settled_groups import settle_group_weights
from hf_distill.tasks.class_counts import ClassCounts, count_classes

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.loading import Head
    from hf_distill.objectives.base import Objective
    from hf_distill.objectives.class_weights import ClassWeights
    from hf_distill.rows.base import RowLayout
    from hf_distill.tasks.class_counts import ClassCounts
    from hf_distill.tasks.evaluator import Evaluator

# `data.labels` of a recipe: the names of 0, 1, 2, ..., or label -> name of its class (None: no label).
SaidLabels = list[str] | dict[str, str | None] | None

LABELS_ARE_TEXTS = (
    "its labels are the texts themselves, so that no text is without one. Add the texts to the train split: "
    "path: {train: [FILE, MORE TEXTS]}."
)


@dataclass(frozen=True)
class Setup:
    """The models, and the parts of a recipe, that a task prepares data for.

    Attributes:
        tokenizer: Tokenizer of both models; of the student alone if `teacher_tokenizer` is set.
        teacher_tokenizer: The teacher's tokenizer, if it differs from the student's; else None.
        teacher: Configuration of a teacher with a trained head for the task; None if its head is not trained yet.
        student: Configuration of a student with a trained head for the task; None if its head is not trained yet.
        configs: Configurations of teacher and student, with or without a trained head.
        max_length: Maximum length of an input in tokens; None for no limit.
        label_names: `data.labels` of the recipe: the names of 0, 1, 2, ..., or label -> name (None: no label).
        label_separator: Text between the labels of a row that has several in one cell.
        metrics: Names of the metrics, the headline metric first; empty for the task's default.
        left_out: Token ids that mean something else, or nothing, to the teacher. The models are not compared on them.
        transfer_rows: Number of rows at the end of the train split that come from `data.transfer`, and have no label.
        completions: Who writes the completions that a language model learns from.
        evaluation: What else the recipe says of the evaluation; its metrics are those of `metrics`.
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
    transfer_rows: int = 0
    completions: Completions = field(default_factory=Completions)
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def completing(self) -> Completions | None:
        """How a model writes the completions of the examples, which are prompts then; None if they are in the data."""
        return None if self.completions.by == "data" else self.completions


@dataclass(frozen=True)
class View:
    """The data as one of several teachers reads it.

    Attributes:
        prepared: The data, row by row the same examples as the student's.
        tokenizer: Saved with the teacher if the run trains it.
    """

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each example.

    Attributes:
        names: Names of the groups that occur, in order; `(none)` stands for rows without one.
        train: Number of the group of each row of `Prepared.train`, `(rows,)`.
        eval: Number of the group of each example that the evaluator counts (a question, not a window of its context),
            in the order of its predictions, `(examples,)`.
    """

    names: tuple[str, ...]
    train: NDArray[np.int64]
    eval: NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """The data of a task, tokenised, and everything that a trainer needs to know about it.

    Attributes:
        train: The tokenised train split: `input_ids`, `attention_mask`, ..., `length`, and `labels` if there are any;
            also `example_group` and `example_weight`, where the recipe names such columns.
        eval: The tokenised eval split with the same columns, sorted by length: this changes padding, not metrics.
        head: How to load a model for the task.
        layout: Which logits count.
        collator: Pads examples to a batch.
        evaluator: Computes the metrics of a model on the eval split.
        label_names: Class names in the order of the student's head; None if they have no names.
        labelled: Whether the train split has labels.
        for_teacher: The same data, row by row, with the teacher's tokens; None if both models read the same tokens.
        in_teacher_ids: The student's tokens under the ids of a teacher whose vocabulary has more of them, as it reads
            them in training: row by row the same. `for_teacher` is then the data in all of the teacher's tokens, in
            which it is trained and evaluated. None if there is no such difference.
        transfer_rows: Number of rows at the end of `train` that come from `data.transfer` and have no label.
        shown: Lines that `--check` prints about the inputs.
        for_members: The same data as each teacher reads it, where several teachers each have tokens or inputs of their
            own; else empty.
        reading: How the student reads texts that are too long: longer than its `max_length`, if it names one, else
            than `Setup.max_length`.
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
    transfer_rows: int = 0
    shown: tuple[str, ...] = ()
    for_members: tuple[View, ...] = ()
    in_teacher_ids: Prepared | None = None
    reading: Reading = field(default_factory=Reading)

    @property
    def own_tokens(self) -> bool:
        """Whether teacher and student read a text as different tokens in training."""
        return self.for_teacher is not None and self.in_teacher_ids is None

    @property
    def for_targets(self) -> Prepared:
        """The data of which a teacher's targets are stored: as it reads it, with what belongs to which label."""
        aligned = ALIGNED_AT in self.train.column_names
        return self if aligned else self.in_teacher_ids or self.for_teacher or self

    @property
    def transferred(self) -> NDArray[np.bool_]:
        """Which rows of `train` come from `data.transfer`, bool `(rows,)`; other rows may lack a label as well."""
        return np.arange(len(self.train)) >= len(self.train) - self.transfer_rows

    @property
    def groups(self) -> Groups | None:
        """The groups of `data.columns.group`, always of the present rows; None if the splits have none.

        Windows of a text have its group, and rows made of another row (`data.augment`) have that of their source.
        Rows of `data.transfer` without such a column are in the group `(none)`.
        """
        if GROUP not in self.train.column_names or GROUP not in self.eval.column_names:
            return None
        names = group_names(self.train, self.eval)
        of_eval = self.evaluator.of_examples(group_numbers(self.eval, names))
        return Groups(names, group_numbers(self.train, names), of_eval)


@component
class Task(ABC):
    """Base class of the tasks: how examples become model inputs, and how models are evaluated."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    # Role of a column -> whether it is required.
    roles: ClassVar[Mapping[str, bool]]
    # The role whose column holds the labels.
    label_role: ClassVar[str] = "label"
    # Why the student cannot learn from texts without a label (`data.transfer`), and what works instead; "" if it can.
    no_transfer: ClassVar[str] = ""
    # Whether teacher and student may have different tokenizers (`Setup.teacher_tokenizer`). Not possible if they are
    # compared token by token.
    own_tokenizers: ClassVar[bool] = False
    # Whether distributions over tokens are compared, so that `Setup.left_out` applies.
    compares_tokens: ClassVar[bool] = False
    # Whether its models go on with a text, so that they can write completions (section `completions`).
    writes: ClassVar[bool] = False
    # Whether one teacher with another tokenizer may teach all the same, its tokens aligned with the student's by bytes.
    aligns_tokens: ClassVar[bool] = False
    # Whether the models return one vector for each text.
    vectors: ClassVar[bool] = False
    # Whether the inputs change from epoch to epoch.
    changes_inputs: ClassVar[bool] = False
    # Whether a row may have several labels in one text (`data.label_separator`).
    several_labels: ClassVar[bool] = False
    # Whether training groups examples of similar length by default.
    groups_by_length: ClassVar[bool] = False
    # Roles of texts, or lists of words, that may be reworded (`data.augment`): the teacher's targets for a reworded row
    # need no label. Empty where the words are what is learned.
    texts: ClassVar[tuple[str, ...]] = ()
    # Whether a label is a class of a whole row, or several of them (`data.select`, `data.pseudo_labels`).
    classifies_rows: ClassVar[bool] = False

    @property
    def head_kind(self) -> HeadKind:
        """What the head of its models predicts."""
        return head_kind(self.auto_class)

    @abstractmethod
    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised data and its description.

        Args:
            splits: `train` and `eval`, with columns named by role.
            setup: The models, and what the recipe says about the data.

        Raises:
            UserError: The data does not fit the task.
        """

    def look(self, splits: Mapping[str, Dataset], setup: Setup) -> ClassCounts | None:
        """Check the labels of some rows as `prepare` does, without tokenising; used by `--check`.

        Returns:
            How often each class occurs in these rows; None for a task without classes.

        Raises:
            UserError: The labels do not fit the task.
        """
        return None

    def check_transfer(self) -> None:
        """Refuse `data.transfer` if a row of this task cannot be without a label.

        Raises:
            UserError: It cannot.
        """
        reason = self.no_transfer or ("" if self.label_role in self.roles else LABELS_ARE_TEXTS)
        if reason:
            raise UserError(f"not for {self.name}: {reason}", key="transfer")

    def classes_of_rows(self, splits: Mapping[str, Dataset], setup: Setup) -> NDArray[Any] | None:
        """Return the labels of the train split as `prepare` reads them; None where they are not classes of rows.

        Returns:
            Classes `(rows,)`, -100 for none; or, of several labels a row, 1 for each that applies and 0 for each that
            does not, `(rows, labels)`, NaN where that is not known.

        Raises:
            UserError: The labels do not fit the task.
        """
        return None

    def check_model(self, config: PretrainedConfig) -> None:  # noqa: B027
        """Refuse a model that the task cannot use, before its weights are loaded.

        Raises:
            UserError: The configuration, or another file of the model, shows that it does not fit; `key` is `"model"`.
        """

    def facts(self, prepared: Prepared | None = None) -> TaskFacts:
        """Return what `models.match` needs to know about the task; without `prepared`, only what the class says."""
        if prepared is None:
            return TaskFacts(task=self.name, vectors=self.vectors, spans=self.writes)
        return TaskFacts(
            task=self.name,
            classes=prepared.layout.has_classes,
            vectors=prepared.layout.vectors,
            spans=prepared.layout.has_spans,
            labelled=prepared.labelled,
            label_role=self.label_role,
        )

    def check(
        self, objectives: tuple[Objective, ...], prepared: Prepared, completions: Completions | None = None
    ) -> None:
        """Refuse objectives that have no meaning on this data.

        Args:
            objectives: The objectives.
            prepared: The data.
            completions: Who writes the texts that are learned; None where that is not known.

        Raises:
            UserError: A softmax over a single predicted value (it is constant, so the loss is always zero); an
                objective on labels without labels; weights of classes or groups that do not exist.
        """
        settle_group_weights(objectives, prepared.train, "objectives")
        gives = Gives.everything(own_tokens=prepared.own_tokens)
        if getattr(prepared.layout, "mapping", None) is not None:
            gives = gives.by_texts()
        facts = replace(self.facts(prepared), **(completions.facts() if completions is not None else {}))
        for index, objective in enumerate(objectives):
            key = f"objectives[{index}]"
            match(objective.needs(), gives, facts, key)
            if (weights := getattr(objective, "class_weights", None)) is not None:
                check_class_weights(weights, prepared, f"{key}.class_weights")


def check_class_weights(weights: ClassWeights, prepared: Prepared, key: str) -> None:
    """Refuse class weights that do not fit the classes of a run.

    Raises:
        UserError: The task has no classes of which each example has one, or the weights name other classes.
    """
    from hf_distill.objectives.class_weights import resolve

    found = classes_of(prepared) if prepared.layout.has_named_classes else None
    if found is None:
        raise UserError(NO_CLASSES, key=key)
    resolve(weights, found.names, found.counts.get("train"), key)


def classes_of(prepared: Prepared) -> ClassCounts | None:
    """Return how often each class occurs in a run's data; None without classes or without labels."""
    from hf_distill.rows.examples import ExampleRows

    width = prepared.head.settings.get("num_labels")
    # Question answering has a head with two columns too, but they are positions and not classes.
    classified = prepared.layout.has_named_classes or isinstance(prepared.layout, ExampleRows)
    if width is None or not classified or not prepared.layout.has_classes:
        return None
    return count_classes({"train": prepared.train, "eval": prepared.eval}, width, prepared.label_names)
