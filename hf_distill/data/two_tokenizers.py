"""Two tokenizers: every example has the teacher's tokens beside the student's, in columns with a prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.data.example_columns import EXAMPLE_COLUMNS, PROMPT_LENGTH

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "teacher_"
# If this column is present, the teacher has its own tokens. Cached targets use the prefix too, but not this name.
MARK = f"{PREFIX}input_ids"
# If this is in a batch, the teacher's tokens are the student's under other numbers: one by one they can be compared.
SAME = f"{PREFIX}same_tokens"
# Number of the span of text that a token belongs to, counted in every example in the order of the text, -1 for none: of
# the student's tokens and of the teacher's. A span is the shortest text that tokens of both make up exactly.
SPAN = "span"
TEACHER_SPAN = f"{PREFIX}{SPAN}"
# Column of an example or a batch, beside `labels`: for each of these, the position in the teacher's own tokens whose
# logits predict the same text as the student's logits that predict the label; -1 where the two are not compared.
# Without it, both models read the same tokens at the same positions.
ALIGNED_AT = "aligned_at"
# Value of `ALIGNED_AT` where the models are not compared, and of its padding.
APART = -1
# How many of the teacher's tokens of an example are the prompt that it reads, where that is another than the student's.
TEACHER_PROMPT = f"{PREFIX}{PROMPT_LENGTH}"
# Columns that do not depend on the tokenizer.
SHARED = ("labels", *EXAMPLE_COLUMNS)

Value = TypeVar("Value")


def teacher_inputs(inputs: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return the teacher's inputs in an example or a batch: its own tokens if there are any, else the student's.

    >>> teacher_inputs({"input_ids": 1, "token_type_ids": 0, "teacher_input_ids": 7})
    {'input_ids': 7}
    >>> teacher_inputs({"input_ids": 1, "token_type_ids": 0})
    {'input_ids': 1, 'token_type_ids': 0}
    """
    if MARK not in inputs:
        return inputs
    return {key.removeprefix(PREFIX): value for key, value in inputs.items() if key.startswith(PREFIX)}


def is_ids(name: str) -> bool:
    """Return whether a column of an example or a batch holds token ids that a model reads."""
    return name.endswith("input_ids")


def side_by_side(student: Dataset, teacher: Dataset) -> Dataset:
    """Return the examples with both models' tokens.

    Args:
        student: A tokenised split.
        teacher: The same split, row by row, tokenised for the teacher.
    """
    from datasets import concatenate_datasets

    own = teacher.remove_columns([name for name in SHARED if name in teacher.column_names])
    return concatenate_datasets(
        [student, own.rename_columns({name: f"{PREFIX}{name}" for name in own.column_names})], axis=1
    )


def student_view(split: Dataset) -> Dataset:
    """Return a split without the teacher's columns."""
    return split.remove_columns([name for name in split.column_names if name.startswith(PREFIX)])


def teacher_view(split: Dataset) -> Dataset:
    """Return the teacher's columns of a split from `side_by_side`, without the prefix and in the same order."""
    own = {name: name.removeprefix(PREFIX) for name in split.column_names if name.startswith(PREFIX)}
    shared = [name for name in SHARED if name in split.column_names and name not in own.values()]
    return split.select_columns([*own, *shared]).rename_columns(own)


@dataclass(frozen=True)
class PadBoth:
    """Pads both models' tokens, each with the padding token and on the side of its own tokenizer.

    Attributes:
        student: Makes a batch of the student's tokens and the labels.
        teacher: Makes a batch of the teacher's tokens; not called if the examples have none.
    """

    student: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    teacher: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the student's inputs and `labels`, and the teacher's under the prefix."""
        batch = dict(self.student(list(map(_without_prefix, examples))))
        if MARK not in examples[0]:
            return batch
        own = self.teacher([dict(teacher_inputs(one)) for one in examples])
        return {**batch, **{f"{PREFIX}{key}": value for key, value in own.items()}}


@dataclass(frozen=True)
class Renumbered:
    """Gives the token ids in a batch other numbers, for a model with another vocabulary.

    Attributes:
        collator: Makes the batch.
        numbers: The new number of each id, in their order.
    """

    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    numbers: tuple[int, ...]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the student's inputs with the new numbers, and the teacher's own columns in place of the student's."""
        return self.of(self.collator(list(map(_without_prefix, examples))), examples)

    def of(self, batch: Mapping[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the same for a batch that is made already."""
        import torch

        numbers = torch.tensor(self.numbers)
        own = {key: torch.tensor([one[key] for one in examples]) for key in examples[0] if key.startswith(PREFIX)}
        # A batch for two models has the teacher's tokens too, which have other numbers already.
        students = {key: value for key, value in batch.items() if not key.startswith(PREFIX)}
        return {
            **{key: numbers[value] if is_ids(key) else value for key, value in students.items()},
            **{key.removeprefix(PREFIX): value for key, value in own.items()},
        }


@dataclass(frozen=True)
class BothNumbers:
    """Adds to a batch of the student's tokens the same tokens under the numbers of the teacher.

    Attributes:
        teacher: Makes a batch of the teacher, of that of the student.
    """

    teacher: Renumbered

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the student's inputs and `labels`, and the teacher's inputs under the prefix."""
        import torch

        batch = dict(self.teacher.collator(list(map(_without_prefix, examples))))
        own = self.teacher.of(batch, examples)
        theirs = {f"{PREFIX}{key}": value for key, value in own.items() if key not in SHARED}
        return {**batch, **theirs, SAME: torch.ones(len(examples), dtype=torch.bool)}


def _without_prefix(example: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in example.items() if not key.startswith(PREFIX)}
