"""Data sets with columns of text, made tokens as the task of the student makes them in a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model, taken_by
from hf_distill.models.tokenizers import longest_input
from hf_distill.tasks import Prepared, Setup, Task
from hf_distill.tasks.inferred import reader_of, tasks_of

logger = logging.getLogger(__name__)

# What `Trainer` calls what is to be learned, whatever a task calls it.
LABELS = "labels"


@dataclass
class TextColumns:
    """Makes tokens of the splits of one training.

    Attributes:
        task: Reads them.
        setup: What it reads them for.
        train: The train split as it came: which classes there are is read from it.
        takes: What the student reads of an example. A split that has one of these columns is tokenised.
        prepared: What the task made of the train split, with collator, layout and evaluation.
    """

    task: Task
    setup: Setup
    train: datasets.Dataset
    takes: frozenset[str]
    prepared: Prepared = field(init=False)
    # Fingerprint of a split as it came -> what was made of it, and itself.
    _read: dict[str, tuple[datasets.Dataset, datasets.Dataset]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Make tokens of the train split."""
        self.prepared = self.prepare(self.train)

    def __call__(self, split: Any) -> Any:
        """Return a split to evaluate on with the columns that models read, in the order in which it came."""
        if isinstance(split, dict):
            return {name: self(one) for name, one in split.items()}
        if not holds_text(split, self.takes):
            return split
        key = split._fingerprint
        if key not in self._read:
            self._read[key] = as_it_came(self.prepare(split).eval), split
        return self._read[key][0]

    def prepare(self, split: datasets.Dataset, metrics: Sequence[str] = ()) -> Prepared:
        """Return what the task makes of the train split and one to evaluate on, which comes sorted by length.

        Args:
            split: As it came, or what was made of it.
            metrics: The task's own if empty.
        """
        raw = next((raw for made, raw in self._read.values() if made is split), split)
        setup = replace(self.setup, metrics=metrics)
        return self.task.prepare({"train": self._named(self.train), "eval": self._named(raw)}, setup)

    def _named(self, split: datasets.Dataset) -> datasets.Dataset:
        """Return the columns that the task reads, by its names for them."""
        role = self.task.label_role
        if role in self.task.roles and role not in split.column_names and LABELS in split.column_names:
            split = split.rename_column(LABELS, role)
        return split.select_columns([name for name in split.column_names if name in self.task.roles])

    def in_words(self) -> str:
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
) -> TextColumns | None:
    """Return what makes tokens of the splits of a training; None where they have tokens, or are not known to hold text.

    Args:
        student: Says which task it is.
        teacher: Its label names count, as in a run.
        train: `train_dataset`.
        evaluated: `eval_dataset`.
        tokenizer: `processing_class`.
        task: With settings of its own, in place of the student's.

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
    )
    return TextColumns(reader, setup, first, takes)


def holds_text(split: Any, takes: frozenset[str]) -> bool:
    """Whether a data set has none of the columns that a model takes, and nothing makes them on the way."""
    if not isinstance(split, datasets.Dataset) or split.format["type"] == "custom":
        return False
    return takes.isdisjoint(split.column_names)


def as_it_came(split: datasets.Dataset) -> datasets.Dataset:
    """Return a split that a task has sorted by length in the order of the data: predictions belong to its rows."""
    places = split._indices
    return split if places is None else split.select(np.argsort(places.column(0).to_numpy(), kind="stable"))
