"""The published targets of several parties: students learn from the mean of their distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from hf_distill.cache.replay import Replay
from hf_distill.data.label_names import positions
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.inspection import LABELS
from hf_distill.models.mixing import Combine, Mean
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import RunModel, Targets, TargetSource
from hf_distill.rows.mixture import mean_outputs
from hf_distill.teachers.base import under

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.models.pair import Pair
    from hf_distill.rows.base import RowLayout
    from hf_distill.tasks import Prepared, Setup, Task

GIVES = Gives("an ensemble of published targets")
# Key path -> entry of each party.
Parties = Mapping[str, Any]


class Together(TargetSource):
    """Reads the targets of all parties from the batch, side by side in one column.

    Args:
        replay: Reads them, `(batch, parties * classes)`, the classes of each in the order of the first.
        mean: How they are averaged.
        names: What the report calls the parties.
        has_classes: Whether targets are of classes; if not, of values.
        gives: What they give to objectives: logits of each, no more.
    """

    def __init__(
        self, replay: Replay, mean: Mean, names: Sequence[str], gives: Gives = GIVES, *, has_classes: bool
    ) -> None:
        super().__init__()
        self._gives = gives
        self.replay, self.mean, self.names, self.has_classes = replay, mean, tuple(names), has_classes
        self.config = replay.config

    @property
    def takes(self) -> frozenset[str]:
        """The columns of an example or a batch that it reads."""
        return self.replay.takes

    def gives(self) -> Gives:
        """Return what it gives to objectives: logits of each party, no more."""
        return self._gives

    def fingerprint(self) -> str:
        """Return a hash of the targets and of how they are averaged."""
        return fingerprint(self.replay.fingerprint(), repr(self.mean))

    def facts(self) -> Mapping[str, Any]:
        """Return how the parties are averaged, for the report."""
        return self.mean.in_words(self.names, classes=self.has_classes)

    def members(self, batch: Mapping[str, Any]) -> tuple[Mapping[str, Tensor], ...]:
        """Return the outputs of each party."""
        whole: Tensor = self.replay.targets(batch).outputs["logits"]
        return tuple({"logits": one} for one in whole.chunk(len(self.names), -1))

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of each party, and how they are averaged; no model runs."""
        return Targets(mixed=self.members(batch), mean=self.mean)

    def predicting(self, layout: RowLayout) -> nn.Module:
        """Return a module with the predictions of the mean at temperature 1."""
        return PartiesPredictor(self, layout)

    def parts(self, layout: RowLayout) -> Mapping[str, nn.Module]:
        """Return each party by its name."""
        return {name: PartiesPredictor(self, layout, only=at) for at, name in enumerate(self.names)}


class PartiesPredictor(nn.Module):
    """All parties as one model, whose logits are those of the mean at temperature 1; or one of them.

    Args:
        source: The parties.
        layout: Row layout of the task.
        only: Number of the party whose predictions are wanted; None for the mean.
    """

    def __init__(self, source: Together, layout: RowLayout, only: int | None = None) -> None:
        super().__init__()
        self.source, self.layout, self.config, self.only = source, layout, source.config, only
        self.takes = source.takes.union(layout.columns) - LABELS

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """Return the outputs that the layout reads.

        Args:
            input_ids: Not used; a parameter, since padding needs the column.
            attention_mask: Not used; a parameter for the same reason.
            inputs: The columns of `takes`.
        """
        if self.only is not None:
            return self.source.members(inputs)[self.only]
        return mean_outputs(self.layout, self.source.members(inputs), self.source.mean, inputs)[1.0]


def published_together(
    parties: Parties,
    weights: Sequence[float] | str | None,
    combine: Combine,
    names: Sequence[str],
    task: Task,
    splits: Mapping[str, Dataset],
    setup: Setup,
    pair: Pair,
) -> tuple[Prepared, tuple[Prepared, TargetSource]]:
    """Return the prepared data, and the same with the targets of all parties in every batch.

    Args:
        parties: Key path -> entry of each party.
        weights: Weight of each; `size` for the numbers of labelled rows that they tell, `confidence` for weights by
            row, None for equal ones.
        combine: What is averaged.
        names: What the report calls the parties.
        task: The task.
        splits: The raw rows, columns named by role.
        setup: The models, and what the recipe says about the data.
        pair: Teacher and student.

    Raises:
        UserError: The targets of a party are for other classes or other texts; the key path is that of the party.
    """
    from hf_distill.teachers.given.cache import numbered, replaying

    prepared = task.prepare(numbered(splits), setup)
    with under("teacher"):
        mean = Mean(tuple(shares(parties, weights)), combine, by_confidence=weights == "confidence")
        each = [_read(path, one, parties, task, splits, prepared.layout) for path, one in parties.items()]
    logits = {name: np.concatenate([one[name] for one in each], axis=1) for name in splits}
    plain, (stored, replay) = replaying(prepared, logits, pair.teacher, GIVES)
    return plain, (stored, Together(replay, mean, names, has_classes=prepared.layout.has_classes))


def _read(
    path: str, one: Any, parties: Parties, task: Task, splits: Mapping[str, Dataset], layout: RowLayout
) -> dict[str, Any]:
    """Return the logits of a party by split, classes in the order of the first party."""
    with under(path):
        order = class_order(next(iter(parties.values())), one)
        found = one.read(task, splits, layout)
    return found if order is None else {name: values[:, list(order)] for name, values in found.items()}


def class_order(first: Any, other: Any) -> tuple[int, ...] | None:
    """Return the other party's column for each class of the first; None without names of classes.

    Raises:
        UserError: Their classes differ; the message names both directories.
    """
    ours, theirs = first.open(), other.open()
    if ours.labels is not None and theirs.labels is not None:
        try:
            return positions(ours.labels, theirs.labels, whose=f"the party of {theirs.path}")
        except UserError as error:
            raise UserError(f"{error} Compared with {ours.path}.", key="path") from error
    if ours.logits.shape[-1] != theirs.logits.shape[-1]:
        raise UserError(
            f"the targets in {theirs.path} are of {theirs.logits.shape[-1]} classes, those in {ours.path} of "
            f"{ours.logits.shape[-1]}. Wanted the same for all parties.",
            key="path",
        )
    return None


def shares(parties: Parties, weights: Sequence[float] | str | None) -> list[float]:
    """Return the weight of each party in the mean; they sum to 1.

    Raises:
        UserError: They are wanted by size, and a party does not tell its size.
    """
    given = [1.0] * len(parties) if weights is None or isinstance(weights, str) else list(weights)
    if weights == "size":
        for at, one in enumerate(parties.values()):
            size = one.open().size
            if size is None:
                raise UserError(
                    f"size: the party of {one.path} does not tell how many labelled rows it has (--without-size). Give "
                    "numbers: weights: [1, 2, ...].",
                    key="weights",
                )
            given[at] = float(size)
    return [one / sum(given) for one in given]
