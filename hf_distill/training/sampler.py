"""Data order that survives a resume and is the same on every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from hf_distill.data import column


def known_lengths(data: Any, name: str) -> list[int] | None:
    """Return the lengths that a data set has in a column, without a look at its examples; None where it has none.

    As Arrow holds them: `datasets` takes 3 to 9 seconds to hand out 400,000 of them one by one, where this takes up
    to 1.2.
    """
    if not isinstance(data, Dataset) or name not in data.column_names:
        return None
    lengths: list[int] = column(data, name).to_pylist()
    return lengths


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` whose order depends on seed and epoch alone.

    Transformers' own draws from torch's global generator: after a resume, or on two processes whose dropout has
    consumed different amounts of it, the order of an epoch is another one.

    Args:
        batch_size: Examples of one optimiser step over all processes, so that 8 x 1, 4 x 2 and 2 processes x 4
            see the same steps.
        lengths: Length of every example.
        seed: Of the run's data order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate's data loader calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
            self.lengths, self.batch_size, generator=generator
        )
        return iter(indices)


class SetEpoch(TrainerCallback):
    """Sets the epoch of the samplers at its beginning, however deep they are, and of a collator that wants to know it.

    A resumed epoch skips the batches that were seen, for which accelerate puts one more sampler around ours; on
    several processes its data loader's `set_epoch` then stops short of it, and the rest of the epoch would be that of
    epoch 0.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """See `TrainerCallback`."""
        collator: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch))
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))
