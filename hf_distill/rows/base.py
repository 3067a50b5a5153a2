"""Rows: which logits of a batch count, and what their labels are.

Every objective on logits sees `(rows, classes)` and nothing else. What a row is (an example, one class of a
multi-label example, a token) is the layout's business, so a new objective works for every task and a new task
for every objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.models.heads import Captured, Head
from hf_distill.models.projection import Side
from hf_distill.models.target_rows import MixtureRows, SparseRows, TeacherRows, top_class, upcast

# What a sum is divided by: rows that count, rows that have a label, examples, tokens that are no padding, ordered
# pairs of two examples of the same micro-batch, or examples of a text, one that fits it and one that does not.
Unit = Literal["row", "label", "example", "token", "pair", "triple"]
UNITS: tuple[Unit, ...] = ("row", "label", "example", "token", "pair", "triple")
# The logit of what is no class of a row: its probability is exactly 0 at any temperature, and unlike that of -inf its
# logarithm can be subtracted and differentiated.
IMPOSSIBLE = -1e30
# Columns that tell whether a row is finite.
_FIRST = 64

__all__ = [
    "IMPOSSIBLE",
    "UNITS",
    "MixtureRows",
    "Places",
    "RowLayout",
    "Rows",
    "SparseRows",
    "Unit",
    "fold",
    "likeliest",
    "side_of",
    "top_class",
    "upcast",
]  # fmt: skip


@dataclass(eq=False)
class Rows:
    """The logits of one micro-batch that count.

    Attributes:
        student: `(rows, classes)`, float32 or better.
        teacher: Same shape, detached, classes in the student's order; or what was stored of it; or the mean of several
            teachers; None without a teacher.
        labels: `(rows,)`: class indices with -100 where there is no label, or float values with NaN; or distributions
            over the classes `(rows, classes)`, NaN throughout where there is none.
        example: `(rows,)`, the index in the batch of the example each row belongs to.
        examples: Batch size.
        classes: Which columns are classes of a row, bool `(rows, classes)`, where rows have different ones; None where
            all columns are. The others are `IMPOSSIBLE` in both models.
        shared: Which columns are the same class to the teacher, `(its classes,)`, ascending; None where all are. Its
            rows have these columns alone.
    """

    student: Tensor
    teacher: TeacherRows | None
    labels: Tensor
    example: Tensor
    examples: int
    classes: Tensor | None = None
    shared: Tensor | None = None

    @cached_property
    def compared(self) -> Rows:
        """The same rows with the columns that both models have; a label that is not among them counts as none."""
        if self.shared is None:
            return self
        place = torch.searchsorted(self.shared, self.labels).clamp(max=len(self.shared) - 1)
        labels = torch.where(self.shared[place] == self.labels, place, torch.full_like(place, IGNORED))
        return self.with_columns(self.student.index_select(-1, self.shared), labels)

    def with_columns(self, student: Tensor, labels: Tensor) -> Rows:
        """Return the rows with other columns of the student, all of which the teacher has."""
        return replace(self, student=student, labels=labels, shared=None)

    def sum_by_example(self, values: Tensor) -> Tensor:
        """Sum a value per row, or several, into `(batch, ...)`."""
        # No short cut for as many rows as examples: they may all be tokens of one example.
        return values.new_zeros(self.examples, *values.shape[1:]).index_add(0, self.example, values)

    def agreement(self) -> Tensor:
        """Return how many rows of each example have the same top class in both models, `(batch,)`."""
        if self.teacher is None or self.student.shape[-1] == 1:
            return self.student.new_zeros(self.examples)
        top = top_class(self.teacher) if isinstance(self.teacher, Tensor) else self.teacher.top_class()
        return self.sum_by_example((top_class(self.compared.student) == top).to(self.student.dtype))

    def extremes(self) -> Tensor:
        """Return a number for each example that is NaN or inf where the logits are: student's, teacher's `(batch, 2)`.

        It says which model is at fault once a loss is not finite. Of a vocabulary it looks at the first classes: what
        goes wrong before the head goes wrong in all of them, and the loss sees the rest.
        """
        ours = self._extreme(self.student.detach())
        teacher = self.teacher if self.teacher is None or isinstance(self.teacher, Tensor) else self.teacher.numbers
        theirs = torch.zeros_like(ours) if teacher is None else self._extreme(teacher).to(ours)
        return self.sum_by_example(torch.stack((ours, theirs), -1))

    @staticmethod
    def _extreme(logits: Tensor) -> Tensor:
        return logits[:, :_FIRST].amax(-1) if logits.shape[-1] else logits.new_zeros(len(logits))


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch are, known before any logit is made.

    Attributes:
        mask: Which positions of a model's output, bool `(batch, positions)`; positions past its width are none.
        labels: See `Rows`.
        example: See `Rows`.
        position: Of each row in its example, `(rows,)`.
    """

    mask: Tensor
    labels: Tensor
    example: Tensor
    position: Tensor

    def pick(self, output: Tensor) -> Tensor:
        """Return the rows of `(batch, positions, width)`, `(rows, width)`.

        Raises:
            ValueError: The output has other positions than the batch; which of them is which is not known.
        """
        extra = output.shape[1] - self.mask.shape[1]
        if extra not in (0, 1):  # 1: the last position predicts a token after the end
            raise ValueError(
                f"the model's output has {output.shape[1]} positions, and the batch {self.mask.shape[1]} to compare. "
                "Prompt tuning, which puts tokens of its own before them, is not supported; use LoRA or prefix tuning."
            )
        # Not by the mask: each time the device would be asked again how many there are.
        return output[self.example, self.position]


