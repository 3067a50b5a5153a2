"""Rows of sentence similarity: the cosine of the two texts of every example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_distill.rows.base import RowLayout, Rows, Unit, upcast

# Column of a batch: how much higher a model that is not asked scores the text that fits than the one that does not.
MARGIN = "margin"


@dataclass(frozen=True)
class SimilarityRows(RowLayout):
    """One row an example: the cosine of its first text and its second, `(batch, 1)`.

    How many texts an example has is read from the batch: `input_ids` is `(batch, texts, tokens)`, `(batch, tokens)`
    where it is one. Then there is nothing to compare within the example, and no row. A third text is one that does not
    fit the first; it makes no row, but a triple.

    Attributes:
        pairs: Whether the second text is another one, to be compared with the first: a translation is not.
        columns: See `RowLayout`.
    """

    vectors: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("sentence_embedding",)

    pairs: bool = True
    columns: tuple[str, ...] = ("labels", MARGIN)

    @property
    def has_classes(self) -> bool:
        """See `RowLayout.has_classes`."""
        return False

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return the cosines, `(batch, 1)`, in float32 or better; NaN where an example is one text."""
        embeddings: Tensor = outputs["sentence_embedding"]
        if embeddings.dim() == 2 or embeddings.shape[1] == 1:
            return torch.full((len(embeddings), 1), torch.nan, device=embeddings.device)
        exact = upcast(embeddings)
        return torch.cosine_similarity(exact[:, 0], exact[:, 1], dim=-1).unsqueeze(-1)

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """See `RowLayout.select`."""
        rows = slice(None) if self.pairs and _texts(inputs) > 1 else slice(0)
        labels = inputs.get("labels")
        if labels is None:
            labels = torch.full((len(student),), torch.nan, device=student.device)
        return Rows(
            student=student[rows],
            teacher=None if teacher is None else teacher.detach()[rows],
            labels=labels.reshape(-1).to(student.dtype)[rows],
            example=torch.arange(len(student), device=student.device)[rows],
            examples=len(student),
        )

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """See `RowLayout.counts`."""
        first = next(iter(inputs.values()))
        ones = torch.ones(len(first), device=first.device)
        labels = inputs.get("labels")
        labelled = torch.zeros_like(ones) if labels is None else (~labels.isnan()).reshape(-1).float()
        rows = ones * (self.pairs and _texts(inputs) > 1)
        return {"row": rows, "label": labelled * rows, "example": ones}

    def units(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """See `RowLayout.units`."""
        counts = super().units(inputs)
        counts["triple"] = counts["example"] * (_texts(inputs) > 2)
        return counts

    def tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens are no padding, bool `(texts * batch, tokens)`: all first texts, then all second ones."""
        tokens = super().tokens(inputs)
        return tokens.transpose(0, 1).flatten(0, 1) if tokens.dim() == 3 else tokens


def _texts(inputs: Mapping[str, Tensor]) -> int:
    """Return of how many texts an example consists. Labels without texts are those of pairs."""
    ids = inputs.get("input_ids")
    return 2 if ids is None else 1 if ids.dim() == 2 else ids.shape[1]
