"""The row layout of sentence similarity: one row per example, the cosine of its two texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_distill.rows.base import RowLayout, Rows, Unit, upcast

# Column of a batch: how much higher another model scored the fitting text than the unfitting one (MarginMSE).
MARGIN = "margin"


@dataclass(frozen=True)
class SimilarityRows(RowLayout):
    """One row per example: the cosine of its first and second text, `(batch, 1)`.

    The number of texts comes from the batch: `input_ids` is `(batch, texts, tokens)`, or `(batch, tokens)` for one
    text. An example of one text has no row. A third text is one that does not fit the first; it adds a triple, not a
    row.

    Attributes:
        pairs: Whether the second text is to be compared with the first; False if it is a translation.
        columns: Columns read from a batch beside the models' inputs.
    """

    vectors: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("sentence_embedding",)

    pairs: bool = True
    columns: tuple[str, ...] = ("labels", MARGIN)

    @property
    def has_classes(self) -> bool:
        """Whether rows are distributions over classes: no, they are cosines."""
        return False

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return the cosines, `(batch, 1)`, in float32 or better; NaN for examples of one text."""
        embeddings: Tensor = outputs["sentence_embedding"]
        if embeddings.dim() == 2 or embeddings.shape[1] == 1:
            return torch.full((len(embeddings), 1), torch.nan, device=embeddings.device)
        exact = upcast(embeddings)
        return torch.cosine_similarity(exact[:, 0], exact[:, 1], dim=-1).unsqueeze(-1)

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return one row per example that has two texts to compare."""
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
        """Return the number of rows, labels and examples per example, `(batch,)` each."""
        first = next(iter(inputs.values()))
        ones = torch.ones(len(first), device=first.device)
        labels = inputs.get("labels")
        labelled = torch.zeros_like(ones) if labels is None else (~labels.isnan()).reshape(-1).float()
        rows = ones * (self.pairs and _texts(inputs) > 1)
        return {"row": rows, "label": labelled * rows, "example": ones}

    def units(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of each unit per example, `(batch,)` each; an example with three texts is a triple."""
        counts = super().units(inputs)
        counts["triple"] = counts["example"] * (_texts(inputs) > 2)
        return counts

    def tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return True for tokens that are not padding, `(texts * batch, tokens)`: all first texts, then all second."""
        tokens = super().tokens(inputs)
        return tokens.transpose(0, 1).flatten(0, 1) if tokens.dim() == 3 else tokens


def _texts(inputs: Mapping[str, Tensor]) -> int:
    """Return the number of texts per example; a batch with labels only is one of pairs."""
    ids = inputs.get("input_ids")
    return 2 if ids is None else 1 if ids.dim() == 2 else ids.shape[1]
