"""Objectives on logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.objectives.base import RowObjective

if TYPE_CHECKING:
    from torch import Tensor

    from hf_distill.rows import Unit


@component
class KLDivergence(RowObjective):
    """`T^2 * KL(teacher || student)`, both softened by the temperature. See `functional.kl_divergence`.

    Attributes:
        weight: Factor of the term.
        temperature: `T > 0`. Higher values show the student more of how the teacher ranks the wrong classes.
    """

    name: ClassVar[str] = "kl"

    temperature: Annotated[float, Field(gt=0.0)] = 1.0

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """See `functional.kl_divergence`."""
        from hf_distill.objectives.functional import kl_divergence

        assert teacher is not None
        return kl_divergence(student, teacher, self.temperature)


@component
class LogitsMSE(RowObjective):
    """Mean squared error of the logits. See `functional.mean_squared_error`.

    The teacher's term for regression, where a softmax over the one predicted value says nothing.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "logits_mse"
    takes_values: ClassVar[bool] = True

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """See `functional.mean_squared_error`."""
        from hf_distill.objectives.functional import mean_squared_error

        assert teacher is not None
        return mean_squared_error(student, teacher)


@component
class Labels(RowObjective):
    """The ordinary supervised loss, from logits at temperature 1. See `functional.label_loss`.

    Computed here, never taken from `outputs.loss`: several Transformers heads ignore `num_items_in_batch`, so
    their loss changes with gradient accumulation and the number of processes.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "labels"
    unit: ClassVar[Unit] = "label"
    needs_teacher: ClassVar[bool] = False
    takes_values: ClassVar[bool] = True

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """See `functional.label_loss`."""
        from hf_distill.objectives.functional import label_loss

        return label_loss(student, labels)
