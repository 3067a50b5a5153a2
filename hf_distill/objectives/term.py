"""A term of the loss: an objective made ready for two models."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison, Objective


class Term(nn.Module):
    """An objective with its layers chosen and its projections built.

    Parameters of a term train with the student, and buffers are kept with them: in every checkpoint, never in the
    exported student. The models themselves must not become submodules of a term (keep what is needed of them in a
    tuple): they would train and be saved twice.

    Attributes:
        objective: What it computes, with schedules replaced by their present value.
        needs_data: Whether the trainer first shows it a few batches (`observe`, then `settle`).
    """

    needs_data: bool = False

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def watching(self) -> AbstractContextManager[None]:
        """Keep, while it is open, what the models compute on the way (forward hooks); open for one forward pass.

        What was kept belongs to the batch of that pass: `forward` follows, and drops it.
        """
        return nullcontext()

    def observe(self, comparison: Comparison) -> None:
        """Look at a batch before training."""

    def settle(self) -> str | None:
        """Decide on what was observed; return a text about it for the user."""
        return None

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of every example, `(batch,)`, differentiable to the student and to own parameters."""
        return self.objective.per_example(comparison)
