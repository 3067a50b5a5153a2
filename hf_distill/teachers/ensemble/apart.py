"""Teachers that each read tokens or inputs of their own: their targets are stored one by one, and then averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.models.mixing import Mean
from hf_distill.models.target_model import ROW, RunModel, Targets, TargetSource, as_source
from hf_distill.tasks.base import View
from hf_distill.teachers.base import StoredTargets, Storing, Teacher, deeper, under
from hf_distill.teachers.ensemble.averaging import GIVES, Ensemble, Predictor, by_losses, order_of, together_in_words
from hf_distill.teachers.given.cache import with_rows
from hf_distill.teachers.published.parties import Together

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.tasks import Prepared, Setup, Task

# Key path and entry of a teacher.
Entry = tuple[str, Teacher]


def views(
    entries: Sequence[Entry],
    task: Task,
    splits: Mapping[str, Dataset],
    beside: Mapping[str, Dataset],
    setup: Setup,
    pair: Pair,
) -> Prepared:
    """Return the data as the student reads it, with a view of it for each teacher.

    Labels, and the order of the classes, are the same in all of them.

    Args:
        entries: The teachers, those of `pair.members`.
        task: The task of the recipe.
        splits: The columns that the models read.
        beside: The same rows, with the further columns that a teacher reads.
        setup: The models, and what the recipe says about the data.
        pair: Teacher and student.
    """
    made = []
    for (path, one), both in zip(entries, pair.members, strict=True):
        own = replace(setup, teacher_tokenizer=both.teacher_tokenizer, configs=(both.teacher, both.student))
        with deeper(path):
            prepared, _ = one.prepare(task, splits, beside, own, both)
        made.append(View(prepared.for_teacher or prepared, both.teacher_tokenizer or both.tokenizer))
    plain = task.prepare(splits, replace(setup, teacher_tokenizer=None, configs=(pair.student,)))
    shown = tuple(line for view in made for line in view.prepared.shown)
    return replace(plain, for_members=tuple(made), shown=shown)


class Apart(TargetSource):
    """The models of which the targets are stored one by one; none of them runs in a training.

    Args:
        models: What the entries have loaded.
        views: The data as each reads it.
        weights: Weight of each, above 0; None for equal weights; `confidence` for weights by row, and `validation` for
            weights that `settle` finds.
        combine: What is averaged.
        names: What reports call the models.

    Raises:
        UserError: The classes differ.
    """

    def __init__(
        self,
        models: Sequence[Any],
        views: Sequence[View],
        weights: Sequence[float] | str | None,
        combine: Any,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.sources = [source for source in map(as_source, models) if source is not None]
        self.held = nn.ModuleList(source.model for source in self.sources)
        self.views, self.names = tuple(views), tuple(names)
        self.config = base_model(self.held[0]).config
        self.orders = [self._order(model, name) for model, name in zip(self.held, names, strict=True)]
        self.by_validation = weights == "validation"
        given = [1.0] * len(models) if weights is None or isinstance(weights, str) else weights
        self.mean = Mean(tuple(one / sum(given) for one in given), combine, by_confidence=weights == "confidence")

    def _order(self, model: Any, name: str) -> tuple[int, ...]:
        try:
            order = order_of(self.config, base_model(model).config)
        except UserError as error:
            raise UserError(f"{name}: {error}", key=error.key) from error
        return order or tuple(range(self.config.num_labels))

    @property
    def copied(self) -> Any:
        """The model whose layers a student copies: the first."""
        return self.held[0]

    @property
    def takes(self) -> frozenset[str]:
        """Nothing: each model reads its own view of the data."""
        return frozenset()

    def gives(self) -> Gives:
        """Return what the mean gives to objectives: rows only."""
        return GIVES

    def facts(self) -> Mapping[str, Any]:
        """Return what the teachers say about themselves, by their names."""
        own = ((name, source.facts()) for name, source in zip(self.names, self.sources, strict=True))
        return {f"{name}: {key}": value for name, facts in own for key, value in facts.items()}

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        return together_in_words(len(self.sources))

    def settle(self, layout: Any, loss: Callable[..., float]) -> None:
        """Find weights by the teachers' losses on labelled rows, each in its own view (see `Ensemble.settle`)."""
        if not self.by_validation:
            return
        together = Ensemble(list(self.held))
        together.columns = list(self.orders)
        alone = (Predictor(together, layout, only=at, for_student=True) for at in range(len(self.held)))
        losses = [loss(one, view) for one, view in zip(alone, self.views, strict=True)]
        self.mean = replace(self.mean, weights=by_losses(losses, classes=layout.has_classes))

    @property
    def runs_in_training(self) -> bool:
        """Always false."""
        return False

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Raise: students learn from the stored targets."""
        raise AssertionError("the targets of these teachers are stored before a student is trained")


@dataclass
class MemberTargets:
    """The stored targets of several teachers; a `StoredTargets`.

    Attributes:
        source: The teachers.
        each: Key path and targets of each, stored in a place of their own.
    """

    source: Apart
    each: Sequence[tuple[str, StoredTargets]]

    @classmethod
    def of(cls, source: Apart, entries: Sequence[Entry], storing: Storing) -> MemberTargets:
        """Return the targets of a run.

        Args:
            source: The teachers.
            entries: Key path and entry of each, which say where they are stored.
            storing: What the run knows; its data is the student's.
        """
        each = []
        parts = zip(entries, source.held, source.views, storing.pair.members, source.names, strict=True)
        for (path, one), model, view, pair, name in parts:
            own = replace(storing, data=view.prepared, pair=pair, say=_naming(name, storing.say))
            with under(path):
                each.append((path, one.cache_for(model, own)))
        return cls(source, each)

    @property
    def path(self) -> Path:
        """Directory that all the caches are in."""
        return Path(os.path.commonpath([one.path.absolute() for _, one in self.each]))

    @property
    def found(self) -> bool:
        """Whether all targets were stored already when `fill` was called."""
        return all(one.found for _, one in self.each)

    @property
    def size(self) -> int:
        """Size of all files of all teachers in bytes, approximately."""
        return sum(one.size for _, one in self.each)

    def in_words(self) -> str:
        """Return a description of what is stored for each teacher, with its size."""
        parts = zip(self.source.names, self.each, strict=True)
        return "; ".join(f"{name}: {one.in_words()}" for name, (_, one) in parts)

    def fill(self, args: TrainingArguments) -> None:
        """Store what is missing, one teacher after the other."""
        for path, one in self.each:
            with under(path):
                one.fill(args)

    def apply(self, prepared: Any) -> tuple[Any, TargetSource]:
        """Return the data with the logits of all teachers in every batch, and the source of their mean."""
        read = []
        for (path, one), view, order in zip(self.each, self.source.views, self.source.orders, strict=True):
            with under(path):
                read.append(logits_of(one, view.prepared)[:, list(order)])
        whole, first = np.concatenate(read, axis=1), len(prepared.train)
        rows = {"train": np.arange(first), "eval": np.arange(first, len(whole))}
        stored, replay = with_rows(prepared, whole, rows, self.source.config, GIVES)
        classes = prepared.layout.has_classes
        return stored, Together(replay, self.source.mean, self.source.names, GIVES, has_classes=classes)


def logits_of(stored: StoredTargets, prepared: Prepared) -> np.ndarray[Any, Any]:
    """Return the stored logits of all examples, float32 `(train rows + eval rows, classes)`.

    Args:
        stored: Whole logits of one teacher.
        prepared: The data as that teacher reads it.
    """
    data, _ = stored.apply(prepared)
    targets: Any = data.collator
    table = targets.targets.data.with_format("numpy")
    every = np.stack(list(table["logits"][:])).astype(np.float32)
    return np.concatenate([every[np.array(split[ROW])] for split in (data.train, data.eval)])


def _naming(name: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(f"{name}: {line}")
