"""What an objective is: a loss sum per example, and the unit whose count it is divided by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hf_distill.component import component

if TYPE_CHECKING:
    from torch import Tensor

    from hf_distill.rows import Rows, SparseRows, Unit


@dataclass(frozen=True)
class Comparison:
    """One micro-batch as both models saw it.

    Attributes:
        rows: The logit rows that count, aligned between the models, with their labels.
        student: Output of the student's forward pass (`hidden_states`, ... where an objective asked for them).
        teacher: Output of the teacher's; None where the run has no teacher.
        inputs: The collated batch.
    """

    rows: Rows
    student: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    inputs: Mapping[str, Tensor]


@component
class Objective(ABC):
    """One term of the loss.

    The trainer minimises `sum_k weight_k * S_k / N_k`: `S_k` is the sum of the objective's `per_example` values
    and `N_k` the number of its `unit`, both over the whole optimiser step (every micro-batch of the
    accumulation window, every process). A subclass never averages.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str]
    unit: ClassVar[Unit] = "row"
    needs_teacher: ClassVar[bool] = True
    # Model outputs wanted besides the logits: "hidden_states", "attentions".
    outputs: ClassVar[frozenset[str]] = frozenset()

    weight: Annotated[float, Field(ge=0.0)] = 1.0

    @abstractmethod
    def per_example(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of every example of the batch, `(batch,)`, differentiable to the student only."""


@component
class RowObjective(Objective):
    """An objective on logits: one value per row, whatever the task calls a row.

    Attributes:
        weight: Factor of the term.
    """

    # Whether the objective is defined for a regression head, whose "logits" are the predicted values.
    takes_values: ClassVar[bool] = False
    # Whether a teacher's likeliest classes and the mass of the others (`rows.SparseRows`) are enough; if not, why.
    takes_sparse: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = "it needs the teacher's logits of all classes"

    @abstractmethod
    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss of every row.

        Args:
            student: Logits `(rows, classes)`, float32 (float64 where the model computes in it).
            teacher: Logits of the same shape, detached; with `takes_sparse` also `SparseRows`; None where the run has
                no teacher.
            labels: Class indices `(rows,)`, -100 for a row without label; or float targets with NaN.

        Returns:
            `(rows,)`; 0 for a row that does not count for this objective.
        """

    def per_example(self, comparison: Comparison) -> Tensor:
        """Sum `rows` within each example."""
        rows = comparison.rows
        teacher: Any = rows.teacher  # a class that takes no sparse teacher may leave it out of its signature
        if self.needs_teacher and not self.takes_sparse:
            teacher = self.dense(teacher)
        return rows.sum_by_example(self.rows(rows.student, teacher, rows.labels))

    def dense(self, teacher: Tensor | SparseRows | None) -> Tensor:
        """Return the teacher's logits.

        Raises:
            ValueError: There is no teacher, or only a part of it.
        """
        from hf_distill.rows import SparseRows

        if teacher is None:
            raise ValueError(f"'{self.name}' needs a teacher.")
        if isinstance(teacher, SparseRows):
            raise ValueError(f"'{self.name}' takes no sparse teacher: {self.needs_all_classes}.")
        return teacher
