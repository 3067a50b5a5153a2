"""Rows whose logits are made a few at a time, so that no `(tokens, classes)` tensor of either model ever exists.

A vocabulary-sized head makes logits the largest tensors of a step: student's and teacher's, their softmaxes, the
gradient. Here a chunk of rows goes through both heads, all objectives are evaluated on it, and the gradient is taken
at once, in the forward pass. What the backward pass needs is then the gradient to the input of the head and to its
weights, neither of which grows with rows times classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.heads import CHUNK_BYTES, ELSEWHERE, slices
from hf_distill.models.projection import Projector, Side
from hf_distill.models.target_rows import MixtureRows, TeacherRows
from hf_distill.objectives.base import RowObjective, temperatures_of
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.training.chunked.block import Evaluate, Evaluation
from hf_distill.training.chunked.compiled import Compiler

# Logits, float32, that objectives look at together. A processor's cache keeps them while a dozen operations go over
# them; on a GPU what is composed of them (six times as much) stays small beside the chunks.
BLOCK_BYTES = 2 * 2**20
BLOCK_ELSEWHERE = 64 * 2**20


@dataclass(frozen=True)
class MixedSides:
    """Several teachers at their heads, whose distributions are averaged.

    Attributes:
        sides: Of each.
        weights: Of each; they sum to 1.
    """

    sides: tuple[Side, ...]
    weights: tuple[float, ...]

    def rows(
        self, part: slice, temperatures: Sequence[float], block: int = 0, device: torch.device | None = None
    ) -> MixtureRows:
        """Return the mean for some rows, one teacher after the other: memory does not grow with their number.

        Args:
            part: Which rows.
            temperatures: At which they will be asked for.
            block: How many rows are softened together; all of them if 0.
            device: Where to put them; where the first head is, if None.
        """
        means: dict[float, Tensor] = {}
        for side, weight in zip(self.sides, self.weights, strict=True):
            raw = Projector(side).raw(part)
            for rows in slices(0, len(raw), block or max(1, len(raw))):
                logits = side.finish(raw[rows]).detach().to(device)
                for temperature in temperatures:
                    softened = (logits / temperature).log_softmax(-1) + math.log(weight)
                    if temperature not in means:
                        means[temperature] = softened.new_full((len(raw), softened.shape[-1]), -torch.inf)
                    mean = means[temperature][rows]
                    torch.logaddexp(mean, softened, out=mean)
            del raw
        return MixtureRows(means)


class HeadRows(Rows):
    """The rows of a micro-batch before the heads.

    Args:
        student: The student at its head.
        teacher: The teacher at its head, or several at theirs, or what was stored of its rows; None without a teacher.
        labels: See `Rows`.
        example: See `Rows`.
        examples: See `Rows`.
        compiler: What compiles the evaluation of blocks; None to evaluate them eagerly.
        shared: See `Rows`.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side | MixedSides | SparseRows | None,
        labels: Tensor,
        example: Tensor,
        examples: int,
        compiler: Compiler | None = None,
        shared: Tensor | None = None,
    ) -> None:
        self.sides: tuple[Side, Side | MixedSides | SparseRows | None] = (student, teacher)
        self.labels, self.example, self.examples = labels, example, examples
        self.classes, self.shared = None, shared
        self.compiler = compiler
        self._agreement: Tensor | None = None

    # Made when it is asked for, where `Rows` are given it.
    @cached_property
    def student(self) -> Tensor:  # type: ignore[override]
        """All logits at once, for whoever does not walk."""
        return self.sides[0].logits()

    @cached_property
    def teacher(self) -> TeacherRows | None:  # type: ignore[override]
        """Likewise."""
        teacher = self.sides[1]
        if isinstance(teacher, MixedSides):
            return teacher.rows(slice(None), (1.0,))
        return teacher.logits().detach() if isinstance(teacher, Side) else teacher

    def with_columns(self, student: Tensor, labels: Tensor) -> Rows:
        """See `Rows.with_columns`."""
        return Rows(student, self.teacher, labels, self.example, self.examples)

    def agreement(self) -> Tensor:
        """See `Rows.agreement`; known once the rows have been walked over."""
        if self._agreement is None:
            self.walk((), None)
        assert self._agreement is not None
        return self._agreement

    def extremes(self) -> Tensor:
        """See `Rows`: here of what goes into the heads, whose logits are never all there."""
        student, teacher = self.sides
        ours = _largest(student.hidden)
        if isinstance(teacher, SparseRows):
            theirs = self._extreme(teacher.log_probabilities)
        elif isinstance(teacher, MixedSides):
            theirs = torch.stack([_largest(side.hidden).to(ours) for side in teacher.sides]).amax(0)
        else:
            theirs = torch.zeros_like(ours) if teacher is None else _largest(teacher.hidden)
        return self.sum_by_example(torch.stack((ours, theirs.to(ours)), -1).to(self.example.device))

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
            exact = torch.promote_types(self.sides[0].dtype, torch.float32)
            coefficients = coefficients.to(linear.weight.device, exact)
        sums: Tensor
        with _without_autocast(linear.weight.device.type):
            sums, agreement = Walk.apply(  # type: ignore[no-untyped-call]
                self.sides[0].hidden, linear.weight, linear.bias, self, tuple(objectives), coefficients
            )
        self._agreement = agreement.to(self.labels.device)
        return sums.to(self.labels.device)

    def pieces(self) -> tuple[int, int]:
        """Return how many rows make a chunk, and how many of them a block; whole blocks, where it is more than one."""
        student = self.sides[0]
        device = student.hidden.device.type
        block = max(1, (BLOCK_BYTES if device == "cpu" else BLOCK_ELSEWHERE) // (student.width * 4))
        if device != "cpu":
            block -= block % 8 if block > 8 else 0  # rows that begin at a multiple of 16 bytes, in any precision
        chunk = max(1, CHUNK_BYTES.get(device, ELSEWHERE) // (student.width * student.dtype.itemsize))
        if chunk <= block:
            return chunk, chunk
        chunk -= chunk % block
        # Chunks of one size, to a few blocks: the memory of one then fits the next.
        number = -(-len(self.labels) // chunk)
        even = -(-len(self.labels) // max(1, number))
        return min(chunk, max(block, even + -even % block)), block


def _largest(hidden: Tensor) -> Tensor:
    """Return the largest number of each row, `(rows,)`: NaN where one is, inf where one is infinite."""
    largest: Tensor = torch.linalg.vector_norm(hidden.detach(), torch.inf, dim=-1)
    return largest.float()


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """Have sums computed in the precision of their tensors, whatever the caller trains in."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class Walk(torch.autograd.Function):
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
        ctx.mark_non_differentiable(walk.agreement)
        return walk.sums, walk.agreement

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by that of the loss."""
        if ctx.coefficients is None:
            raise RuntimeError("these sums were computed without coefficients, and have no gradient.")
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of these sums is there once, retain_graph or not: it was taken in the forward pass, and "
                "handed out by an earlier backward pass. Compute the loss again."
            )
        loss = _gradient_of_the_loss(sums, ctx.coefficients)
        # Let go of: the gradient of the weights becomes their `.grad` as it is if nobody else holds it, else a copy.
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if one is None else one.mul_(loss.to(one.dtype)) for one in gradients), None, None, None)


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
        student, teacher = rows.sides
        self.wanted = wanted
        self.coefficients = coefficients if any(wanted) else None
        self.chunk, self.block = rows.pieces()
        self.student = Projector(student)
        self.teacher = Projector(teacher) if isinstance(teacher, Side) else None
        self.other = None if isinstance(teacher, Side) else teacher
        self.temperatures = temperatures_of(objectives)
        self.device = self.student.weight.device
        self.labels, self.example = rows.labels.to(self.device), rows.example.to(self.device)
        evaluation = Evaluation(objectives, student, teacher if isinstance(teacher, Side) else None, rows.shared)
        self.evaluate: Evaluate = evaluation
        if rows.compiler is not None:
            temperature = teacher.temperature if isinstance(teacher, SparseRows) else None
            self.evaluate = rows.compiler.of(evaluation, self.block, temperature)
        self.exact = torch.promote_types(student.dtype, torch.float32)
        self.sums = torch.zeros(rows.examples, len(objectives), dtype=self.exact, device=self.device)
        self.agreement = self.sums.new_zeros(rows.examples)
        self.inputs: tuple[Tensor | None, ...] = (student.hidden, student.head.linear.weight, student.head.linear.bias)
        self.gradients: list[Tensor | None] = [torch.empty_like(student.hidden) if wanted[0] else None, None, None]

    def go(self) -> None:
        """Walk over all rows."""
        for part in slices(0, len(self.labels), self.chunk):
            raw = self.student.raw(part)
            theirs = self._theirs(part)
            for block in slices(0, len(raw), self.block):
                self._evaluate(part.start, block, raw, theirs)
            if any(self.wanted):
                self._carry_back(part, raw)
            del raw, theirs  # so that the next chunk takes their place
        for index, (one, made) in enumerate(zip(self.inputs, self.gradients, strict=True)):
            if self.wanted[index] and one is not None:
                self.gradients[index] = torch.zeros_like(one) if made is None else made.to(one.dtype)

    def _theirs(self, part: slice) -> TeacherRows | None:
        """Return the teacher's rows of a chunk: before what follows its linear map, where it is one model."""
        if self.teacher is not None:
            return self.teacher.raw(part).to(self.device, non_blocking=True)
        if isinstance(self.other, MixedSides):
            return self.other.rows(part, self.temperatures, self.block, self.device)
        return None if self.other is None else self.other[part]

    def _evaluate(self, start: int, block: slice, raw: Tensor, theirs: TeacherRows | None) -> None:
        """Evaluate the objectives on a block, and leave the gradient in the place of its logits."""
        place = slice(start + block.start, start + block.stop)
        teacher = None if theirs is None else theirs[block]
        values, agreement = self.evaluate(raw[block], teacher, self.labels[place], self.coefficients)
        example = self.example[place]
        self.sums.index_add_(0, example, values)
        self.agreement.index_add_(0, example, agreement.to(self.agreement))

    def _carry_back(self, part: slice, gradient: Tensor) -> None:
        """Carry a chunk's gradient through the linear map."""
        hidden, weight, _ = self.gradients
        if hidden is not None:
            hidden[part] = torch.mm(gradient, self.student.weight)
        if self.wanted[1]:
            rows = self.student.rows(part)
            if weight is not None and weight.dtype == gradient.dtype:
                weight.addmm_(gradient.t(), rows)
            else:
                self._add(1, torch.mm(gradient.t(), rows))
        if self.wanted[2]:
            self._add(2, gradient.sum(0, dtype=self.exact))

    def _add(self, index: int, part: Tensor) -> None:
        """Add a chunk's part of a gradient: in float32 or better, as each sum in half precision would round."""
        whole = self.gradients[index]
        if whole is not None:
            whole += part
        else:
            self.gradients[index] = part if len(self.labels) <= self.chunk else part.to(self.exact)
