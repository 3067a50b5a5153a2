"""What objectives have in common that compare two distributions over classes, softened by a temperature."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from hf_distill.component import component
from hf_distill.objectives.base import RowObjective
from hf_distill.objectives.functional import log_distributions
from hf_distill.objectives.schedule import Temperature, number
from hf_distill.rows.base import SparseRows


@component
class Softened(RowObjective):
    """A divergence between `p = softmax(teacher / T)` and `q = softmax(student / T)`, times `T^2`.

    A subclass says which one, in `between`. The gradients of soft targets shrink as `1 / T^2` (Hinton et al. 2015,
    arXiv 1503.02531, section 2); the factor keeps their size, in the value and in the gradient.

    Attributes:
        temperature: Temperature `T` of both models' softmax. A higher one shows the student more of how the teacher
            ranks the unlikely classes.
        temperature_squared: Multiply by `T^2`, which keeps the size of the gradients. Without it a higher temperature
            also lowers the weight of this loss.
    """

    takes_sparse: ClassVar[bool] = True

    temperature: Temperature = 1.0
    temperature_squared: bool = True

    @abstractmethod
    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of every row, `(rows,)`.

        Args:
            log_p: The teacher's log-probabilities `(rows, classes)`, without gradient.
            log_q: The student's. Of a sparse teacher the last column of both is the mass of all classes not kept.
            labels: Class indices `(rows,)`, -100 for a row without label.
        """

    @property
    def takes_impossible(self) -> bool:
        """Whether impossible classes change nothing: they do not, since each class counts by its probability."""
        return True

    def rows(
        self,
        student: Tensor,
        teacher: Tensor | SparseRows | None,
        labels: Tensor,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        """Return `T^2` times `between` of every row, `(rows,)`; see `functional.log_distributions` for sparse teachers.

        Args:
            student: See `RowObjective.rows`.
            teacher: See `RowObjective.rows`.
            labels: See `RowObjective.rows`.
            temperature: In place of the objective's own: a tensor is an input of compiled code, and not part of it.
        """
        known = teacher if teacher is not None and self.takes_sparse else self.dense(teacher)
        divisor: Any = number(self.temperature) if temperature is None else temperature
        losses = None if isinstance(known, SparseRows) else self.from_logits(student, known, divisor)
        if losses is None:
            losses = self.between(*log_distributions(student, known, divisor), labels)
        return losses * divisor**2 if self.temperature_squared else losses

    def from_logits(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor | None:
        """Return what `between` would, computed faster (see `closed_form`); None where there is no such way.

        Args:
            student: Logits `(rows, classes)`, float32 or better.
            teacher: The logits of the teacher, without gradient.
            temperature: What both are divided by.
        """
        return None
