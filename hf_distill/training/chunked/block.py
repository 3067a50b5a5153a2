"""What is computed of a block of rows: the values of all objectives, agreement, and the gradient to the logits."""

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
    from hf_distill.objectives.base import RowObjective

# `(raw, teacher, labels, coefficients) -> (values, agreement)`; see `Evaluation.__call__`.
Evaluate = Callable[[Tensor, TeacherRows | None, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class RowByRow(Rows):
    """Rows of which each is an example of its own: the sum by example is the value of the row."""

    def sum_by_example(self, values: Tensor) -> Tensor:
        """Return the values, `(rows,)`."""
        return values


@dataclass(frozen=True)
class Evaluation:
    """What is the same for all blocks of a walk.

    Attributes:
        objectives: What is evaluated.
        temperatures: Tensors in place of their own temperatures, by the place of the objective.
        student: What comes after its linear map.
        teacher: Likewise; None where there is none, or only what was kept of it.
        shared: See `Rows`.
    """

    objectives: tuple[RowObjective, ...]
    student: Side
    teacher: Side | None
    shared: Tensor | None = None
    temperatures: Mapping[int, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        raw: Tensor,
        teacher: TeacherRows | None,
        labels: Tensor,
        coefficients: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the objectives on a block, and leave the gradient in the place of the student's logits.

        A pure function of tensors but for that, without a look at their numbers, so that it can be compiled.

        Args:
            raw: What the student's linear map gave, `(rows, columns)`.
            teacher: Likewise of the teacher's, `(rows, its columns)`; or what stands for its logits; or None.
            labels: See `Rows`.
            coefficients: The gradient is that of `sum_k coefficients_k * values_k`, `(objectives,)`; None where none is
                wanted, and `raw` stays.

        Returns:
            The value of every objective for every row, `(rows, objectives)`, float32 or better; and whether both models
            agree on the row, `(rows,)`.
        """
        exact = torch.promote_types(raw.dtype, torch.float32)
        leaf = raw.detach().requires_grad_(coefficients is not None)
        with torch.set_grad_enabled(coefficients is not None):
            rows = self._rows(leaf, teacher, labels)
            columns = [self._sums(index, rows).to(exact) for index in range(len(self.objectives))]
            values = torch.stack(columns, -1) if columns else leaf.new_zeros(len(raw), 0, dtype=exact)
        agreement = rows.agreement()  # before the logits are overwritten
        if coefficients is not None:
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values, leaf, coefficients.to(exact).expand_as(values))
                raw.copy_(gradient)
            else:  # an objective may give a constant where none of these rows counts for it
                raw.zero_()
        return values.detach(), agreement.detach()

    def _sums(self, index: int, rows: Rows) -> Tensor:
        given = {"temperature": self.temperatures[index]} if index in self.temperatures else {}
        return self.objectives[index].sums(rows, **given)

    def _rows(self, leaf: Tensor, teacher: TeacherRows | None, labels: Tensor) -> Rows:
        if self.teacher is not None and isinstance(teacher, Tensor):
            teacher = self.teacher.finish(teacher).detach()
        example = torch.arange(len(leaf), device=leaf.device)
        return RowByRow(self.student.finish(leaf), teacher, labels, example, len(leaf), shared=self.shared)
