"""Rows whose logits are made a few at a time, so that no `(tokens, classes)` tensor of either model ever exists.

A vocabulary-sized head makes logits the largest tensors of a step: student's and teacher's, their softmaxes, the
gradient. Here a chunk of rows goes through both heads, all objectives are evaluated on it, and the gradient is taken
at once, in the forward pass. What the backward pass needs is then the gradient to the input of the head and to its
weights, neither of which grows with rows times classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.heads import Captured, Head, capturing, open_head
from hf_distill.layouts import base_model
from hf_distill.objectives.base import RowObjective
from hf_distill.rows import RowLayout, Rows, SparseRows

# Logits of one model that a chunk makes: enough rows for fast matrix products.
CHUNK_BYTES = {"cpu": 32 * 2**20}
ELSEWHERE = 256 * 2**20
# Logits that objectives look at together. A processor's cache keeps them while a dozen operations go over them; a GPU
# has no use for smaller pieces than the chunk.
BLOCK_BYTES = 2 * 2**20
_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)


@dataclass(frozen=True)
class Side:
    """One model at its head.

    Attributes:
        head: What comes next.
        hidden: Its input at the rows that count, `(rows, width)`.
        dtype: Of the matrix product.
        classes: Number of columns that are tokens; None for all.
    """

    head: Head
    hidden: Tensor
    dtype: torch.dtype
    classes: int | None = None

    @property
    def width(self) -> int:
        """Number of columns of the head."""
        return len(self.head.linear.weight)

    def finish(self, raw: Tensor) -> Tensor:
        """Return the model's logits from the linear map's result, float32 or better, at the columns that are tokens."""
        upcast = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        return self.head.finish(upcast)[:, : self.classes]

    def logits(self) -> Tensor:
        """Return all of them at once, `(rows, classes)`, with their graph."""
        linear = self.head.linear
        bias: Tensor | None = linear.bias
        bias = None if bias is None else bias.to(self.dtype)
        raw = torch.nn.functional.linear(self.hidden.to(self.dtype), linear.weight.to(self.dtype), bias)
        return self.finish(raw)


def project(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `rows @ weight.T + bias` for few rows and many columns.

    On a CPU in float32 by oneDNN, as torch.compile does it. PyTorch's own choice is MKL, which needs up to 1.7 times as
    long for this shape on processors that are not Intel's (256 rows of width 768, 30522 columns, AMD EPYC 9004).
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and _HAS_ONEDNN:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product
    return torch.nn.functional.linear(rows, weight, bias)


class Projector:
    """A head ready for one walk: its weights, in the precision of the product."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.weight = side.head.linear.weight.detach().to(side.dtype)
        bias: Tensor | None = side.head.linear.bias
        self.bias = None if bias is None else bias.detach().to(side.dtype)
        self.hidden = side.hidden.detach()

    def raw(self, part: slice) -> Tensor:
        """Return the linear map's result for some rows."""
        return project(self.rows(part), self.weight, self.bias)

    def rows(self, part: slice) -> Tensor:
        """Return the input of some rows in the precision of the product."""
        return self.hidden[part].to(self.weight.dtype)


