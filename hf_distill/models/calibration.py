"""Rows of the train split on which a model is measured before it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.models.inspection import LABELS, taken_by

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class CalibrationRows:
    """Rows of the train split, in the student's tokens, on which a model is measured before it is pruned.

    Attributes:
        train: The tokenised train split.
        collator: Pads rows to a batch.
        batch_size: Rows of a batch.
        labelled: Whether the train split has labels; single rows may lack one, as where `labels` is -100.
    """

    train: Dataset
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    batch_size: int
    labelled: bool

    def batches(self, model: PreTrainedModel, count: int, *, batch_size: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield some rows in batches: what the model's `forward` takes, and labels, on its device.

        They are the same rows each time, whatever the seed of the run, shortest first. Batches that a collator draws
        at random (masked tokens) are the same too, and torch's random generator stays as it was.

        Args:
            model: The model that reads them.
            count: Number of rows; all, if there are fewer.
            batch_size: Rows of a batch. Default: as in evaluations.
        """
        import torch

        size, takes = batch_size or self.batch_size, taken_by(model) | LABELS
        rows = self._rows(count)
        for number, start in enumerate(range(0, len(rows), size)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                batch = self.collator([_inputs(self.train[int(row)]) for row in rows[start : start + size]])
            yield {key: value.to(model.device) for key, value in batch.items() if key in takes}

    def _rows(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        drawn = np.random.default_rng(0).permutation(len(self.train))[:count]
        if "length" not in self.train.column_names:
            return np.sort(drawn)
        lengths = np.asarray(self.train.select(drawn)["length"])
        return drawn[np.argsort(lengths, kind="stable")]


def _inputs(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its lengths, which no collator pads."""
    return {key: value for key, value in row.items() if not key.endswith("length")}