class RowLayout(ABC):
    """Turns the logits of both models and a batch into `Rows`, and counts rows from the batch alone."""

    @property
    def has_classes(self) -> bool:
        """Whether rows are distributions over classes, so that two models can agree on the top one."""
        return True

    @property
    def by_position(self) -> bool:
        """Whether a row depends on nothing but the head's input at one position (see `places`)."""
        return False

    @property
    def has_named_classes(self) -> bool:
        """Whether every row is a distribution over the task's classes, so that figures by class mean something."""
        return False

    # Whether the models return a vector of each text.
    vectors: ClassVar[bool] = False
    # Which of a model's outputs `logits` reads, and whether they have a value for every token of the input.
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs_by_token: ClassVar[bool] = False
    # Column of the teacher's logits for each of the student's, where their orders differ.
    teacher_columns: tuple[int, ...] | None = None
    # Units whose sum is how many tokens a student reads.
    token_units: ClassVar[tuple[Unit, ...]] = ("token",)
    # What it reads of a batch beside the models' own inputs; the trainer keeps these columns of a data set.
    columns: tuple[str, ...] = ("labels",)

    # Which of these have a value for every token of the input, and which hold positions of tokens: they move with them.
    token_columns: ClassVar[tuple[str, ...]] = ()
    position_columns: ClassVar[tuple[str, ...]] = ()

    def labels(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return what metrics compare predictions with; None where the batch has no labels."""
        return inputs.get("labels")

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return what `select` takes of a model's output; a student's is also what metrics are computed from."""
        logits: Tensor = outputs["logits"]
        return logits

    def shared(self, device: torch.device) -> Tensor | None:
        """Return which of the student's columns the teacher has too, `(columns,)`, ascending; None for all."""
        return None

    @abstractmethod
    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return the rows that count; logits as the models gave them, in their own dtype."""

    def teacher_rows(self, teacher: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the teacher's rows as `select` does, but with their graph, for objectives that differentiate."""
        columns = self.teacher_columns
        return self.select(teacher if columns is None else teacher[..., list(columns)], None, inputs).student

    def places(self, inputs: Mapping[str, Tensor]) -> Places | None:
        """Return where the rows are, for a head that is applied position by position; None for other heads."""
        return None

    @abstractmethod
    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return how many rows, labels and examples every example has, `(batch,)` each. Needs no forward pass."""

    def tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens of the (encoder's) input are no padding, bool `(sequences, tokens)`."""
        attended = inputs.get("attention_mask")
        if attended is not None:
            return attended != 0
        ids = inputs.get("input_ids")
        return torch.ones(0, 0, dtype=torch.bool) if ids is None else torch.ones_like(ids, dtype=torch.bool)

    def units(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return how many of each unit every example has, `(batch,)` each: `counts`, tokens, pairs and triples."""
        counts = self.counts(inputs)
        examples = counts["example"]
        tokens = self.tokens(inputs).sum(-1).to(examples)
        counts["token"] = fold(tokens, len(examples)) if len(tokens) else torch.zeros_like(examples)
        counts["pair"] = examples * (len(examples) - 1)
        counts["triple"] = torch.zeros_like(examples)  # but for sentence similarity
        return counts


def fold(sequences: Tensor, examples: int) -> Tensor:
    """Sum a value per sequence into `(examples,)`.

    An example may be several sequences: a batch of B pairs of sentences is the B first ones, then the B second ones.
    """
    return sequences.reshape(-1, examples).sum(0)


def likeliest(labels: Tensor) -> Tensor:
    """Return the likeliest class of every distribution `(rows, classes)`, -100 where there is none (NaN).

    >>> likeliest(torch.tensor([[0.2, 0.8], [float("nan")] * 2]))
    tensor([   1, -100])
    """
    return torch.where(labels.isnan().any(-1), IGNORED, labels.argmax(-1))


def side_of(head: Head, captured: Captured, places: Places, classes: int | None, shared: Tensor | None = None) -> Side:
    """Return a model at its head, for the rows of a batch.

    Args:
        head: Of the model.
        captured: What it would have given to the head.
        places: Where the rows are. A model spread over devices may have computed its last layer on another one.
        classes: See `Side`.
        shared: Likewise.
    """
    assert captured.hidden is not None
    here = captured.hidden.device
    if places.mask.device != here:
        places = replace(places, **{item.name: getattr(places, item.name).to(here) for item in fields(places)})
    return Side(head, places.pick(captured.hidden).to(head.linear.weight.device), captured.dtype, classes, shared)