class HeadRows(Rows):
    """The rows of a micro-batch before the heads.

    Args:
        student: The student at its head.
        teacher: The teacher at its head, or what was kept of its rows; None without a teacher.
        labels: See `Rows`.
        example: See `Rows`.
        examples: See `Rows`.
    """

    def __init__(
        self, student: Side, teacher: Side | SparseRows | None, labels: Tensor, example: Tensor, examples: int
    ) -> None:
        settings = {"sides": (student, teacher), "labels": labels, "example": example, "examples": examples}
        for name, value in {**settings, "classes": None, "_agreement": None}.items():
            object.__setattr__(self, name, value)  # as the base class is frozen

    sides: tuple[Side, Side | SparseRows | None]
    _agreement: Tensor | None

    @cached_property
    def student(self) -> Tensor:
        """All logits at once, for whoever does not walk."""
        return self.sides[0].logits()

    @cached_property
    def teacher(self) -> Tensor | SparseRows | None:
        """Likewise."""
        teacher = self.sides[1]
        return teacher.logits().detach() if isinstance(teacher, Side) else teacher

    def agreement(self) -> Tensor:
        """See `Rows.agreement`; known once the rows have been walked over."""
        if self._agreement is None:
            self.walk((), None)
        assert self._agreement is not None
        return self._agreement

    def walk(self, objectives: Sequence[RowObjective], coefficients: Tensor | None) -> Tensor:
        """Evaluate objectives row by row, all of them on a chunk of logits while it is there.

        Args:
            objectives: What to evaluate.
            coefficients: The loss is `sum_k coefficients_k * sums_k`, and no other function of the sums has a gradient,
                `(objectives,)`; None where no gradient is wanted.

        Returns:
            The sum of every objective for every example, `(batch, objectives)`.
        """
        linear = self.sides[0].head.linear
        if not torch.is_grad_enabled():
            coefficients = None
        if coefficients is not None:
            coefficients = coefficients.to(torch.promote_types(self.sides[0].dtype, torch.float32))
        sums: Tensor
        sums, agreement = _Walk.apply(  # type: ignore[no-untyped-call]
            self.sides[0].hidden, linear.weight, linear.bias, self, tuple(objectives), coefficients
        )
        object.__setattr__(self, "_agreement", agreement)
        return sums

    def pieces(self) -> tuple[int, int]:
        """Return how many rows make a chunk, and how many of them a block."""
        student = self.sides[0]
        row = student.width * 4
        device = student.hidden.device.type
        chunk = max(1, CHUNK_BYTES.get(device, ELSEWHERE) // row)
        chunk = min(chunk, max(1, len(student.hidden)))
        return chunk, max(1, min(chunk, BLOCK_BYTES // row)) if device == "cpu" else chunk


class Heads:
    """Both models taken apart at their heads.

    Args:
        student: Without wrapper of a distributed training; PEFT's may be there.
        teacher: Likewise; None where there is none.
        heads: Of both.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, heads: tuple[Head, Head | None]) -> None:
        self._models = (student, teacher)
        self._heads = heads
        self._captured: list[Captured] = []

    @classmethod
    def open(cls, student: nn.Module, teacher: nn.Module | None) -> Heads | None:
        """Take the models apart; None if one of them cannot be, or if they have the same head."""
        ours = open_head(student)
        theirs = None if teacher is None or ours is None else open_head(teacher)
        if ours is None or (teacher is not None and theirs is None):
            return None
        if theirs is not None and theirs.linear is ours.linear:  # whose input it is could not be told
            return None
        return cls(student, teacher, (ours, theirs))

    def are_of(self, student: nn.Module, teacher: nn.Module | None) -> bool:
        """Whether these are still the heads of two models."""
        for model, mine, head in zip((student, teacher), self._models, self._heads, strict=True):
            base: Any = None if model is None else base_model(model)
            if model is not mine or (head is not None and base.get_output_embeddings() is not head.linear):
                return False
        return True

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Keep what both models would have given to their heads in one forward pass, and make no logits."""
        (student, teacher), (ours, theirs) = self._models, self._heads
        with capturing(student, ours) as first:
            if teacher is None or theirs is None:
                self._captured = [first]
                yield
            else:
                with capturing(teacher, theirs) as second:
                    self._captured = [first, second]
                    yield

    def rows(self, layout: RowLayout, inputs: Mapping[str, Tensor], kept: SparseRows | None = None) -> HeadRows:
        """Return the rows of the batch that was captured.

        Args:
            layout: Of the task.
            inputs: The batch.
            kept: The teacher's rows, where there is no teacher but these.
        """
        places = layout.places(inputs)
        assert places is not None
        classes: int | None = getattr(layout, "classes", None)
        sides = []
        for captured, head in zip(self._captured, self._heads, strict=False):
            assert captured.hidden is not None
            assert head is not None
            sides.append(Side(head, places.pick(captured.hidden), captured.dtype, classes))
        self._captured = []
        student, teacher = (*sides, None)[:2]
        assert student is not None
        return HeadRows(student, teacher or kept, places.labels, places.example, len(places.mask))


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield the slices that cover `start` to `stop`, of `size` each but for the last."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


class _Walk(torch.autograd.Function):
    """Sums whose gradient is taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: HeadRows,
        objectives: tuple[RowObjective, ...],
        coefficients: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `HeadRows.walk`."""
        taken = coefficients is not None and len(objectives) > 0
        wanted = [taken and needed for needed in ctx.needs_input_grad[:3]]
        walk = _Walker(rows, objectives, coefficients, wanted)
        walk.go()
        ctx.gradients, ctx.coefficients = walk.gradients, coefficients
        ctx.dtypes = [None if one is None else one.dtype for one in (hidden, weight, bias)]
        ctx.mark_non_differentiable(walk.agreement)
        return walk.sums, walk.agreement

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by that of the loss."""
        if ctx.coefficients is None:
            raise RuntimeError("these sums were computed without coefficients, and have no gradient.")
        # Let go of: what the graph holds would be copied into `.grad`, and this scales in place.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the gradient of these sums is there once, retain_graph or not: it was taken in the forward pass, and "
                "handed out by an earlier backward pass. Compute the loss again."
            )
        loss = _gradient_of_the_loss(sums, ctx.coefficients)
        scaled = [
            None if one is None else one.mul_(loss.to(one.dtype)).to(dtype)
            for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _gradient_of_the_loss(sums: Tensor, coefficients: Tensor) -> Tensor:
    """Return `g` where the gradient of the sums is `g * coefficients` for every example."""
    if not sums.numel():
        return sums.new_zeros(())
    # The multiple of the coefficients that comes closest, without an index that a GPU would have to be asked for.
    largest = coefficients.abs().max()
    scaled = torch.where(largest == 0, 0.0, coefficients / largest)
    loss = torch.where(largest == 0, 0.0, (sums[0] * scaled).sum() / (scaled.square().sum() * largest))
    if sums.device.type == "cpu" and not torch.allclose(
        sums, (loss * coefficients).expand_as(sums), rtol=1e-3, equal_nan=True
    ):
        raise RuntimeError("the gradient was taken for the sum of the objectives, but another loss is made of them.")
    return loss


class _Walker:
    """One walk: what it goes over, and what it has gathered so far."""

    def __init__(
        self, rows: HeadRows, objectives: tuple[RowObjective, ...], coefficients: Tensor | None, wanted: list[bool]
    ) -> None:
        self.rows, self.objectives, self.coefficients, self.wanted = rows, objectives, coefficients, wanted
        self.chunk, self.block = rows.pieces()
        student, teacher = rows.sides
        self.student = Projector(student)
        self.teacher = Projector(teacher) if isinstance(teacher, Side) else None
        self.kept = teacher if isinstance(teacher, SparseRows) else None
        exact = torch.promote_types(student.dtype, torch.float32)
        self.sums = self.student.hidden.new_zeros(rows.examples, len(objectives), dtype=exact)
        self.agreement = self.sums.new_zeros(rows.examples)
        linear = student.head.linear
        # What is summed over chunks, in half precision, would soon be so large that a chunk is lost in it.
        several = self.chunk < len(rows.labels)
        parts = ((student.hidden, False), (linear.weight, several), (linear.bias, several))
        self.gradients = [
            torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32) if summed else one.dtype)
            if want and one is not None
            else None
            for (one, summed), want in zip(parts, wanted, strict=True)
        ]

    def go(self) -> None:
        """Walk over all rows."""
        for part in slices(0, len(self.rows.labels), self.chunk):
            raw = self.student.raw(part)
            theirs = None if self.teacher is None else self.teacher.raw(part)
            for block in slices(0, len(raw), self.block):
                self._evaluate(part.start, block, raw, theirs)
            if any(self.wanted):
                self._carry_back(part, raw)
            del raw, theirs  # so that the next chunk takes their place

    def _evaluate(self, start: int, block: slice, raw: Tensor, theirs: Tensor | None) -> None:
        """Evaluate the objectives on a block, and leave the gradient in the place of its logits."""
        place = slice(start + block.start, start + block.stop)
        leaf = raw[block].detach().requires_grad_(any(self.wanted))
        with torch.enable_grad():
            rows = Rows(
                student=self.student.side.finish(leaf),
                teacher=self._teacher(place, block, theirs),
                labels=self.rows.labels[place],
                example=self.rows.example[place],
                examples=self.rows.examples,
            )
            columns = [objective.sums(rows).to(self.sums) for objective in self.objectives]
            sums = torch.stack(columns, -1) if columns else torch.zeros_like(self.sums)
            self.agreement += rows.agreement().to(self.agreement)  # before its logits are overwritten
            if any(self.wanted) and self.coefficients is not None:
                loss = (sums.sum(0) * self.coefficients).sum()
                # An objective may give a constant where none of these rows counts for it.
                raw[block] = torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else 0.0
        self.sums += sums.detach()

    def _teacher(self, place: slice, block: slice, theirs: Tensor | None) -> Tensor | SparseRows | None:
        if theirs is not None and self.teacher is not None:
            return self.teacher.side.finish(theirs[block]).detach()
        return None if self.kept is None else self.kept[place]

    def _carry_back(self, part: slice, gradient: Tensor) -> None:
        """Carry a chunk's gradient through the linear map."""
        hidden, weight, bias = self.gradients
        if hidden is not None:
            hidden[part] = torch.mm(gradient, self.student.weight)
        if weight is not None:
            if weight.dtype == gradient.dtype:
                weight.addmm_(gradient.t(), self.student.rows(part))
            else:
                weight += torch.mm(gradient.t(), self.student.rows(part))
        if bias is not None:
            bias += gradient.sum(0, dtype=bias.dtype)
