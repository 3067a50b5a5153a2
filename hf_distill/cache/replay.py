"""A source of targets without weights: it gives again what a cache holds of a teacher that has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hf_distill.cache import hidden_states as kept_states
from hf_distill.cache.format import SPARSE, Kept, read
from hf_distill.cache.requirements import states_of
from hf_distill.data.collators import AroundCollator, Collate
from hf_distill.data.two_tokenizers import PREFIX as OWN_TOKENS
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import PREFIX, ROW, RunModel, Targets, TargetSource
from hf_distill.rows.base import RowLayout, SparseRows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from hf_distill.models.layers import States
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared

# Logarithm of a mass that is nothing, and can still be multiplied with 0.
LEAST = -80.0


class Replay(TargetSource):
    """Stands where a teacher stands in a training, and reads its targets from the batch.

    Args:
        config: Of the teacher it stands for.
        kept: What is in the batch.
        key: Of what it stands for; as a buffer it goes into `fingerprint.model_fingerprint`.
        gives: What a training gets of it; what a cache gives, if left out.
    """

    def __init__(self, config: Any, kept: Kept, key: str, gives: Gives | None = None) -> None:
        super().__init__()
        self.config = config
        self._gives = gives
        self.kept = kept
        self.register_buffer("key", torch.frombuffer(bytearray(key.encode()), dtype=torch.uint8))

    def gives(self) -> Gives:
        """Return what a training gets of it."""
        return self._gives or self.kept.gives()

    @property
    def takes(self) -> frozenset[str]:
        """Columns of an example or a batch that are its inputs."""
        return frozenset({ROW, *(f"{PREFIX}{name}" for name in self.kept.names), *kept_states.takes(self.kept.states)})

    @property
    def gives_outputs(self) -> bool:
        """Whether the teacher's outputs were stored whole."""
        return not self.kept.is_sparse

    def for_objectives(self, objectives: Iterable[Objective], student: Any, collate: Any) -> tuple[Replay, Any]:
        """Return what reads no hidden states but those that objectives compare, and a collator that adds no others."""
        wanted = states_of(objectives, (student, self.config))
        key: Any = self.key
        narrow = Replay(self.config, self.kept.only(wanted), bytes(key.tolist()).decode(), self._gives)
        return narrow, collate.only(wanted) if isinstance(collate, AddTargets) else collate

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Mapping[str, Any]:
        """Return the outputs that were stored, so that the teacher itself can be evaluated by them.

        Args:
            input_ids: Read for their shape, if at all.
            attention_mask: Named, as `input_ids` is, because `Trainer` drops columns that no model has a name for, and
                batches are padded by them.
            inputs: See `takes`.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        return self.targets(inputs).outputs

    def targets(self, batch: Mapping[str, Any], run: RunModel | None = None) -> Targets:
        """Return what the teacher returned: the outputs that were stored, or rows; and the hidden states.

        Args:
            batch: See `takes`.
            run: Not called: there is no model to run.

        Raises:
            ValueError: The batch has no targets.
        """
        missing = [name for name in self.takes - {ROW} if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has no {', '.join(sorted(missing))}: a cached teacher needs a data set and a collator that "
                "know of the cache (see hf_distill.cache.replay.with_targets)."
            )
        values = {name: batch[f"{PREFIX}{name}"] for name in self.kept.names}
        states = kept_states.replay(values, self.kept.states, self.config, batch)
        if not self.kept.is_sparse:
            return Targets({**{name: values[name] for name in self.kept.outputs}, **states})
        indices, log_probabilities, remaining = (values[name] for name in SPARSE)
        exact = torch.promote_types(log_probabilities.dtype, torch.float32)
        log_probabilities, remaining = log_probabilities.to(exact), remaining.to(exact)
        if self.kept.tail:
            # Each class drawn stands for its part of the remaining mass, and nothing else remains.
            part = remaining.clamp(min=LEAST).unsqueeze(-1) - math.log(self.kept.tail)
            log_probabilities = torch.cat((log_probabilities, part.expand(-1, self.kept.tail)), -1)
            remaining = torch.full_like(remaining, -torch.inf)
        rows = SparseRows(indices.long(), log_probabilities, remaining, self.kept.temperature, self.kept.tail)
        return Targets(states, rows)


@dataclass(frozen=True)
class CachedTargets:
    """A cache, ready to be trained from.

    Attributes:
        data: Its rows, memory-mapped.
        kept: What they hold.
        layout: Of the task.
    """

    data: Dataset
    kept: Kept
    layout: RowLayout

    def batch(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of the examples of a collated batch, given their rows in the cache.

        Raises:
            ValueError: It has labels, or states, where the cache has nothing.
        """
        table = self.data.with_format("arrow")[list(rows)]
        tokens = self.layout.tokens(batch) if self.kept.by_token else None
        places = self.layout.places(batch)
        if tokens is not None and places is not None and (hidden := int((places.mask & ~tokens).sum())):
            raise ValueError(
                f"{hidden} labels of a batch are those of tokens that its attention mask hides, and a cached teacher "
                "has no answer there. Set them to -100."
            )
        found = read(table, self.kept, tokens)
        states = kept_states.read(table, self.kept.states, self.layout, batch)
        return {**found, **{f"{PREFIX}{name}": value for name, value in states.items()}}


@dataclass(frozen=True)
class AddTargets(AroundCollator):
    """Collates examples, and adds what is kept of them. Without the column `ROW` nothing is added.

    Attributes:
        collate: Makes the batch.
        targets: The cache.
    """

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    targets: CachedTargets

    def around(self, change: Callable[[Collate], Collate]) -> AddTargets:
        """Return the same around a changed collator."""
        return replace(self, collate=change(self.collate))

    def only(self, wanted: Iterable[States]) -> AddTargets:
        """Return what reads no other hidden states than these."""
        return replace(self, targets=replace(self.targets, kept=self.targets.kept.only(wanted)))

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the targets come last in it."""
        plain = [{key: value for key, value in one.items() if key != ROW} for one in examples]
        batch = dict(self.collate(plain))
        if ROW in examples[0]:
            batch |= self.targets.batch([one[ROW] for one in examples], batch)
        return batch


@dataclass(frozen=True)
class TrainingData:
    """What a cache needs to know of the data, for those who have no task: a `tasks.Prepared` will do as well.

    Attributes:
        train: Tokenised, with a column `length`.
        eval: Likewise.
        collator: Makes batches.
        layout: Which logits count.
    """

    train: Dataset
    eval: Dataset
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    layout: RowLayout


Data = TypeVar("Data", "Prepared", TrainingData)


def with_targets(prepared: Data, targets: CachedTargets, rows: Mapping[str, np.ndarray[Any, Any]]) -> Data:
    """Return the data with the teacher's answers in every batch.

    Args:
        prepared: The data; tokens that are there for a teacher with its own tokenizer are left out, and so are the
            answers of another teacher.
        targets: The cache.
        rows: Of each split, the row of the cache for every example.
    """

    def add(split: Dataset, places: np.ndarray[Any, Any]) -> Dataset:
        own = [name for name in split.column_names if name == ROW or name.startswith(OWN_TOKENS)]
        return split.remove_columns(own).add_column(ROW, places)

    collate = prepared.collator
    return replace(
        prepared,
        train=add(prepared.train, rows["train"]),
        eval=add(prepared.eval, rows["eval"]),
        collator=AddTargets(collate.collate if isinstance(collate, AddTargets) else collate, targets),
    )
