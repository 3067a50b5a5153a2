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
    def columns(
        sums: Tensor,
        agreement: Tensor,
        counts: Mapping[Unit, Tensor],
        extremes: Tensor,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Return the values of a batch as `add` takes them, `(batch, terms + 1 + units + terms + 1 + 2)`.

        Args:
            sums: Sum of every term for every example, `(batch, terms)`.
            agreement: Number of rows of each example where both models agree, `(batch,)`.
            counts: Number of each unit in each example, `(batch,)` each.
            extremes: Largest logit of student and teacher, `(batch, 2)`, as `Rows.extremes` returns them.
            weights: Weight of every example in every term, `(batch, terms)`; None for 1.
            groups: Number of every example's group, `(batch,)`, -1 for none; None if no term asks.
        """
        others = torch.stack([agreement, *(counts[unit].to(sums) for unit in UNITS)], -1)
        weights = torch.ones_like(sums) if weights is None else weights
        groups = torch.full_like(agreement, -1) if groups is None else groups
        # In the type of the weights: float32 has no numbers like 1e-50.
        return torch.cat([one.to(weights) for one in (sums, others, weights, groups.unsqueeze(-1), extremes)], -1)

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
        """Return loss, objectives and agreement over all examples; those with a count of 0 are left out.

        Loss and objectives are weighted as in training; with `worst_group`, it is the largest mean of a group.
        """
        if not self._columns:
            return {}
        rows, width = self._rows(), len(self.terms)
        units, groups = rows[:, width + 1 :][:, : len(UNITS)], rows[:, -3]
        weights = rows[:, width + 1 + len(UNITS) :][:, :width]
        sums = rows[:, :width] * weights
        counts = units[:, self.terms.units] * weights
        means: dict[str, float] = {}
        loss = 0.0
        whole = zip(self.terms.names, self.terms.objectives, sums.sum(0).tolist(), counts.sum(0).tolist(), strict=True)
        for index, (name, objective, total, count) in enumerate(whole):
            if count:
                worst = objective.group_weights == "worst_group"
                mean = _largest_mean(sums[:, index], counts[:, index], groups) if worst else total / count
                means[f"objective/{name}"] = mean
                loss += number(objective.at_end().weight) * mean
        figures = {"loss": loss, **means} if means else {}
        agreed, of = rows[:, [width, width + 1 + UNITS.index("row")]].sum(0).tolist()
        if agreement and of:
            figures["agreement"] = agreed / of
        return figures


def _largest_mean(sums: Tensor, counts: Tensor, groups: Tensor) -> float:
    """Return the largest of the means of the groups, of all examples if they have none.

    Args:
        sums: `(examples,)`.
        counts: What the sums are divided by, `(examples,)`; one is above 0.
        groups: Number of each example's group, `(examples,)`, -1 for none.
    """
    places = groups.long() + 1
    both = torch.zeros(int(places.max()) + 1, 2, dtype=sums.dtype).index_add(0, places, torch.stack((sums, counts), -1))
    there = both[both[:, 1] > 0]
    return float((there[:, 0] / there[:, 1]).max())
