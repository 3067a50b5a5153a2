"""The order of the data: a function of seed and epoch, on every process and after every resume."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler

from hf_distill.sampler import EpochLengthGroupedSampler, SetEpoch

LENGTHS = [random.Random(index).randint(1, 60) for index in range(200)]


def order(epoch: int, seed: int = 3, batch_size: int = 8) -> list[int]:
    sampler = EpochLengthGroupedSampler(batch_size, LENGTHS, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_follows_from_seed_and_epoch_alone() -> None:
    """Transformers' sampler draws from the generator that dropout uses, so two processes, or a run before and after a
    resume, group the same examples into different batches."""
    torch.manual_seed(1)
    first = order(epoch=1)
    torch.manual_seed(2)
    torch.rand(7)
    assert order(epoch=1) == first
    state = torch.get_rng_state()
    order(epoch=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_and_seeds_differ() -> None:
    """The same order in every epoch is a shuffle that happens once."""
    orders = [order(epoch=0), order(epoch=1), order(epoch=2), order(epoch=0, seed=99)]
    assert len({tuple(one) for one in orders}) == len(orders)
    assert all(sorted(one) == list(range(len(LENGTHS))) for one in orders)


def test_batches_are_of_like_lengths() -> None:
    """Grouping that groups nothing costs the padding it was to save."""

    def waste(indices: list[int]) -> int:
        batches = [[LENGTHS[index] for index in indices[start : start + 8]] for start in range(0, len(indices), 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert waste(order(epoch=0)) < 0.4 * waste(torch.randperm(len(LENGTHS)).tolist())


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_epoch_reaches_the_sampler(processes: int, skip: int) -> None:
    """accelerate wraps a sampler once for several processes and once more to skip what a resumed epoch has seen; one
    that is not told its epoch repeats the order of the first."""
    sampler = EpochLengthGroupedSampler(8, LENGTHS, seed=3)
    wrapped: Any = BatchSampler(sampler, batch_size=8, drop_last=False)
    if processes > 1:
        wrapped = BatchSamplerShard(wrapped, processes, 1)
    if skip:
        wrapped = SkipBatchSampler(wrapped, skip)
    state: Any = SimpleNamespace(epoch=4.75)
    loader = SimpleNamespace(batch_sampler=wrapped)
    SetEpoch().on_epoch_begin(None, state, None, train_dataloader=loader)  # type: ignore[arg-type]
    assert sampler.epoch == 4


def test_no_sampler_is_no_error() -> None:
    """A stream has no sampler, and its batches no order to set."""
    state: Any = SimpleNamespace(epoch=1.0)
    for loader in (None, SimpleNamespace(), SimpleNamespace(batch_sampler=None)):
        SetEpoch().on_epoch_begin(None, state, None, train_dataloader=loader)  # type: ignore[arg-type]
