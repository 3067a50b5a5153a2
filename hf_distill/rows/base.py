"""Rows: the logits of a batch that count, and their labels.

Every objective on logits gets `(rows, classes)` and nothing else. The layout decides what a row is (an example, one
label of a multi-label example, a token), so a new objective works for every task and a new task for every objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.models.heads import Captured, OutputHead
from hf_distill.models.projection import Side
from hf_distill.models.target_rows import MixtureRows, SparseRows, TeacherRows, top_class, upcast
from hf_distill.models.vocabulary_map import VocabularyMap

# What the sum of a loss is divided by: rows that count, rows that have a label, examples, tokens that are not padding,
# ordered pairs of two examples of the same micro-batch, triples of a text, one that fits it and one that does not,
# spans of text that both models' tokens make up exactly; rows whose token a model wrote.
Unit = Literal["row", "label", "example", "token", "pair", "triple", "span", "written"]
UNITS: tuple[Unit, ...] = ("row", "label", "example", "token", "pair", "triple", "span", "written")
# The logit of a column that is not a class of the row: its probability is exactly 0 at any temperature, and unlike with
# -inf the log-probability can be subtracted and differentiated.
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
        classes: Which columns are classes of each row, bool `(rows, classes)`, if rows have different ones; None if all
            columns are classes of all rows. The others are `IMPOSSIBLE` in both models.
        shared: Columns that the teacher has too, `(shared classes,)`, ascending; None for all. The teacher's rows have
            only these columns.
        taught: Which rows are compared with the teacher, bool `(rows,)`; None for all. What the teacher has in the
            other rows stands for nothing.
        written: The token of the text that each row predicts, where a model wrote it, `(rows,)`; -100 for one of the
            data, whose label it is. None where no model writes.
        mapping: What both models' tokens stand for, where the teacher has another vocabulary. Its logits are then those
            of its own, and stored rows those of the classes of the map.
    """

    student: Tensor
    teacher: TeacherRows | None
    labels: Tensor
    example: Tensor
    examples: int
    classes: Tensor | None = None
    shared: Tensor | None = None
    taught: Tensor | None = None
    written: Tensor | None = None
    mapping: VocabularyMap | None = None
    _at: dict[float, Rows] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def compared(self) -> Rows:
        """The rows and columns that both models have; a label or token outside them counts as none."""
        if self.taught is not None:
            return self._only(self.taught.nonzero()[:, 0]).compared
        if self.shared is None:
            return self
        written = None if self.written is None else self._places(self.written)
        return self.with_columns(self.student.index_select(-1, self.shared), self._places(self.labels), written)

    def _only(self, rows: Tensor) -> Rows:
        """Return some of the rows, all of them taught."""
        return Rows(
            self.student[rows],
            None if self.teacher is None else self.teacher[rows],
            self.labels[rows],
            self.example[rows],
            self.examples,
            None if self.classes is None else self.classes[rows],
            self.shared,
            written=None if self.written is None else self.written[rows],
            mapping=self.mapping,
        )

    def at(self, temperature: float | Tensor) -> Rows:
        """Return what objectives compare at a temperature: `compared`, with the classes that both models have.

        Where the models have different vocabularies, tokens are put together after they were softened, so that the
        rows are others for each temperature.

        Args:
            temperature: Of the objective.
        """
        rows = self.compared
        if rows.mapping is None:
            return rows
        if isinstance(temperature, Tensor):
            return rows._mapped(rows.mapping, temperature)
        if temperature not in self._at:
            self._at[temperature] = rows._mapped(rows.mapping, temperature)
        return self._at[temperature]

    def _mapped(self, mapping: VocabularyMap, temperature: float | Tensor) -> Rows:
        teacher = self.teacher
        if isinstance(teacher, Tensor):
            with torch.no_grad():
                teacher = mapping.of_teacher(teacher, temperature)
        student = mapping.of_student(self.student, temperature)
        return replace(
            self,
            student=student,
            teacher=teacher,
            labels=mapping.labels(self.labels, IGNORED),
            written=None if self.written is None else mapping.labels(self.written, IGNORED),
            mapping=None,
        )

    def _places(self, classes: Tensor) -> Tensor:
        """Return the place of each class among those that both models have; -100 for another one."""
        assert self.shared is not None
        place = torch.searchsorted(self.shared, classes).clamp(max=len(self.shared) - 1)
        return torch.where(self.shared[place] == classes, place, torch.full_like(place, IGNORED))

    def with_columns(self, student: Tensor, labels: Tensor, written: Tensor | None = None) -> Rows:
        """Return the rows with other student logits, labels and tokens, whose columns the teacher has all of."""
        return replace(self, student=student, labels=labels, written=written, shared=None)

    def first(self, count: int) -> Rows:
        """Return the first rows, at most `count`, without a graph; the logits of others are not computed."""
        part = slice(0, count)
        teacher = None if self.teacher is None else self.teacher[part]
        return replace(
            self,
            student=self.student[part].detach(),
            teacher=teacher,
            labels=self.labels[part],
            example=self.example[part],
            classes=None if self.classes is None else self.classes[part],
            taught=None if self.taught is None else self.taught[part],
            written=None if self.written is None else self.written[part],
        )

    def sum_by_example(self, values: Tensor) -> Tensor:
        """Sum `(rows, ...)` over the rows of each example: `(batch, ...)`."""
        # Also if there are as many rows as examples: they may all be tokens of one example.
        return values.new_zeros(self.examples, *values.shape[1:]).index_add(0, self.example, values)

    def agreement(self) -> Tensor:
        """Return how many rows of each example have the same top class in both models, `(batch,)`."""
        if self.teacher is None or self.student.shape[-1] == 1:
            return self.student.new_zeros(self.examples)
        rows = self.at(1.0)
        assert rows.teacher is not None
        top = top_class(rows.teacher) if isinstance(rows.teacher, Tensor) else rows.teacher.top_class()
        same = top_class(rows.student) == top
        if self.mapping is not None:
            same = same & (top < self.mapping.groups)  # other tokens need not be the same one
        return rows.sum_by_example(same.to(self.student.dtype))

    def extremes(self) -> Tensor:
        """Return a number per example and model, `(batch, 2)`: NaN or inf if its logits are; student, then teacher.

        It tells which model is at fault when a loss is not finite. For a vocabulary only the first classes are checked:
        a fault before the head shows in all classes, and any other shows in the loss.
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
    """Positions of the rows of a batch, known before any logit is computed.

    Attributes:
        mask: Which positions of a model's output are rows, bool `(batch, positions)`; later positions are not.
        labels: `(rows,)`: class indices, -100 for no label.
        example: `(rows,)`, the index in the batch of the example each row belongs to.
        position: Position of each row in its example, `(rows,)`.
        theirs: Position of each row in the teacher's own tokens, `(rows,)`, `two_tokenizers.APART` for a row that is
            not compared; None where both models have the same positions.
        their_positions: As many as `mask` has, of the teacher's own tokens; needed with `theirs`.
        written: Tokens that a model wrote, as in `Rows`.
    """

    mask: Tensor
    labels: Tensor
    example: Tensor
    position: Tensor
    theirs: Tensor | None = None
    their_positions: int = 0
    written: Tensor | None = None

    @property
    def taught(self) -> Tensor | None:
        """Which rows are compared with the teacher, bool `(rows,)`; None for all."""
        return None if self.theirs is None else self.theirs >= 0

    def of_teacher(self) -> Places:
        """Return the rows that are compared with the teacher alone."""
        if self.taught is None or self.theirs is None:
            return self
        kept = self.taught.nonzero()[:, 0]
        rows = {name: getattr(self, name)[kept] for name in ("labels", "example", "position", "theirs")}
        return replace(self, **rows)

    def to(self, device: torch.device) -> Places:
        """Return the same on a device."""
        if self.mask.device == device:
            return self
        here: dict[str, Any] = {name: one.to(device) for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, **here)

    def pick(self, output: Tensor) -> Tensor:
        """Return the student's rows of `(batch, positions, width)`, `(rows, width)`.

        Raises:
            ValueError: The output has another number of positions than the batch, so they cannot be matched.
        """
        self._check(output, self.mask.shape[1])
        # By index, not by the mask: a mask would wait for the device each time to learn the number of rows.
        return output[self.example, self.position]

    def pick_theirs(self, output: Tensor) -> Tensor:
        """Return the teacher's rows of `(batch, its positions, width)`, `(rows, width)`; 0 where none is compared.

        Raises:
            ValueError: As `pick`.
        """
        if self.theirs is None:
            return self.pick(output)
        self._check(output, self.their_positions)
        rows = output[self.example, self.theirs.clamp(min=0)]
        return rows.masked_fill((self.theirs < 0).unsqueeze(-1), 0.0)

    @staticmethod
    def _check(output: Tensor, positions: int) -> None:
        extra = output.shape[1] - positions
        if extra not in (0, 1):  # 1: the last position predicts a token after the end
            raise ValueError(
                f"the model's output has {output.shape[1]} positions, and the batch {positions} to compare. "
                "Prompt tuning, which puts tokens of its own before them, is not supported; use LoRA or prefix tuning."
            )


class RowLayout(ABC):
    """Turns the logits of both models and a batch into `Rows`, and counts rows from the batch alone (no logits)."""

    @property
    def has_classes(self) -> bool:
        """Whether rows are distributions over classes, so that two models can agree on the top one."""
        return True

    @property
    def by_position(self) -> bool:
        """Whether a row depends only on the head's input at one position; `places` then gives the positions."""
        return False

    @property
    def has_named_classes(self) -> bool:
        """Whether every row is a distribution over the task's classes, so that the report can show each class."""
        return False

    @property
    def has_spans(self) -> bool:
        """Whether rows are tokens of texts that language models go on with (`written`)."""
        return False

    # Whether the models return a vector of each text.
    vectors: ClassVar[bool] = False
    # Which of a model's outputs `logits` reads, and whether they have a value for every token of the input.
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs_by_token: ClassVar[bool] = False
    # Column of the teacher's logits for each of the student's, if their orders differ.
    teacher_columns: tuple[int, ...] | None = None
    # Units whose sum is the number of tokens that a student reads.
    token_units: ClassVar[tuple[Unit, ...]] = ("token",)
    # Columns read beside the models' inputs; the trainer does not remove them from a data set.
    columns: tuple[str, ...] = ("labels",)

    # Columns with a value for every token, and columns with positions of tokens: they change when padding is moved.
    token_columns: ClassVar[tuple[str, ...]] = ()
    position_columns: ClassVar[tuple[str, ...]] = ()

    def labels(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the labels with which metrics compare predictions; None if the batch has none."""
        return inputs.get("labels")

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return the logits in a model's output, as `select` takes them; metrics are computed from them as well."""
        logits: Tensor = outputs["logits"]
        return logits

    def shared(self, device: torch.device) -> Tensor | None:
        """Return the student's columns that the teacher has too, `(columns,)`, ascending; None for all."""
        return None

    @abstractmethod
    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return the rows that count.

        Args:
            student: The student's logits, as `logits` returns them, in their own dtype.
            teacher: The teacher's logits; None without a teacher.
            inputs: The batch.
        """

    def teacher_rows(self, teacher: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the teacher's rows as `select` does, but not detached, for objectives that need their gradient."""
        columns = self.teacher_columns
        return self.select(teacher if columns is None else teacher[..., list(columns)], None, inputs).student

    def places(self, inputs: Mapping[str, Tensor]) -> Places | None:
        """Return the positions of the rows, for a head that is applied to each position alone; None for other heads."""
        return None

    def written(self, inputs: Mapping[str, Tensor], *, teacher: bool = False) -> Any:
        """Return the tokens that make up spans, as the student or the teacher reads them (`written.SpanTokens`)."""
        raise ValueError("spans are those of texts that a causal language model reads: wanted rows of tokens.")

    @abstractmethod
    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return unit -> number per example, `(batch,)`, for rows, labels and examples. Needs no forward pass."""

    def tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return True for tokens of the (encoder's) input that are not padding, bool `(sequences, tokens)`."""
        attended = inputs.get("attention_mask")
        if attended is not None:
            return attended != 0
        ids = inputs.get("input_ids")
        return torch.ones(0, 0, dtype=torch.bool) if ids is None else torch.ones_like(ids, dtype=torch.bool)

    def units(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return unit -> number per example, `(batch,)`: those of `counts`, and all others."""
        counts = self.counts(inputs)
        examples = counts["example"]
        tokens = self.tokens(inputs).sum(-1).to(examples)
        counts["token"] = fold(tokens, len(examples)) if len(tokens) else torch.zeros_like(examples)
        counts["pair"] = examples * (len(examples) - 1)
        counts["triple"] = torch.zeros_like(examples)  # only sentence similarity has triples
        counts["span"] = torch.zeros_like(examples)  # only language models have spans
        counts["written"] = counts.pop("written", torch.zeros_like(examples))  # only language models write
        return counts


def fold(sequences: Tensor, examples: int) -> Tensor:
    """Sum a value per sequence over the sequences of each example: `(sequences,)` -> `(examples,)`.

    An example may be several sequences: a batch of B pairs of sentences has the B first ones, then the B second ones.
    """
    return sequences.reshape(-1, examples).sum(0)


def likeliest(labels: Tensor) -> Tensor:
    """Return the most likely class of every distribution `(rows, classes)`; -100 for a row of NaN.

    >>> likeliest(torch.tensor([[0.2, 0.8], [float("nan")] * 2]))
    tensor([   1, -100])
    """
    return torch.where(labels.isnan().any(-1), IGNORED, labels.argmax(-1))


def side_of(
    head: OutputHead,
    captured: Captured,
    places: Places,
    classes: int | None,
    shared: Tensor | None = None,
    *,
    of_teacher: bool = False,
) -> Side:
    """Return a model's output head with its input at the rows of a batch.

    Args:
        head: The model's output head.
        captured: The captured input of the head.
        places: Positions of the rows; moved to the device of the captured input.
        classes: Number of columns that are tokens; None for all.
        shared: For a teacher: the columns whose tokens the student has too; None for all.
        of_teacher: Whether it is a teacher, which may have the rows at positions of its own.
    """
    assert captured.hidden is not None
    here = places.to(captured.hidden.device)
    hidden = here.pick_theirs(captured.hidden) if of_teacher else here.pick(captured.hidden)
    return Side(head, hidden.to(head.linear.weight.device), captured.dtype, classes, shared)
