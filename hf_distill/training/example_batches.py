"""Adds to a batch what its examples count in the loss: the weight of each, and the number of its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_distill.data.example_columns import EXAMPLE_COLUMNS, GROUP, WEIGHT, group_name


@dataclass(frozen=True)
class AddExamples:
    """Adds the weight of each example to a batch, and the number of its group.

    Attributes:
        collate: Makes the batch of everything else.
        numbers: Number of each group that has a weight.
        classes: Names of the groups, where a row holds the number of its group (`ClassLabel`).
        dtype: Of the weights; float64, unless the device has none.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]
    numbers: Mapping[str, int]
    classes: Sequence[str] = ()
    dtype: torch.dtype = torch.float64

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Return the batch, with float64 `example_weight` and int64 `example_group`, `(batch,)`, where there are any.

        A group that is not among `numbers` is -1.
        """
        first = examples[0] if examples and isinstance(examples[0], Mapping) else {}
        if not any(name in first for name in EXAMPLE_COLUMNS):
            return dict(self.collate(examples))
        plain = [{key: value for key, value in one.items() if key not in EXAMPLE_COLUMNS} for one in examples]
        batch = dict(self.collate(plain))
        if WEIGHT in first:
            batch[WEIGHT] = torch.tensor([float(one[WEIGHT]) for one in examples], dtype=self.dtype)
        if GROUP in first and self.numbers:
            names = [group_name(one[GROUP], self.classes) for one in examples]
            batch[GROUP] = torch.tensor([self.numbers.get(name, -1) for name in names])
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Tell the other collator the epoch, if it wants to know."""
        if (told := getattr(self.collate, "set_epoch", None)) is not None:
            told(epoch)


def classes_of(train: Any) -> tuple[str, ...]:
    """Return the names of the groups, where a split holds their numbers (`ClassLabel`); empty for other splits."""
    feature = (getattr(train, "features", None) or {}).get(GROUP)
    return tuple(getattr(feature, "names", None) or ())
