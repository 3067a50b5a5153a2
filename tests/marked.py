"""An objective that returns something else than a number where it is told to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from invariants.cases import make_rows
from torch import Tensor

from hf_distill.component import component
from hf_distill.objectives import Comparison, Objective

# A token that only the example which is to go wrong has.
MARK = 1
NAN = float("nan")


@component
class Marked(Objective):
    """The squares of the logits; of an example with the mark, something else."""

    name: ClassVar[str] = "marked"
    unit: ClassVar[Any] = "example"
    needs_teacher: ClassVar[bool] = False
    how: str = "nan"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        losses = comparison.rows.student.square().sum(-1)
        marked = (comparison.inputs["input_ids"] == MARK).any(-1)
        if self.how == "gradient":  # 0 in value, and 0 / 0 in its derivative
            return losses + torch.where(marked, 0 * losses, 0.0).sqrt()
        return losses + torch.where(marked, {"nan": NAN, "inf": float("inf")}[self.how], 0.0)


def marked_rows(*places: int, count: int = 24) -> list[dict[str, Any]]:
    rows = make_rows("classification", count)
    for place in places:
        rows[place]["input_ids"][0] = MARK
    return rows
