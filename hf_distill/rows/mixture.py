"""The rows of several teachers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.target_rows import MixtureRows
from hf_distill.rows.base import RowLayout


def mixture(
    layout: RowLayout,
    outputs: Iterable[Mapping[str, Any]],
    weights: Sequence[float],
    inputs: Mapping[str, Tensor],
    temperatures: Iterable[float],
) -> Tensor | MixtureRows:
    """Return the rows of a batch: the mean of distributions, of regression the mean of values.

    Args:
        layout: Which logits count.
        outputs: Of every teacher.
        weights: Of every teacher; they sum to 1.
        inputs: The batch.
        temperatures: At which objectives compare.
    """

    def members() -> Iterator[Tensor]:
        for one in outputs:
            yield layout.teacher_rows(layout.logits(one).detach(), inputs)

    return mean_rows(layout, members(), weights, temperatures)


def mean_rows(
    layout: RowLayout, members: Iterable[Tensor], weights: Sequence[float], temperatures: Iterable[float]
) -> Tensor | MixtureRows:
    """Return the mean of rows, each `(rows, classes)`: of distributions, of regression the mean of values.

    Args:
        layout: Which logits count.
        members: Of every teacher, the rows of the same batch.
        weights: Of every teacher; they sum to 1.
        temperatures: At which objectives compare.
    """
    if layout.has_classes:
        return MixtureRows.of(members, weights, temperatures)
    return torch.stack([weight * rows.detach() for weight, rows in zip(weights, members, strict=True)]).sum(0)
