"""The order of the data: a function of seed and epoch, on every process and after every resume."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from datasets import Dataset
from torch.utils.data import BatchSampler

from hf_distill.training.batches import EpochLengthGroupedSampler, SetEpoch, known_lengths

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


def test_examples_of_one_length_are_in_random_order() -> None:
    """Where there is nothing to group, a default must not sort or repeat: texts packed to one length are shuffled."""
    sampler = EpochLengthGroupedSampler(8, [7] * 200, 3)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert all(sorted(one) == list(range(200)) for one in orders)
    assert orders[0] != orders[1]
    neighbours = sum(abs(one - other) == 1 for one, other in pairwise(orders[0]))
    assert neighbours < 20


def test_lengths_are_taken_from_their_column_alone() -> None:
    """A look at every example of a large data set, or a Python object for each of its tokens, takes minutes before the
    first step."""

    def read(_: Any) -> Any:
        raise AssertionError("an example was read")

    data = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6]], "length": [2, 1, 3], "other": [7, 8, 9]})
    data.set_transform(read)
    assert known_lengths(data, "length") == [2, 1, 3]
    assert known_lengths(data.select([2, 0]), "length") == [3, 2]
    assert known_lengths(data, "other") == [7, 8, 9]
    assert known_lengths(data, "none") is None
    assert known_lengths(data.with_format(None).to_iterable_dataset(), "length") is None
    assert known_lengths([{"input_ids": [1]}], "length") is None


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
