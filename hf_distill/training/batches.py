"""The batches of a training: which columns they have, in which order they come, and how many make a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import has_length

from hf_distill import parallel
from hf_distill.data import column
from hf_distill.data.two_tokenizers import PREFIX
from hf_distill.rows.base import RowLayout
from hf_distill.rows.padding import Padding
from hf_distill.training.padding_free.choice import PaddingFree
from hf_distill.training.text_columns import TextColumns


class BatchingTrainer(Trainer):
    """`Trainer` whose batches hold what both models read, in an order that no split of them changes.

    Attributes:
        layout: What it reads of a batch is kept, set by who inherits.
        padding_free: Told of every batch when it is made.
        padding: Knows on which side both models are padded.
        takes: What `forward` of the student and of the teacher takes.
        texts: Makes tokens of data sets of text; None where there are none.
    """

    layout: RowLayout
    padding_free: PaddingFree
    padding: Padding
    takes: tuple[frozenset[str], frozenset[str]]
    texts: TextColumns | None = None

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher or the layout takes.

        They are `token_type_ids` for a DistilBERT student of a BERT, or all tokens of a teacher with its own tokenizer.
        """
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            taken: Any = self._signature_columns
            theirs = {*self.takes[1], *(f"{PREFIX}{name}" for name in self.takes[1])}
            # The model itself may be a cached teacher, whose answers are judged.
            wanted = theirs.union(self.layout.columns, self.takes[0])
            self._signature_columns = taken + sorted(wanted.difference(taken))

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Have each batch carry what `padding_free` needs: read later, the host would wait for the device."""
        if self.texts is not None:
            dataset = self.texts(dataset)
        plain: Any = self.data_collator
        self.data_collator = self.padding.collating(plain)
        # accelerate takes batches that it sends to other processes apart, and knows tensors only.
        if not isinstance(dataset, IterableDataset) and not self.accelerator.dispatch_batches:
            collate: Any = self.padding_free.collating(self.data_collator)
            self.data_collator = collate
        try:
            loader: DataLoader[Any] = super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator = plain
        return loader

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        # The data set handed in has lost its length column to `remove_unused_columns`.
        grouped = self.args.train_sampling_strategy == "group_by_length"
        lengths = known_lengths(self.train_dataset, self.args.length_column_name) if grouped else None
        if lengths is None:
            sampler = super()._get_train_sampler(self.train_dataset)
            if not isinstance(sampler, LengthGroupedSampler):
                return sampler
            lengths = list(sampler.lengths)
        step = self._train_batch_size * self.args.gradient_accumulation_steps * parallel.processes()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthGroupedSampler(step, lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        """Keep the order of the data set: predictions of two models are compared row by row."""
        if self.args.train_sampling_strategy == "group_by_length" and has_length(eval_dataset):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of a step and their counts; none at the end of data that has no length.

        `Trainer` would take no step on what is left over there, and add its gradient to the next one.
        """
        batches = list(islice(epoch_iterator, num_batches))
        if 0 < len(batches) < num_batches:
            if self.state.global_step == 0:
                raise ValueError(
                    f"the train data ends after {len(batches)} micro-batches of a process, and "
                    f"gradient_accumulation_steps is {num_batches}: there would be no step. Lower it."
                )
            batches = []
        return batches, self._get_num_items_in_batch(batches, device)


def known_lengths(data: Any, name: str) -> list[int] | None:
    """Return the lengths that a data set has in a column, without a look at its examples; None where it has none.

    As Arrow holds them: `datasets` takes 3 to 9 seconds to hand out 400,000 of them one by one, where this takes up
    to 1.2.
    """
    if not isinstance(data, datasets.Dataset) or name not in data.column_names:
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
