"""Teachers that are another model, asked in its own way: they make their own inputs from the columns of the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component
from hf_distill.data.label_names import label_numbers, shorten
from hf_distill.data.two_tokenizers import PadBoth, side_by_side, teacher_view
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.models.needs import Gives
from hf_distill.teachers.base import FineTune, Teacher, under

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """What a teacher makes its inputs from.

    Attributes:
        rows: Split (`train`, `eval`) -> its rows: the columns of the task by role (`text`, `label`, ...), and those of
            `Teacher.reads` under their own names.
        classes: Names of the classes, in the order of the teacher's logits.
        several: Whether any number of classes may apply to an example (multi-label); if not, exactly one does.
        prepared: The data as the student reads it, with the number of its row in every example
            (`models.target_model.ROW`): the order of an example in `rows`.
        tokenizer: The teacher's tokenizer; None if its entry names no model.
    """

    rows: Mapping[str, Dataset]
    classes: tuple[str, ...]
    several: bool
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase | None


@dataclass(frozen=True)
class Encoded:
    """A teacher's inputs.

    Attributes:
        rows: Split -> inputs, row by row. One of the columns is `input_ids`; values may be lists of any depth.
        settings: What its model needs to know beside them, as plain values; in `head.settings` of `classifier`.
        shown: Lines that `--check` prints: what the teacher reads, and what it costs.
    """

    rows: Mapping[str, Dataset]
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()


@component
class OwnInputsTeacher(Teacher):
    """Base class of teachers that make their own inputs and give logits of the classes of the task.

    A run then needs nothing of the teacher's model: not the task's head, not the student's tokenizer. The trainer,
    objectives on logits, the cache and the report use it as any other teacher of the task.

    A subclass defines `encode`, `collate` and `classifier`, and `classes` where the entry itself names them.
    """

    own_tasks: ClassVar[tuple[str, ...]] = ("text-classification",)
    # What messages call it.
    whose: ClassVar[str] = "a teacher that makes its own inputs"
    # Key of the entry that names the classes, for a message about a label that is none of them; empty for none.
    names_classes: ClassVar[str] = ""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits, where the entry says so; None to take those of the data."""
        return None

    @abstractmethod
    def encode(self, examples: Examples) -> Encoded:
        """Return the teacher's inputs, row by row.

        Raises:
            UserError: The teacher cannot read the data; `key` is a key of this entry.
        """

    @abstractmethod
    def collate(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable[[list[dict[str, Any]]], Batch]:
        """Return what makes a batch of tensors, `(batch, ...)`, of the columns of `encode`."""

    @abstractmethod
    def classifier(self, head: Head) -> nn.Module:
        """Return the model in eval mode.

        Its `forward` names the columns of `encode` as its arguments and returns `{"logits": (batch, classes)}`;
        `Classifier` is a base class.

        Args:
            head: `head.settings` has `num_labels`, the names of the classes in the order of the logits (`id2label`,
                where they have names), `problem_type`, the `pad_token_id` of the teacher's tokenizer, and the settings
                of `encode`.
        """

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return what the report and the model card say about it, by name; nothing by default.

        Args:
            names: Names of the classes, in the order of the logits.
        """
        return {}

    @property
    def own_inputs(self) -> bool:
        """Always true."""
        return True

    @property
    def has_head(self) -> bool:
        """Whether the entry itself names the classes, and so their order."""
        return self.classes is not None

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Nothing: no model is trained."""
        return ()

    def config(self) -> PretrainedConfig:
        """Return a configuration that has the names of the classes, if the entry names them, and nothing else."""
        from transformers import PretrainedConfig

        names = self.classes
        return PretrainedConfig() if names is None else PretrainedConfig(**_named(names))

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return `config()`.

        Raises:
            UserError: The student copies layers or sizes of the teacher.
        """
        if student.copies_teacher or student.source is None:
            raise UserError(
                f"{self.whose} does not have the task's head or inputs: no student copies its layers or sizes. Wanted "
                "a checkpoint of its own: student: {name: pretrained, model: ...}, or copy_layers or from_config with "
                "model: ..."
            )
        return self.config()

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        names = self.classes
        return f"makes its own inputs; classes: {'those of the data' if names is None else ', '.join(names)}"

    def check_task(self, task: Task) -> None:
        """Refuse a task for which such a teacher cannot make inputs."""
        if task.name not in self.own_tasks:
            raise UserError(
                f"{self.whose} is for {', '.join(self.own_tasks)}, but the task is {task.name}. Take a model that was "
                "trained for it: {name: pretrained, model: ...}.",
                key="name",
            )

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what it gives to objectives: logits."""
        return Gives(self.whose, own_tokens=True)

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the data as the student reads it, with the teacher's inputs in every example."""
        from hf_distill.teachers.given.cache import numbered

        # The teacher's tokens are made here, and its configuration says nothing about inputs.
        for_student = replace(setup, teacher_tokenizer=None, configs=(pair.student,))
        if self.classes is not None:
            _check_named(splits, task.label_role, setup, self.classes)
        try:
            prepared = task.prepare(numbered(splits), for_student)
        except UserError as error:
            if self.classes is None or not self.names_classes or error.key != f"columns.{task.label_role}":
                raise
            raise UserError(f"{error} Or add it to the teacher's {self.names_classes}.", key=error.key) from error
        with under("teacher"):
            head = self._head(prepared, setup)
            rows = {name: _together(split, beside[name]) for name, split in splits.items()}
            names = tuple(head.settings["id2label"].values())
            several = head.settings["problem_type"] == "multi_label_classification"
            own = self.encode(Examples(rows, names, several, prepared, setup.teacher_tokenizer))
            head = replace(head, settings={**head.settings, **own.settings})
        return _with_inputs(prepared, own, CollateInputs(self.collate(setup.teacher_tokenizer)), head), None

    def _head(self, prepared: Prepared, setup: Setup) -> Head:
        """Return the head whose classes are in the order of the teacher's logits.

        Raises:
            UserError: The labels are numbers, or the classes have no names.
        """
        settings = prepared.head.settings
        if not prepared.layout.has_classes:
            raise UserError(
                f"{self.whose} gives classes, but the labels are numbers to predict (regression).", key="name"
            )
        if settings["num_labels"] < 2:
            raise UserError(f"{self.whose} chooses among classes, and there is only one.", key="name")
        names = self.classes or prepared.label_names
        if names is None:
            raise UserError(
                f"{self.whose} goes by the names of the classes, and the {settings['num_labels']} classes of the data "
                "have none. Name them: data: {labels: [name of 0, name of 1, ...]}."
            )
        tokenizer = setup.teacher_tokenizer
        pad = None if tokenizer is None else tokenizer.pad_token_id
        return Head(prepared.head.auto_class, {**settings, **_named(names), "pad_token_id": pad})

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the source that runs the classifier."""
        from hf_distill.teachers.classifier import LiveClassifier

        names = tuple(head.settings["id2label"].values())
        return LiveClassifier(self.classifier(head), self.whose, self.facts(names))


def _check_named(splits: Mapping[str, Dataset], role: str, setup: Setup, names: Sequence[str]) -> None:
    """Refuse labels that only number the classes: no model was trained on these numbers.

    Raises:
        UserError: Neither data nor recipe say which class has which number.
    """
    if setup.label_names is not None or label_numbers(names) is not None:
        return
    for split in splits.values():
        if _only_numbers(split, role):
            raise UserError(
                f"the labels are numbers, and the teacher's classes have names {shorten(names)}. Say which is which: "
                "data: {labels: [name of 0, name of 1, ...]}.",
                key="labels",
            )


def _only_numbers(split: Dataset, role: str) -> bool:
    """Return whether labels, or all labels in lists, are numbers without names; written as text, too."""
    column = split.features.get(role)
    kind = getattr(column, "feature", column)  # of lists
    if getattr(kind, "names", None) is not None:
        return False
    dtype = str(getattr(kind, "dtype", ""))
    if kind is column and dtype in ("string", "large_string"):
        found = [text for text in split.unique(role) if text is not None]
        return bool(found) and all(text.strip().isdecimal() for text in found)
    return dtype.startswith(("int", "uint", "float"))


def _named(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: at for at, name in enumerate(names)},
    }


def _together(split: Dataset, beside: Dataset) -> Dataset:
    """Return the columns with a role and the further ones; a role wins over a further column of the same name."""
    from datasets import concatenate_datasets

    others = [name for name in beside.column_names if name not in split.column_names]
    return concatenate_datasets([split, beside.select_columns(others)], axis=1) if others else split


def _with_inputs(prepared: Prepared, own: Encoded, collate: CollateInputs, head: Head) -> Prepared:
    """Return prepared data with a teacher's inputs beside the student's.

    Args:
        prepared: The data with row numbers from `numbered`.
        own: The teacher's inputs, by row number.
        collate: Makes a batch of them.
        head: The classes in the order of the teacher's logits.
    """
    from hf_distill.data import with_length
    from hf_distill.models.target_model import ROW

    both = {
        name: side_by_side(split.remove_columns(ROW), with_length(own.rows[name]).select(split[ROW][:]))
        for name, split in (("train", prepared.train), ("eval", prepared.eval))
    }
    views = {name: teacher_view(split) for name, split in both.items()}
    theirs = replace(prepared, **views, head=head, collator=collate, shown=own.shown)
    return replace(prepared, **both, collator=PadBoth(prepared.collator, collate), for_teacher=theirs)


@dataclass(frozen=True)
class CollateInputs:
    """Makes batches of a teacher's own inputs, with the labels if there are any.

    Attributes:
        own: Makes a batch of the inputs.
    """

    own: Callable[[list[dict[str, Any]]], Batch]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        import torch

        inputs = [{name: value for name, value in one.items() if name not in ("labels", "length")} for one in examples]
        batch = dict(self.own(inputs))
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([one["labels"] for one in examples])
        return batch


@dataclass(frozen=True)
class PadInputs:
    """Pads examples of one text each, or of several texts each, to the longest of the batch.

    Attributes:
        tokenizer: Pads, on its own side.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return tensors, `(batch, tokens)` or `(batch, texts, tokens)`; all examples have the same number of texts."""
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(self.tokenizer)
        if not isinstance(examples[0]["input_ids"][0], list):
            return dict(pad(examples))
        flat = [dict(zip(one, text, strict=True)) for one in examples for text in zip(*one.values(), strict=True)]
        return {name: value.view(len(examples), -1, value.shape[-1]) for name, value in pad(flat).items()}
