"""The base class of collators that wrap another collator and add to its batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import Self  # in typing from Python 3.11 on

Collate = Callable[[list[Any]], Mapping[str, Any]]
# How often a batch is made to see whether it is always the same: two draws of masks for one short text may be equal by
# chance, eight are not.
DRAWS = 8


def drawn(collate: Collate, examples: list[dict[str, Any]]) -> str | None:
    """Return the name of an entry of the batch that differs when the same examples are collated again; None for none.

    Args:
        collate: Makes batches.
        examples: A few.
    """
    import torch

    def batch() -> dict[str, Any]:
        made = dict(collate([dict(one) for one in examples]))
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}

    first = batch()
    for again in (batch() for _ in range(DRAWS - 1)):
        for name, value in first.items():
            if name not in again or not torch.equal(value.nan_to_num(), again[name].nan_to_num()):
                return name
    return None


class AroundCollator(ABC):
    """A collator that wraps another one and adds to its batches; it always runs last."""

    @abstractmethod
    def around(self, change: Callable[[Collate], Collate]) -> Self:
        """Return a copy of this collator that wraps another inner collator.

        Args:
            change: Called with the present inner collator; returns the one that replaces it.
        """
