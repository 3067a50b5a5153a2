"""A source of targets without weights: it reads a teacher's stored targets from the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hf_distill.cache import hidden_states
from hf_distill.cache.format import SPARSE, Kept, read
from hf_distill.cache.requirements import states_of
from hf_distill.data.collators import AroundCollator, Collate
from hf_distill.data.two_tokenizers import PREFIX as OWN_TOKENS
from hf_distill.data.two_tokenizers import BothNumbers
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import PREFIX, ROW, RunModel, Targets, TargetSource
from hf_distill.rows.base import RowLayout, SparseRows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from hf_distill.models.layers import States
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared

# Logarithm that stands for probability 0. It is finite, so that it can be multiplied by 0.
LEAST = -80.0


class Replay(TargetSource):
    """Takes the place of a teacher in training, and reads its stored targets from the batch.

    Args:
        config: Configuration of the teacher.
        kept: What is stored of the teacher.
        key: Key of the cache. It is a buffer, so that `fingerprint.model_fingerprint` depends on it.
        gives: What it gives to objectives. Default: what the cache holds.
    """

    def __init__(self, config: Any, kept: Kept, key: str, gives: Gives | None = None) -> None:
        super().__init__()
        self.config = config
        self._gives = gives
        self.kept = kept
        self.register_buffer("key", torch.frombuffer(bytearray(key.encode()), dtype=torch.uint8))

    def gives(self) -> Gives:
        """Return what it gives to objectives."""
        return self._gives or self.kept.gives()

    @property
    def takes(self) -> frozenset[str]:
        """The columns of an example or a batch that it reads."""
        return frozenset(
            {ROW, *(f"{PREFIX}{name}" for name in self.kept.names), *hidden_states.takes(self.kept.states)}
        )

    @property
    def gives_outputs(self) -> bool:
        """Whether the teacher's outputs were stored whole."""
        return not self.kept.is_sparse

    def for_objectives(self, objectives: Iterable[Objective], student: Any, collate: Any) -> tuple[Replay, Any]:
        """Return a source and a collator that read only the hidden states that these objectives compare."""
        wanted = states_of(objectives, (student, self.config))
        key: Any = self.key
        narrow = Replay(self.config, self.kept.only(wanted), bytes(key.tolist()).decode(), self._gives)
        return narrow, collate.only(wanted) if isinstance(collate, AddTargets) else collate

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Mapping[str, Any]:
        """Return the stored outputs, so that the teacher itself can be evaluated.

        Args:
            input_ids: Used only for its shape, if at all.
            attention_mask: Not used. It is a parameter, as `input_ids` is, because `Trainer` drops columns that no
                model has a parameter for, and padding needs them.
            inputs: The columns of `takes`.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        return self.targets(inputs).outputs

    def targets(self, batch: Mapping[str, Any], run: RunModel | None = None) -> Targets:
        """Return the stored outputs or sparse rows, and the stored hidden states.

        Args:
            batch: Has the columns of `takes`.
            run: Not called, because there is no model to run.

        Raises:
            UserError: The batch has no targets.
        """
        missing = [name for name in self.takes - {ROW} if name not in batch]
        if missing:
            raise UserError(
                f"these rows have no stored targets ({', '.join(sorted(missing))}): a trainer with a cached teacher "
                "evaluates on its own eval_dataset alone (evaluate() without a data set), by its own data_collator. "
                "For other rows take a trainer with the teacher itself, or transformers.Trainer to predict."
            )
        values = {name: batch[f"{PREFIX}{name}"] for name in self.kept.names}
        states = hidden_states.replay(values, self.kept.states, self.config, batch)
        if not self.kept.is_sparse:
            means = {
                at: {name: values[self.kept.column(name, at)] for name in self.kept.outputs} for at in self.kept.means
            }
            return Targets({**{name: values[name] for name in self.kept.outputs}, **states}, softened=means)
        indices, log_probabilities, remaining = (values[name] for name in SPARSE)
        exact = torch.promote_types(log_probabilities.dtype, torch.float32)
        log_probabilities, remaining = log_probabilities.to(exact), remaining.to(exact)
        if self.kept.tail:
            # Each sampled class stands for an equal part of the remaining probability, so nothing else remains.
            part = remaining.clamp(min=LEAST).unsqueeze(-1) - math.log(self.kept.tail)
            log_probabilities = torch.cat((log_probabilities, part.expand(-1, self.kept.tail)), -1)
            remaining = torch.full_like(remaining, -torch.inf)
        settings = (self.kept.temperature, self.kept.tail, bool(self.kept.means))
        rows = SparseRows(indices.long(), log_probabilities, remaining, *settings)
        return Targets(states, rows)


@dataclass(frozen=True)
class CachedTargets:
    """A complete cache that can be read in training.

    Attributes:
        data: The rows of the cache, memory-mapped.
        kept: What they hold.
        layout: Row layout of the task.
    """

    data: Dataset
    kept: Kept
    layout: RowLayout

    def batch(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored targets of a collated batch.

        Args:
            rows: Row of the cache for each example.
            batch: The collated batch.

        Raises:
            ValueError: The batch has labels or tokens for which the cache has no targets.
        """
        table = self.data.with_format("arrow")[list(rows)]
        tokens = self.layout.tokens(batch) if self.kept.by_token else None
        places = self.layout.places(batch)
        if tokens is not None and places is not None and (hidden := int((places.mask & ~tokens).sum())):
            raise ValueError(
                f"{hidden} labels of a batch are at tokens that its attention mask hides, and a cached teacher has no "
                "targets there. Set them to -100."
            )
        found = read(table, self.kept, tokens)
        states = hidden_states.read(table, self.kept.states, self.layout, batch)
        return {**found, **{f"{PREFIX}{name}": value for name, value in states.items()}}


