"""What is compared. This table is the list of objectives."""

from __future__ import annotations

from hf_distill.objectives.base import Comparison, Objective, RowObjective
from hf_distill.objectives.logits import KLDivergence, Labels, LogitsMSE

OBJECTIVES: dict[str, type[Objective]] = {
    "kl": KLDivergence,
    "labels": Labels,
    "logits_mse": LogitsMSE,
}

__all__ = ["OBJECTIVES", "Comparison", "KLDivergence", "Labels", "LogitsMSE", "Objective", "RowObjective"]
