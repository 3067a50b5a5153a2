"""A teacher without weights: it gives again what a cache holds of the answers of one that has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from hf_distill.errors import UserError
from hf_distill.kept import PREFIX, SPARSE, Kept, read
from hf_distill.own_tokens import PREFIX as OWN_TOKENS
from hf_distill.rows import RowLayout, SparseRows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared

# Column of a split: which row of the cache belongs to an example.
ROW = f"{PREFIX}row"
# What it returns where there are no outputs to return.
KEPT_ROWS = "kept_rows"
# Logarithm of a mass that is nothing, and can still be multiplied with 0.
LEAST = -80.0


class Replay(nn.Module):
    """Stands where a teacher stands in a training, and reads its answers from the batch.

    Args:
        config: Of the teacher it stands for.
        kept: What is in the batch.
        key: Of what it stands for; as a buffer it goes into `files.model_fingerprint`.
    """

    def __init__(self, config: Any, kept: Kept, key: str) -> None:
        super().__init__()
        self.config = config
        self.kept = kept
        self.register_buffer("key", torch.frombuffer(bytearray(key.encode()), dtype=torch.uint8))

    @property
    def takes(self) -> frozenset[str]:
        """Columns of an example or a batch that are its inputs."""
        return frozenset({ROW, *(f"{PREFIX}{name}" for name in self.kept.names)})

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Return what the teacher returned: the outputs that were kept, or `KEPT_ROWS`."""
        missing = [name for name in self.takes - {ROW} if name not in inputs]
        if missing:
            raise ValueError(
                f"the batch has no {', '.join(sorted(missing))}: a cached teacher needs a data set and a collator that "
                "know of the cache (see hf_distill.replay.with_targets)."
            )
        values = {name: inputs[f"{PREFIX}{name}"] for name in self.kept.names}
        if not self.kept.is_sparse:
            return values
        indices, log_probabilities, remaining = (values[name] for name in SPARSE)
        exact = torch.promote_types(log_probabilities.dtype, torch.float32)
        log_probabilities, remaining = log_probabilities.to(exact), remaining.to(exact)
        if self.kept.tail:
            # Each class drawn stands for its part of the remaining mass, and nothing else remains.
            part = remaining.clamp(min=LEAST).unsqueeze(-1) - math.log(self.kept.tail)
            log_probabilities = torch.cat((log_probabilities, part.expand(-1, self.kept.tail)), -1)
            remaining = torch.full_like(remaining, -torch.inf)
        rows = SparseRows(indices.long(), log_probabilities, remaining, self.kept.temperature, self.kept.tail)
        return {KEPT_ROWS: rows}


@dataclass(frozen=True)
class Targets:
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
        """Return what is kept of the examples of a collated batch, given their rows in the cache."""
        table = self.data.with_format("arrow")[list(rows)]
        return read(table, self.kept, self.layout.tokens(batch) if self.kept.by_token else None)


@dataclass(frozen=True)
class AddTargets:
    """Collates examples, and adds what is kept of them. Without the column `ROW` nothing is added.

    Attributes:
        collate: Makes the batch.
        targets: The cache.
    """

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    targets: Targets

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


def with_targets(prepared: Data, targets: Targets, rows: Mapping[str, np.ndarray[Any, Any]]) -> Data:
    """Return the data with the teacher's answers in every batch.

    Args:
        prepared: The data; tokens that are there for a teacher with its own tokenizer are left out.
        targets: The cache.
        rows: Of each split, the row of the cache for every example.
    """

    def add(split: Dataset, places: np.ndarray[Any, Any]) -> Dataset:
        own = [name for name in split.column_names if name.startswith(OWN_TOKENS)]
        return split.remove_columns(own).add_column(ROW, places)

    return replace(
        prepared,
        train=add(prepared.train, rows["train"]),
        eval=add(prepared.eval, rows["eval"]),
        collator=AddTargets(prepared.collator, targets),
    )


def check_objective(
    objective: Objective, *, sparse: bool, temperature: float | None = None, sampled: bool = False
) -> None:
    """Refuse an objective that wants more of the teacher than a cache keeps.

    Args:
        objective: What is compared.
        sparse: Whether only the likeliest classes are kept.
        temperature: At which they are; None if that is still to be chosen.
        sampled: Whether others were drawn to stand for the rest.

    Raises:
        UserError: It does; `key` is the setting.
    """
    from hf_distill.objectives import RowObjective
    from hf_distill.objectives.schedule import Schedule

    if not objective.needs_teacher:
        return
    if objective.differentiates or objective.outputs or not objective.answers_only:
        raise UserError(
            f"'{objective.name}' looks into the teacher, and a cached teacher has only its answers. Leave it out, or "
            "take the teacher itself."
        )
    if not sparse or not isinstance(objective, RowObjective):
        return
    if not objective.takes_sparse:
        raise UserError(
            f"'{objective.name}' does not work with a cached teacher of this task, of which only the likeliest tokens "
            f"are kept: {objective.needs_all_classes}. Leave it out, or take the teacher itself."
        )
    if sampled and not objective.takes_samples:
        raise UserError(
            f"'{objective.name}' does not work with tokens that were drawn from the tail: its mean over the draws is "
            "another loss. Wanted kl or soft_cross_entropy, or a cached teacher with tail: 0."
        )
    own = getattr(objective, "temperature", None)
    if isinstance(own, Schedule):
        raise UserError(
            "a cache keeps the teacher's likeliest tokens at one temperature, and this one changes during training. "
            "Wanted: a number.",
            key="temperature",
        )
    if own is not None and temperature is not None and own != temperature:
        raise UserError(
            f"{own:g} here, and the cache keeps the teacher's likeliest tokens at temperature {temperature:g}: they "
            "cannot be softened any more. Use one temperature for all.",
            key="temperature",
        )
