"""Length grouping that survives a resume and is the same on every process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


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
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
