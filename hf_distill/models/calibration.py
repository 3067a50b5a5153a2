"""Rows of the train split on which a model is measured before it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from hf_distill.data.example_columns import inputs_of
from hf_distill.data.two_tokenizers import Renumbered, student_view
from hf_distill.models.inspection import LABELS, taken_by

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_distill.models.cut_tokenizer import Cut


class Layout(Protocol):
    """Which logits of a model count: what is read of a `rows.base.RowLayout`."""

    vectors: ClassVar[bool]

    @property
    def has_classes(self) -> bool:
        """Whether rows are distributions over classes."""

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return the logits in a model's output."""

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Any:
        """Return the rows that count; `.student` has their logits."""


@dataclass(frozen=True)
class CalibrationRows:
    """Rows of the train split, in the student's tokens, on which a model is measured before it is pruned.

    Attributes:
        train: The tokenised train split.
        collator: Pads rows to a batch.
        batch_size: Rows of a batch.
        labelled: Whether the train split has labels; single rows may lack one, as where `labels` is -100.
        layout: Which logits of a model count.
        cut: The part of a vocabulary whose ids are in the rows; None for all of it.
    """

    train: Dataset
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    batch_size: int
    labelled: bool
    layout: Layout
    cut: Cut | None = None

    def uncut(self) -> CalibrationRows:
        """Return the same rows for a model with the whole vocabulary."""
        if self.cut is None:
            return self
        whole = Renumbered(self.collator, self.cut.kept)
        return replace(self, train=student_view(self.train), collator=whole, cut=None)

    def batches(self, model: PreTrainedModel, count: int, *, batch_size: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield some rows in batches: what the model's `forward` takes, and labels, on its device.

        They are the same rows each time, whatever the seed of the run, shortest first. Batches that a collator draws
        at random (masked tokens) are the same too, and torch's random generator stays as it was.

        Args:
            model: The model that reads them.
            count: Number of rows; all, if there are fewer.
            batch_size: Rows of a batch. Default: as in evaluations.
        """
        takes = taken_by(model) | LABELS
        for batch in self._batches(model, count, batch_size or self.batch_size):
            yield {key: value for key, value in batch.items() if key in takes}

    def predicted(self, model: PreTrainedModel, count: int, *, batch_size: int | None = None) -> Iterator[Tensor]:
        """Yield the logits that count of each batch of `batches`, `(rows, classes)`, float32 or better.

        A row is a distribution over the classes, of which those below -1e29 are none. Without classes
        (`layout.has_classes`) it is one value; for a sentence encoder, one coordinate of the vector of a text.
        Gradients follow torch's mode.
        """
        import torch

        takes = taken_by(model)
        for batch in self._batches(model, count, batch_size or self.batch_size):
            outputs: Any = model(**{key: value for key, value in batch.items() if key in takes})
            if self.layout.vectors:
                vectors = torch.nn.functional.normalize(outputs["sentence_embedding"].float(), dim=-1)
                yield vectors.reshape(-1, 1)
            else:
                yield self.layout.select(self.layout.logits(outputs), None, batch).student

    def _batches(self, model: PreTrainedModel, count: int, size: int) -> Iterator[dict[str, Any]]:
        import torch

        rows = self._rows(count)
        for number, start in enumerate(range(0, len(rows), size)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                batch = self.collator([inputs_of(self.train[int(row)]) for row in rows[start : start + size]])
            yield {key: value.to(model.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}

    def _rows(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        drawn = np.random.default_rng(0).permutation(len(self.train))[:count]
        if "length" not in self.train.column_names:
            return np.sort(drawn)
        lengths = np.asarray(self.train.select(drawn)["length"])
        return drawn[np.argsort(lengths, kind="stable")]