@dataclass(frozen=True)
class AddTargets(AroundCollator):
    """Collates examples and adds their stored targets. Without the column `ROW` nothing is added.

    Attributes:
        collate: Makes the batch.
        targets: Reads the cache.
    """

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    targets: CachedTargets

    def around(self, change: Callable[[Collate], Collate]) -> AddTargets:
        """Return the same with a changed inner collator."""
        return replace(self, collate=change(self.collate))

    def only(self, wanted: Iterable[States]) -> AddTargets:
        """Return a collator that reads only the hidden states in `wanted`."""
        return replace(self, targets=replace(self.targets, kept=self.targets.kept.only(wanted)))

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch with the targets added as its last entries."""
        plain = [{key: value for key, value in one.items() if key != ROW} for one in examples]
        batch = dict(self.collate(plain))
        if ROW in examples[0]:
            batch |= self.targets.batch([one[ROW] for one in examples], batch)
        return batch


@dataclass(frozen=True)
class TrainingData:
    """The data that a cache is made for, if there is no task; `tasks.Prepared` has the same attributes.

    Attributes:
        train: The tokenised train split, with a column `length`.
        eval: The tokenised eval split, with a column `length`.
        collator: Makes batches.
        layout: Which logits count.
    """

    train: Dataset
    eval: Dataset
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    layout: RowLayout


Data = TypeVar("Data", "Prepared", TrainingData)


def with_targets(prepared: Data, targets: CachedTargets, rows: Mapping[str, np.ndarray[Any, Any]]) -> Data:
    """Return the data with the stored targets in every batch.

    Args:
        prepared: The data. The tokens of a teacher with its own tokenizer are removed, and so are targets of another
            cache.
        targets: Reads the cache.
        rows: Split -> row of the cache for every example.
    """

    def add(split: Dataset, places: np.ndarray[Any, Any]) -> Dataset:
        own = [name for name in split.column_names if name == ROW or name.startswith(OWN_TOKENS)]
        return split.remove_columns(own).add_column(ROW, places)

    collate: Any = prepared.collator
    if isinstance(collate, BothNumbers):  # with the targets stored, nothing reads the teacher's numbers
        collate = collate.teacher.collator
    return replace(
        prepared,
        train=add(prepared.train, rows["train"]),
        eval=add(prepared.eval, rows["eval"]),
        collator=AddTargets(collate.collate if isinstance(collate, AddTargets) else collate, targets),
    )
