"""Computes losses over a large vocabulary in chunks of rows, without a `(tokens, classes)` tensor of either model.

With a large vocabulary, the largest tensors of a step are the logits of student and teacher, their softmaxes, and their
gradient. Here one chunk of rows after the other passes through both heads, all objectives are computed on it, and so is
the gradient, in the forward pass. The backward pass then needs only the gradients to the input and to the weights of
the head, whose size does not grow with rows times classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.heads import CHUNK_BYTES, ELSEWHERE, slices
from hf_distill.models.projection import Projector, Side
from hf_distill.models.target_rows import TeacherRows
from hf_distill.models.vocabulary_map import VocabularyMap
from hf_distill.objectives.base import RowObjective, temperatures_of
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.rows.mixture import MixedSides
from hf_distill.training.chunked.block import BlockLoss, Evaluate
from hf_distill.training.chunked.compiled import Compiler

# Bytes of the float32 logits of a block, on which the objectives are computed together. On a CPU they stay in its cache
# during a dozen operations; on a GPU the intermediate tensors (six times as large) stay small compared with a chunk.
BLOCK_BYTES = 2 * 2**20
BLOCK_ELSEWHERE = 64 * 2**20


class HeadRows(Rows):
    """The rows of a micro-batch before the heads: their logits are computed when needed, in chunks.

    Args:
        student: The student at its head.
        teacher: The teacher at its head, or several at theirs, or its stored rows; None without a teacher.
        labels: Label of every row, `(rows,)`, as in `Rows`.
        example: Index of the example of every row, `(rows,)`.
        examples: Number of examples.
        compiler: Compiles the loss of blocks; None to compute it eagerly.
        shared: Which classes both models have, as in `Rows`.
        taught: Which rows are compared with the teacher, as in `Rows`.
        written: Tokens that a model wrote, as in `Rows`.
        mapping: What both models' tokens stand for, as in `Rows`. The loss is then not compiled.
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
        taught: Tensor | None = None,
        written: Tensor | None = None,
        mapping: VocabularyMap | None = None,
    ) -> None:
        self.sides: tuple[Side, Side | MixedSides | SparseRows | None] = (student, teacher)
        self.labels, self.example, self.examples = labels, example, examples
        self.classes, self.shared, self.taught, self.written = None, shared, taught, written
        self.mapping, self._at = mapping, {}
        self.compiler = compiler
        self._agreement: Tensor | None = None

    # `Rows` have these two as fields. Here they are computed on first use.
    @cached_property
    def student(self) -> Tensor:  # type: ignore[override]
        """All logits of the student at once, `(rows, classes)`."""
        return self.sides[0].logits()

    @cached_property
    def teacher(self) -> TeacherRows | None:  # type: ignore[override]
        """All logits of the teacher at once, `(rows, classes)`, or what stands for them; None without a teacher."""
        teacher = self.sides[1]
        if isinstance(teacher, MixedSides):
            return teacher.rows(slice(None), (1.0,))
        return teacher.logits().detach() if isinstance(teacher, Side) else teacher

    def with_columns(self, student: Tensor, labels: Tensor, written: Tensor | None = None) -> Rows:
        """Return the rows with other logits of the student, and other labels and tokens."""
        return Rows(student, self.teacher, labels, self.example, self.examples, written=written)

    def first(self, count: int) -> Rows:
        """Return the first rows, at most `count`, without a graph; the logits of others are not computed."""
        part = slice(0, count)
        student, given = self.sides
        teacher: TeacherRows | None = None
        if isinstance(given, MixedSides):
            teacher = given.rows(slice(0, min(count, len(self.labels))), (1.0,))
        elif isinstance(given, Side):
            teacher = replace(given, hidden=given.hidden[part]).logits().detach()
        elif given is not None:
            teacher = given[part]
        logits = replace(student, hidden=student.hidden[part].detach()).logits().detach()
        rows = (logits, teacher, self.labels[part], self.example[part], self.examples)
        taught = None if self.taught is None else self.taught[part]
        return Rows(*rows, shared=self.shared, taught=taught, mapping=self.mapping)

    def agreement(self) -> Tensor:
        """Return the number of rows of each example where both models have the same top class, `(batch,)`."""
        if self._agreement is None:
            self.sums_in_chunks((), None)
        assert self._agreement is not None
        return self._agreement

    def extremes(self) -> Tensor:
        """Return the largest absolute input of the heads of student and teacher in each example, `(batch, 2)`.

        It stands for the largest logit of `Rows.extremes`, since the logits are never all computed at once.
        """
        student, teacher = self.sides
        ours = _largest(student.hidden)
        if isinstance(teacher, SparseRows):
            theirs = self._extreme(teacher.numbers)
        elif isinstance(teacher, MixedSides):
            theirs = torch.stack([_largest(side.hidden).to(ours) for side in teacher.sides]).amax(0)
        else:
            theirs = torch.zeros_like(ours) if teacher is None else _largest(teacher.hidden)
        return self.sum_by_example(torch.stack((ours, theirs.to(ours)), -1).to(self.example.device))

    def sums_in_chunks(self, objectives: Sequence[RowObjective], coefficients: Tensor | None) -> Tensor:
        """Return the sum of every objective for every example, `(batch, objectives)`, computed in chunks of rows.

        Args:
            objectives: The objectives on logits.
            coefficients: `(objectives,)`, or `(batch, objectives)` where examples have weights. The loss must be
                `sum_k coefficients_k * sums_k`: no other function of the sums has a gradient. None if no gradient is
                needed.
        """
        linear = self.sides[0].head.linear
        if not torch.is_grad_enabled():
            coefficients = None
        if coefficients is not None:
            exact = torch.promote_types(self.sides[0].dtype, torch.float32)
            coefficients = coefficients.to(linear.weight.device, exact)
        sums: Tensor
        with without_autocast(linear.weight.device.type):
            sums, agreement = ChunkedSums.apply(  # type: ignore[no-untyped-call]
                self.sides[0].hidden, linear.weight, linear.bias, self, tuple(objectives), coefficients
            )
        self._agreement = agreement.to(self.labels.device)
        return sums.to(self.labels.device)

    def pieces(self) -> tuple[int, int]:
        """Return the number of rows of a chunk and of a block; a chunk is one block or several whole ones."""
        student = self.sides[0]
        device = student.hidden.device.type
        width = student.width
        if self.mapping is not None:  # the teacher's own vocabulary may be many times as large
            width = max(width, len(self.mapping.teacher.group))
        block = max(1, (BLOCK_BYTES if device == "cpu" else BLOCK_ELSEWHERE) // (width * 4))
        if device != "cpu":
            block -= block % 8 if block > 8 else 0  # so that blocks begin at a multiple of 16 bytes, in any precision
        chunk = max(1, CHUNK_BYTES.get(device, ELSEWHERE) // (width * student.dtype.itemsize))
        if chunk <= block:
            return chunk, chunk
        chunk -= chunk % block
        # Chunks of nearly equal size, so that each can reuse the memory of the one before.
        number = -(-len(self.labels) // chunk)
        even = -(-len(self.labels) // max(1, number))
        return min(chunk, max(block, even + -even % block)), block


def _largest(hidden: Tensor) -> Tensor:
    """Return the largest absolute value of each row, `(rows,)`: NaN or inf if the row has such a value."""
    largest: Tensor = torch.linalg.vector_norm(hidden.detach(), torch.inf, dim=-1)
    return largest.float()


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Context manager: compute in the precision of the tensors, also if the caller uses autocast."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class ChunkedSums(torch.autograd.Function):
    """Sums of objectives over rows, whose gradient is computed in the forward pass."""

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
        """Return the sums, `(batch, objectives)`, and the number of agreeing rows of each example, `(batch,)`.

        `hidden`, `weight` and `bias` are the input and the parameters of the student's head; they are arguments so that
        autograd asks for their gradients.
        """
        taken = coefficients is not None and len(objectives) > 0
        wanted = [taken and needed for needed in ctx.needs_input_grad[:3]]
        pass_ = _ChunkedPass(rows, objectives, coefficients, wanted)
        pass_.run()
        ctx.gradients, ctx.coefficients = pass_.gradients, coefficients
        ctx.mark_non_differentiable(pass_.agreement)
        return pass_.sums, pass_.agreement

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the forward pass, scaled by the gradient of the loss."""
        if ctx.coefficients is None:
            raise RuntimeError("these sums were computed without coefficients, and have no gradient.")
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of these sums can be used once, also with retain_graph: it was computed in the "
                "forward pass, and an earlier backward pass has used it. Compute the loss again."
            )
        loss = _gradient_of_the_loss(sums, ctx.coefficients)
        # Not stored any longer: autograd then uses the tensor itself as the weights' `.grad`, and makes no copy.
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if one is None else one.mul_(loss.to(one.dtype)) for one in gradients), None, None, None)


def _gradient_of_the_loss(sums: Tensor, coefficients: Tensor) -> Tensor:
    """Return `g` such that the gradient of the sums is `g * coefficients`, those of an example or of every example."""
    if not sums.numel():
        return sums.new_zeros(())
    # The least-squares solution; choosing a coefficient that is not 0 would have to wait for the GPU.
    largest = coefficients.abs().max()
    scaled = torch.where(largest == 0, 0.0, coefficients / largest)
    given = sums if coefficients.dim() > 1 else sums[0]
    loss = torch.where(largest == 0, 0.0, (given * scaled).sum() / (scaled.square().sum() * largest))
    if sums.device.type == "cpu" and not torch.allclose(
        sums, (loss * coefficients).expand_as(sums), rtol=1e-3, equal_nan=True
    ):
        raise RuntimeError(
            "the gradient was computed for the weighted sum of the objectives, and another loss was made of them."
        )
    return loss


class _ChunkedPass:
    """One pass over all rows of a batch in chunks, with the sums and gradients so far."""

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
        self.taught = None if rows.taught is None else rows.taught.to(self.device)
        # Which objectives a row without a teacher is nothing to.
        self.of_teacher = torch.tensor([one.needs_teacher for one in objectives], dtype=torch.bool, device=self.device)
        reads = rows.written is not None and any(one.written for one in objectives)
        self.written = rows.written.to(self.device) if reads and rows.written is not None else None
        beside = teacher if isinstance(teacher, Side) else None
        evaluation = BlockLoss(objectives, student, beside, rows.shared, mapping=rows.mapping)
        self.evaluate: Evaluate = evaluation
        if rows.compiler is not None and rows.mapping is None:
            stored = teacher if isinstance(teacher, SparseRows) else None
            self.evaluate = rows.compiler.of(
                evaluation,
                self.block,
                None if stored is None else stored.temperature,
                ordered=stored is not None and stored.ordered,
                written=(self.written is not None, stored is not None and stored.written is not None),
            )
        self.exact = torch.promote_types(student.dtype, torch.float32)
        self.sums = torch.zeros(rows.examples, len(objectives), dtype=self.exact, device=self.device)
        self.agreement = self.sums.new_zeros(rows.examples)
        self.inputs: tuple[Tensor | None, ...] = (student.hidden, student.head.linear.weight, student.head.linear.bias)
        self.gradients: list[Tensor | None] = [torch.empty_like(student.hidden) if wanted[0] else None, None, None]

    def run(self) -> None:
        """Go over all rows."""
        for part in slices(0, len(self.labels), self.chunk):
            raw = self.student.raw(part)
            theirs = self._theirs(part)
            for block in slices(0, len(raw), self.block):
                self._evaluate(part.start, block, raw, theirs)
            if any(self.wanted):
                self._carry_back(part, raw)
            del raw, theirs  # so that the next chunk can use their memory
        for index, (one, made) in enumerate(zip(self.inputs, self.gradients, strict=True)):
            if self.wanted[index] and one is not None:
                self.gradients[index] = torch.zeros_like(one) if made is None else made.to(one.dtype)

    def _theirs(self, part: slice) -> TeacherRows | None:
        """Return the teacher's rows of a chunk; for a single model the output of its linear head, `(rows, columns)`."""
        if self.teacher is not None:
            return self.teacher.raw(part).to(self.device, non_blocking=True)
        if isinstance(self.other, MixedSides):
            return self.other.rows(part, self.temperatures, self.block, self.device)
        return None if self.other is None else self.other[part]

    def _evaluate(self, start: int, block: slice, raw: Tensor, theirs: TeacherRows | None) -> None:
        """Compute the objectives on a block, and overwrite its logits with the gradient to them."""
        place = slice(start + block.start, start + block.stop)
        teacher = None if theirs is None else theirs[block]
        example, coefficients = self.example[place], self.coefficients
        if coefficients is not None and coefficients.dim() > 1:
            coefficients = coefficients[example]
        written = None if self.written is None else self.written[place]
        if self.taught is not None:
            taught = self.taught[place]
            counts = taught.unsqueeze(-1) | ~self.of_teacher
            coefficients = None if coefficients is None else coefficients * counts
        values, agreement = self.evaluate(raw[block], teacher, self.labels[place], coefficients, written)
        if self.taught is not None:
            values, agreement = values.masked_fill(~counts, 0.0), agreement * taught
        self.sums.index_add_(0, example, values)
        self.agreement.index_add_(0, example, agreement.to(self.agreement))

    def _carry_back(self, part: slice, gradient: Tensor) -> None:
        """Add a chunk's gradients to the input, weight and bias of the linear head."""
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
        """Add a chunk's part of a gradient, in float32 or better: sums in half precision would be rounded each time."""
        whole = self.gradients[index]
        if whole is not None:
            whole += part
        else:
            self.gradients[index] = part if len(self.labels) <= self.chunk else part.to(self.exact)
