"""Rows of heads that answer for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_distill.labels import IGNORED, UNLABELLED
from hf_distill.rows.base import Places, RowLayout, Rows, Unit, upcast


@dataclass(frozen=True)
class TokenRows(RowLayout):
    """Per-token heads: logits `(batch, tokens, classes)`, one row a token whose label is not -100.

    Without labels every token the attention mask keeps is a row. A task that knows better which ones count writes
    `labels.UNLABELLED` where it does not know the label: such a row has only the teacher's answer.

    Attributes:
        shift: Logits at position i predict token i + 1 (causal language models), if position i is no padding.
        classes: Columns that are tokens. Models pad their embedding to round sizes, each to its own; the columns
            past the vocabulary are no tokens and would take part in the softmax.
        teacher_columns: Column of the teacher's logits for each of the student's, where their orders differ.
    """

    outputs_by_token: ClassVar[bool] = True
    token_columns: ClassVar[tuple[str, ...]] = ("labels",)

    shift: bool = False
    classes: int | None = None
    teacher_columns: tuple[int, ...] | None = None

    @property
    def has_named_classes(self) -> bool:
        """See `RowLayout.has_named_classes`."""
        return self.classes is None

    @property
    def by_position(self) -> bool:
        """See `RowLayout.by_position`; a subclass that selects rows in its own way gets all logits."""
        kind = type(self)
        own = kind.select is not TokenRows.select or kind.logits is not RowLayout.logits
        return self.teacher_columns is None and not own

    def _mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        labels, attended = inputs.get("labels"), inputs.get("attention_mask")
        if labels is not None:
            mask = labels != IGNORED
        else:
            mask = (torch.ones_like(inputs["input_ids"]) if attended is None else attended) != 0
        if not self.shift:
            return mask
        # After padding on the left the first token's predecessor is padding, and predicts nothing.
        return mask[:, 1:] if attended is None else mask[:, 1:] & (attended[:, :-1] != 0)

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """See `RowLayout.select`."""
        places = self.places(inputs)
        return Rows(
            student=self._rows(student, places),
            teacher=None if teacher is None else self._teacher_rows(teacher.detach(), places),
            labels=places.labels,
            example=places.example,
            examples=len(student),
        )

    def places(self, inputs: Mapping[str, Tensor]) -> Places:
        """See `RowLayout.places`."""
        mask, labels = self._mask(inputs), inputs.get("labels")
        example, position = mask.nonzero().unbind(-1)
        if labels is None:
            return Places(mask, torch.full_like(example, IGNORED), example, position)
        known = (labels[:, 1:] if self.shift else labels)[example, position]
        return Places(mask, known.masked_fill(known == UNLABELLED, IGNORED), example, position)

    def _rows(self, logits: Tensor, places: Places) -> Tensor:
        return upcast(places.pick(logits)[:, : self.classes])

    def _teacher_rows(self, logits: Tensor, places: Places) -> Tensor:
        rows = self._rows(logits, places)
        return rows if self.teacher_columns is None else rows[:, list(self.teacher_columns)]

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """See `RowLayout.counts`."""
        mask, labels = self._mask(inputs), inputs.get("labels")
        rows = mask.sum(-1).float()
        if labels is None:
            labelled = torch.zeros_like(rows)
        else:
            known = (labels[:, 1:] if self.shift else labels) != UNLABELLED
            labelled = (mask & known).sum(-1).float()
        return {"row": rows, "label": labelled, "example": torch.ones_like(rows)}
