"""Terms of the loss on hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hf_distill.objectives.feature_terms import FeatureTerm, Positions

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison
    from hf_distill.objectives.features import StackObjective


class HiddenTerm(FeatureTerm):
    """Mean squared error or cosine distance of hidden states.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        loss: `mse` or `cosine`.
        normalize: Whether states get mean 0 and variance 1 first.
        projected: Whether there is a learned projection; where the widths differ, if left out.
    """

    def __init__(
        self,
        objective: StackObjective,
        student: nn.Module,
        teacher: nn.Module | None,
        loss: Literal["mse", "cosine"],
        *,
        normalize: bool = False,
        projected: bool | None = None,
    ) -> None:
        super().__init__(objective, student, teacher, projected=projected)
        self.loss = loss
        self.normalize = normalize

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See `FeatureTerm.compare`."""
        student = self.projected(place, student)
        if self.normalize:
            student, teacher = (F.layer_norm(states, states.shape[-1:]) for states in (student, teacher))
        if self.loss == "cosine":
            return 1 - F.cosine_similarity(student, teacher, dim=-1)
        return (student - teacher).square().mean(-1)


class PatientTerm(FeatureTerm):
    """Squared distance of the normalised states of one token of every sequence.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        last: Whether it is the last token that counts, not the first.
    """

    def __init__(
        self, objective: StackObjective, student: nn.Module, teacher: nn.Module | None, *, last: bool = False
    ) -> None:
        super().__init__(objective, student, teacher, projected=None)
        self.last = last

    def positions(self, comparison: Comparison) -> Positions:
        """Return the first (last) token that counts of every sequence."""
        mask = super().positions(comparison).mask
        order = mask.cumsum(1)  # padding may be on either side
        wanted = order[:, -1:] if self.last else 1
        return Positions(mask & (order == wanted), comparison)

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See `FeatureTerm.compare`."""
        student = self.projected(place, student)
        return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)
