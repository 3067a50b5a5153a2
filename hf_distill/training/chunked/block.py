"""Computes, for a block of rows: the values of all objectives, the agreement, and the gradient to the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_distill.models.target_rows import TeacherRows
from hf_distill.rows.base import Rows

if TYPE_CHECKING:
    from hf_distill.models.projection import Side
    from hf_distill.models.vocabulary_map import VocabularyMap
    from hf_distill.objectives.base import RowObjective

# `(raw, teacher, labels, coefficients, written) -> (values, agreement)`, as `BlockLoss.__call__`.
Evaluate = Callable[[Tensor, TeacherRows | None, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class RowByRow(Rows):
    """Rows that are each an example of its own, so that the sum by example is the value of the row."""

    def sum_by_example(self, values: Tensor) -> Tensor:
        """Return the values, `(rows,)`."""
        return values


@dataclass(frozen=True)
class BlockLoss:
    """Computes the objectives on a block of rows, and their gradient to the student's logits.

    Attributes:
        objectives: The objectives.
        temperatures: Tensors in place of the objectives' own temperatures, by the index of the objective.
        student: The student at its head.
        teacher: The teacher at its head; None without a teacher, or if its rows are stored.
        shared: Which classes both models have, as `Rows.shared`.
        mapping: What both models' tokens stand for, as `Rows.mapping`.
    """

    objectives: tuple[RowObjective, ...]
    student: Side
    teacher: Side | None
    shared: Tensor | None = None
    temperatures: Mapping[int, Tensor] = field(default_factory=dict)
    mapping: VocabularyMap | None = None

    def __call__(
        self,
        raw: Tensor,
        teacher: TeacherRows | None,
        labels: Tensor,
        coefficients: Tensor | None,
        written: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the objectives on a block, and overwrite the student's logits with the gradient to them.

        Apart from that, it is a pure function of tensors that does not branch on their values, so that it can be
        compiled.

        Args:
            raw: Output of the student's linear head, `(rows, columns)`.
            teacher: Output of the teacher's linear head, `(rows, its columns)`; or what stands for its logits (stored
                rows, the mean of several teachers); or None.
            labels: Label of every row, `(rows,)`.
            coefficients: The gradient is that of `sum_k coefficients_k * values_k`, `(objectives,)` or, for each row,
                `(rows, objectives)`; if None, no gradient is computed, and `raw` is unchanged.
            written: Token of every row that a model wrote, `(rows,)`, as in `Rows`; None if no objective reads it.

        Returns:
            The value of every objective for every row, `(rows, objectives)`, float32 or better; and whether both models
            agree on the row, `(rows,)`.
        """
        exact = torch.promote_types(raw.dtype, torch.float32)
        leaf = raw.detach().requires_grad_(coefficients is not None)
        with torch.set_grad_enabled(coefficients is not None):
            rows = self._rows(leaf, teacher, labels, written)
            columns = [self._sums(index, rows).to(exact) for index in range(len(self.objectives))]
            values = torch.stack(columns, -1) if columns else leaf.new_zeros(len(raw), 0, dtype=exact)
        agreement = rows.agreement()  # before the logits are overwritten
        if coefficients is not None:
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values, leaf, coefficients.to(exact).expand_as(values))
                raw.copy_(gradient)
            else:  # an objective may return a constant if none of these rows counts for it
                raw.zero_()
        return values.detach(), agreement.detach()

    def _sums(self, index: int, rows: Rows) -> Tensor:
        given = {"temperature": self.temperatures[index]} if index in self.temperatures else {}
        return self.objectives[index].sums(rows, **given)

    def _rows(self, leaf: Tensor, teacher: TeacherRows | None, labels: Tensor, written: Tensor | None) -> Rows:
        if self.teacher is not None and isinstance(teacher, Tensor):
            teacher = self.teacher.finish(teacher).detach()
        example = torch.arange(len(leaf), device=leaf.device)
        return RowByRow(
            *(self.student.finish(leaf), teacher, labels, example, len(leaf)),
            shared=self.shared,
            written=written,
            mapping=self.mapping,
        )
