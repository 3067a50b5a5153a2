"""Tokenises data sets with text columns for `DistillationTrainer`, as a run of the student's task does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_distill.completions.section import Completions
from hf_distill.data.example_columns import EXAMPLE_COLUMNS
from hf_distill.data.loading import in_data_order
from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model, taken_by
from hf_distill.models.tokenizers import longest_input
from hf_distill.tasks import Prepared, Setup, Task
from hf_distill.tasks.inferred import reader_of, tasks_of
from hf_distill.tasks.tokenising import remembering

logger = logging.getLogger(__name__)

# The name of the label column in `Trainer`, which a task may call otherwise.
LABELS = "labels"


@dataclass
class TextColumns:
    """Tokenises the splits of one training.

    Attributes:
        task: The task, which tokenises the splits.
        setup: Tokenizer and models that the task prepares data for.
        train: The train split as it was given: the classes are read from it.
        takes: Names of the columns that the student reads. A split with one of them is already tokenised.
        beside: An eval split of text; the train split again if there is none.
        prepared: What the task made of the train split: data, collator, layout and evaluator.
    """

    task: Task
    setup: Setup
    train: datasets.Dataset
    takes: frozenset[str]
    beside: datasets.Dataset
    prepared: Prepared = field(init=False)
    # Fingerprint of an eval split -> the tokenised split, and the split as it was given.
    _read: dict[str, tuple[datasets.Dataset, datasets.Dataset]] = field(init=False, default_factory=dict)
    # Splits that were tokenised, for `remembering`.
    _tokenised: dict[str, datasets.Dataset] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Tokenise the train split."""
        with in_data_order():
            self.prepared = self.prepare(self.beside)

    def __call__(self, split: Any) -> Any:
        """Return an eval split, or a dict of them, tokenised and in its own order; unchanged if already tokenised."""
        if isinstance(split, dict):
            return {name: self(one) for name, one in split.items()}
        if not holds_text(split, self.takes):
            return split
        key = split._fingerprint
        if key not in self._read:
            with in_data_order():  # predictions belong to its rows
                self._read[key] = self.prepare(split).eval, split
        return self._read[key][0]

    def prepare(self, split: datasets.Dataset, metrics: Sequence[str] = ()) -> Prepared:
        """Return what the task makes of the train split and an eval split, which it sorts by length.

        Args:
            split: The eval split, as it was given.
            metrics: Names of the metrics; those of the task if empty.
        """
        setup = replace(self.setup, metrics=metrics)
        with remembering(self._tokenised):
            return self.prepare_as(self.train, split, setup)

    def prepare_as(self, train: datasets.Dataset, evaluated: datasets.Dataset, setup: Setup) -> Prepared:
        """Return what the task makes of other splits with the same columns."""
        return self.task.prepare({"train": self._named(train), "eval": self._named(evaluated)}, setup)

    def raw(self, split: datasets.Dataset) -> datasets.Dataset | None:
        """Return a split as it was given if it holds text or was tokenised here; None if it was given tokenised."""
        if holds_text(split, self.takes):
            return split
        made = [(self.prepared.train, self.train), *self._read.values()]
        return next((raw for one, raw in made if one is split), None)

    def _named(self, split: datasets.Dataset) -> datasets.Dataset:
        """Return a split with only the columns that the task reads, renamed as the task calls them."""
        role = self.task.label_role
        if role in self.task.roles and role not in split.column_names and LABELS in split.column_names:
            split = split.rename_column(LABELS, role)
        read = (*self.task.roles, *EXAMPLE_COLUMNS)
        return split.select_columns([name for name in split.column_names if name in read])

    def describe(self) -> str:
        """Return what was done, for the log."""
        read = self._named(self.train).column_names
        left = [name for name in self.train.column_names if name not in (*read, LABELS)]
        limit = self.setup.max_length
        return (
            f"tokenised as in a run of {self.task.name}: {', '.join(read)}"
            + (f"; at most {limit} tokens" if limit else "")
            + (f"; not read: {', '.join(left)}" if left else "")
        )


def text_columns(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Any,
    evaluated: Any,
    tokenizer: Any,
    task: Task | None = None,
    completions: Completions | None = None,
) -> TextColumns | None:
    """Return what tokenises the splits of a training; None if they are tokenised, or not known to hold text.

    Args:
        student: The student, whose class determines the task.
        teacher: The teacher, whose label names are used as in a run.
        train: `train_dataset`.
        evaluated: `eval_dataset`.
        tokenizer: `processing_class`.
        task: A task with settings, in place of the default one of the student's class.
        completions: Who writes the completions; None if they are in the data.

    Raises:
        UserError: The columns are not those of the task, hold something else, or there is no tokenizer.
    """
    takes = taken_by(student)
    named = {"train_dataset": train, **(evaluated if isinstance(evaluated, dict) else {"eval_dataset": evaluated})}
    held = {name: split for name, split in named.items() if holds_text(split, takes)}
    tasks = tasks_of(student) if task is None else [task]
    if not held or not tasks:
        return None
    name, first = next(iter(held.items()))
    reader = reader_of(first.column_names, tasks, name)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"{name} holds text ({', '.join(first.column_names)}). Pass the tokenizer as processing_class.")
    configs: dict[str, Any] = {
        side: base_model(one).config for side, one in (("teacher", teacher), ("student", student)) if one
    }
    heads = configs if reader.head_kind == "labels" else {}
    setup = Setup(
        tokenizer=tokenizer,
        teacher=heads.get("teacher"),
        student=heads.get("student"),
        configs=tuple(configs.values()),
        max_length=longest_input(configs.values(), [tokenizer]),
        completions=completions or Completions(),
    )
    return TextColumns(reader, setup, first, takes, beside=[*held.values()][:2][-1])


def holds_text(split: Any, takes: frozenset[str]) -> bool:
    """Return whether a data set has none of the columns that a model takes, and no transform that could make them."""
    if not isinstance(split, datasets.Dataset) or split.format["type"] == "custom":
        return False
    return takes.isdisjoint(split.column_names)
