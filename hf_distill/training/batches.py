"""The batches of a training: their columns, their order, and how many make an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import has_length

from hf_distill import parallel
from hf_distill.data import column
from hf_distill.data.example_columns import EXAMPLE_COLUMNS, PROMPT_LENGTH
from hf_distill.data.two_tokenizers import PREFIX, TEACHER_PROMPT
from hf_distill.models import sharding
from hf_distill.models.patching import replaced
from hf_distill.models.target_model import TargetSource
from hf_distill.rows.base import RowLayout
from hf_distill.rows.padding import Padding
from hf_distill.training.held import HELD, Held
from hf_distill.training.meter import Meter
from hf_distill.training.padding_free.choice import PaddingFree
from hf_distill.training.rollouts import Rollouts
from hf_distill.training.sharded import deferring_sync, in_own_precision
from hf_distill.training.streams import TextStream, collected, in_worker
from hf_distill.training.text_columns import TextColumns
from hf_distill.training.token_batches import Example, Later, MicroBatches, TokenBatches, Uncollated, flat
from hf_distill.training.weighing import Weighing


class BatchingTrainer(Trainer):
    """`Trainer` whose batches hold the inputs of both models, in an order that does not depend on the batch split.

    Attributes:
        layout: Says which logits count; the columns that it reads stay in the batch. Subclasses set it.
        padding_free: Adds to every batch what layers without padding need.
        padding: Knows on which side both models are padded.
        takes: Names of the arguments of `forward`, of the student and of the teacher.
        weighing: Adds weights and groups of examples to every batch.
        texts: Tokenises data sets of text; None if there are none.
        token_batches: Splits a step by the tokens of its examples; None for micro-batches of a fixed size.
        rollouts: Replaces the completions of a step's examples by those that a model writes; None if none does.
        source: Gives the targets; None if there is no teacher. Subclasses set it.
    """

    layout: RowLayout
    padding_free: PaddingFree
    padding: Padding
    weighing: Weighing
    takes: tuple[frozenset[str], frozenset[str]]
    texts: TextColumns | None = None
    token_batches: TokenBatches | None = None
    rollouts: Rollouts | None = None
    source: TargetSource | None
    _meter: Meter

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher or the layout reads.

        Examples: `token_type_ids` for a BERT teacher of a DistilBERT student, or all inputs of a teacher with its own
        tokenizer.
        """
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            taken: Any = self._signature_columns
            theirs = {*self.takes[1], *(f"{PREFIX}{name}" for name in self.takes[1])}
            # The model itself may be a cached teacher that is being evaluated.
            wanted = theirs.union(self.layout.columns, self.takes[0], EXAMPLE_COLUMNS, [PROMPT_LENGTH, TEACHER_PROMPT])
            self._signature_columns = taken + sorted(wanted.difference(taken))

    def _prepare_input(self, data: Any) -> Any:
        """Move a part of a batch to the device, in its own precision."""
        with in_own_precision(self):
            return super()._prepare_input(data)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Return a data loader whose batches carry what `padding_free` needs.

        Computed later, from a batch on the device, it would make the host wait for the device.
        """
        if not kwargs.get("is_training"):
            dataset = collected(dataset)
        if self.texts is not None:
            dataset = self.texts(dataset)
        plain: Any = self.data_collator
        collate: Any = self._collating(plain, dataset)
        loading: Any = self.accelerator.dataloader_config
        dispatched: Any = getattr(loading, "dispatch_batches", None)
        if self._pads_later(training=bool(kwargs.get("is_training"))):
            collate = Later(collate)
            if kwargs.get("is_training"):
                self._collate = collate.collate
            else:
                self._collate_eval = collate.collate
            dispatched = False  # accelerate can slice only tensors; a stream is read by every process
        workers = self.args.dataloader_num_workers
        if isinstance(dataset, TextStream):
            dispatched = False  # accelerate cannot join batches that differ in width
            workers = min(workers, 1)  # several would each read other files, in another order
        self.data_collator = collate
        try:
            with (
                replaced(loading, "dispatch_batches", dispatched),
                replaced(self.args, "dataloader_num_workers", workers),
            ):
                loader: DataLoader[Any] = super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator = plain
        return loader

    def _pads_later(self, *, training: bool) -> bool:
        """Return whether examples are padded when their step or their evaluation comes to them."""
        if training and self.rollouts is not None:
            return True
        return self.token_batches is not None and (training or "inputs" not in self.args.include_for_metrics)

    def _collating(self, collate: Any, dataset: Any) -> Any:
        """Return a collator that adds to the batches of another one what a step needs."""
        collate = self.weighing.collating(self.padding.collating(collate))
        # accelerate slices the batches that it dispatches to other processes, and can slice only tensors.
        if not isinstance(dataset, IterableDataset) and not self.accelerator.dispatch_batches:
            collate = self.padding_free.collating(collate)
        return collate

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        # In the data set that is passed in, `remove_unused_columns` has removed the length column.
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
        """Return a sampler in the order of the data set: predictions of two models are compared row by row."""
        if self.args.train_sampling_strategy == "group_by_length" and has_length(eval_dataset):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of a step and their counts; no batches for the rest of a stream of data.

        A data set without a length may end in the middle of a step. `Trainer` would compute the gradient of the
        incomplete step, take no step, and add the gradient to the next one.
        """
        batches = in_worker(lambda: list(islice(epoch_iterator, num_batches)))
        if 0 < len(batches) < num_batches:
            if self.state.global_step == 0:
                raise ValueError(
                    f"the train data ends after {len(batches)} micro-batches per process, and "
                    f"gradient_accumulation_steps is {num_batches}: there would be no step. Lower it."
                )
            batches = []
        if self.rollouts is not None and batches:
            with self._meter.writing():
                batches = self._written(self.rollouts, batches)
        elif self.token_batches is not None:
            batches = self._collated([one.examples for one in batches])
        else:
            batches = self._of_step(batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _of_step(self, batches: list[Any]) -> list[Any]:
        """Return the micro-batches of a step with what the source of targets asks for all of them at once."""
        return batches if self.source is None or not batches else self.source.of_step(batches)

    def _written(self, rollouts: Rollouts, batches: list[Uncollated]) -> list[Any]:
        """Return the micro-batches of a step with the completions that a model writes for them, on the device."""
        assert self.model is not None
        model, step = sharding.unwrapped(self.model), self.state.global_step
        # Targets that change with the student are those of the present step.
        source = self.source
        held = rollouts.completions.reuse > 1 and source is not None and not source.follows_student

        def collate(parts: list[list[Any]]) -> list[Any]:
            return self._collated(parts, lambda batch: {**batch, HELD: Held()} if held else batch)

        return rollouts.batches(batches, step, collate, lambda: rollouts.writer.follow(model, step))

    def _collated(self, parts: list[list[Example]], with_more: Callable[[Any], Any] = lambda batch: batch) -> list[Any]:
        """Return the micro-batches of a step, padded and on the device.

        With `max_tokens_per_batch` all of them take the place of the last, and the others are empty: `Trainer` counts
        `gradient_accumulation_steps` of them, and exchanges gradients after the last.

        Args:
            parts: The examples of each micro-batch.
            with_more: Returns a micro-batch with what else it needs.
        """
        split = parts
        if self.token_batches is not None:
            split = self.token_batches.split([example for part in parts for example in part])
        made = self._of_step([send_to_device(self._collate(examples), self.args.device) for examples in split])
        made = [with_more(batch) for batch in made]
        return made if split is parts else [*(MicroBatches() for _ in parts[1:]), MicroBatches(made)] if parts else []

    def _sum_of(self, model: nn.Module, batches: MicroBatches, train: Callable[[Any], Tensor]) -> Tensor:
        """Return the sum of the losses of micro-batches that take the place of one.

        Gradients are exchanged after the last one, and only if they were to be after the one whose place they take.

        Args:
            model: The student, wrapped or not.
            batches: The micro-batches.
            train: Computes the gradient of one, and returns its loss.
        """
        state = self.accelerator.gradient_state
        exchanges = state.sync_gradients
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            state._set_sync_gradients(exchanges and last)
            with nullcontext() if last else deferring_sync(self, model):
                total = total + train(batch)
        state._set_sync_gradients(exchanges)
        return total

    def floating_point_ops(self, inputs: Any) -> int:
        """Return the operations of a micro-batch, or of all that take the place of one."""
        return sum(super(BatchingTrainer, self).floating_point_ops(one) for one in flat([inputs]))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        for one in flat([inputs]):
            super()._track_num_input_tokens(one)  # type: ignore[no-untyped-call]


def known_lengths(data: Any, name: str) -> list[int] | None:
    """Return the values of a column of lengths, without reading the examples; None if the data set has no such column.

    The column is read from Arrow: 400,000 lengths take up to 1.2 seconds, and 3 to 9 seconds if `datasets` returns
    them one by one.
    """
    if not isinstance(data, datasets.Dataset) or name not in data.column_names:
        return None
    lengths: list[int] = column(data, name).to_pylist()
    return lengths


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` whose order depends on seed and epoch alone.

    Transformers' own sampler draws from torch's global generator. Its order would change after a resume, and differ
    between two processes whose dropout has drawn different amounts of random numbers.

    Args:
        batch_size: Examples of one optimiser step over all processes, so that 8 x 1, 4 x 2 and 2 processes x 4
            see the same steps.
        lengths: Length of every example.
        seed: Seed of the data order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate's data loader calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
            self.lengths, self.batch_size, generator=generator
        )
        return iter(indices)


class SetEpoch(TrainerCallback):
    """Callback that sets the epoch of all samplers, also nested ones, and of a collator with `set_epoch`.

    To skip the batches that a resumed epoch has already seen, accelerate wraps our sampler in one more. On several
    processes, its data loader's `set_epoch` then does not reach ours, and the rest of the epoch would have the order of
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
        """Set the epoch that begins."""
        collator: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch))
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))
