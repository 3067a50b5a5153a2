"""The figures of an evaluation, computed from sums over its examples: they do not depend on the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_distill.objectives.schedule import number
from hf_distill.rows.base import UNITS
from hf_distill.training.finite import fault_of

if TYPE_CHECKING:
    from hf_distill.rows.base import Unit
    from hf_distill.training.finite import NonFinite
    from hf_distill.training.terms import Terms


class EvalSums:
    """Collects the sums of all examples of one evaluation, and computes loss, objectives and agreement from them.

    Args:
        terms: The loss terms of the training.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._columns: list[Tensor] = []

    @staticmethod
    def columns(sums: Tensor, agreement: Tensor, counts: Mapping[Unit, Tensor], extremes: Tensor) -> Tensor:
        """Return the values of a batch as `add` takes them, `(batch, terms + 1 + units + 2)`.

        Args:
            sums: Sum of every term for every example, `(batch, terms)`.
            agreement: Number of rows of each example where both models agree, `(batch,)`.
            counts: Number of each unit in each example, `(batch,)` each.
            extremes: Largest logit of student and teacher, `(batch, 2)`, as `Rows.extremes` returns them.
        """
        others = torch.stack([agreement, *(counts[unit].to(sums) for unit in UNITS)], -1)
        return torch.cat((sums, others.to(sums), extremes.to(sums)), -1)

    def add(self, columns: Tensor) -> None:
        """Add the examples of a batch, gathered from all processes."""
        self._columns.append(columns)

    def examples(self, name: str) -> Tensor:
        """Return, for every example in order, the sum of a term and the number of its unit, float64 `(examples, 2)`."""
        index = self.terms.names.index(name)
        unit = len(self.terms) + 1 + UNITS.index(self.terms.objectives[index].unit)
        return self._rows()[:, [index, unit]]

    def _rows(self) -> Tensor:
        if len(self._columns) > 1 or self._columns[0].dtype != torch.float64 or self._columns[0].device.type != "cpu":
            self._columns = [torch.cat(self._columns).cpu().double()]
        return self._columns[0]

    def fault(self, step: int) -> NonFinite | None:
        """Return the fault of an evaluation after a step if a value is not finite, else None."""
        if not self._columns:
            return None
        rows, terms = self._rows(), len(self.terms)
        found = fault_of(step, torch.cat((rows[:, :terms], rows[:, -2:]), -1), self.terms.names)
        return None if found is None else replace(found, evaluation=True)

    def figures(self, *, agreement: bool) -> dict[str, float]:
        """Return loss, objectives and agreement over all examples; those with a count of 0 are left out."""
        if not self._columns:
            return {}
        sums = self._rows().sum(0).tolist()
        width = len(self.terms)
        count = dict(zip(UNITS, sums[width + 1 : -2], strict=True))
        means: dict[str, float] = {}
        loss = 0.0
        for name, objective, value in zip(self.terms.names, self.terms.objectives, sums[:width], strict=True):
            if count[objective.unit]:
                means[f"objective/{name}"] = value / count[objective.unit]
                loss += number(objective.at_end().weight) * means[f"objective/{name}"]
        figures = {"loss": loss, **means} if means else {}
        if agreement and count["row"]:
            figures["agreement"] = sums[width] / count["row"]
        return figures
