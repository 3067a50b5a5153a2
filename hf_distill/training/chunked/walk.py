"""Going over rows chunk by chunk: both heads, all objectives, and the gradient, taken on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.models.projection import Projector, Side
from hf_distill.rows.base import SparseRows
from hf_distill.training.chunked.block import Evaluate, Evaluation

if TYPE_CHECKING:
    from hf_distill.objectives.base import RowObjective
    from hf_distill.training.chunked.rows import HeadRows


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield the slices that cover `start` to `stop`, of `size` each but for the last."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


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
        self.kept = teacher if isinstance(teacher, SparseRows) else None
        self.device = self.student.weight.device
        self.labels, self.example = rows.labels.to(self.device), rows.example.to(self.device)
        evaluation = Evaluation(objectives, student, teacher if isinstance(teacher, Side) else None, rows.shared)
        self.evaluate: Evaluate = evaluation
        if rows.compiler is not None:
            temperature = None if self.kept is None else self.kept.temperature
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
            theirs = None if self.teacher is None else self.teacher.raw(part).to(self.device, non_blocking=True)
            for block in slices(0, len(raw), self.block):
                self._evaluate(part.start, block, raw, theirs)
            if any(self.wanted):
                self._carry_back(part, raw)
            del raw, theirs  # so that the next chunk takes their place
        for index, (one, made) in enumerate(zip(self.inputs, self.gradients, strict=True)):
            if self.wanted[index] and one is not None:
                self.gradients[index] = torch.zeros_like(one) if made is None else made.to(one.dtype)

    def _evaluate(self, start: int, block: slice, raw: Tensor, theirs: Tensor | None) -> None:
        """Evaluate the objectives on a block, and leave the gradient in the place of its logits."""
        place = slice(start + block.start, start + block.stop)
        teacher = self._kept(place) if theirs is None else theirs[block]
        values, agreement = self.evaluate(raw[block], teacher, self.labels[place], self.coefficients)
        example = self.example[place]
        self.sums.index_add_(0, example, values)
        self.agreement.index_add_(0, example, agreement.to(self.agreement))

    def _kept(self, place: slice) -> SparseRows | None:
        return None if self.kept is None else self.kept[place]

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
