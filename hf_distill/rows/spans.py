"""The row layout of question answering: two rows per example, the start and the end of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hf_distill.data.label_names import IGNORED
from hf_distill.rows.base import IMPOSSIBLE, MixtureRows, RowLayout, Rows, SparseRows, upcast

if TYPE_CHECKING:
    from torch import Tensor

    from hf_distill.rows.base import Unit

# Column of a batch: 1 for tokens at which an answer may start or end, 0 for question, special tokens and padding.
CONTEXT_MASK = "context_mask"


@dataclass(frozen=True)
class SpanRows(RowLayout):
    """Extractive question answering: two rows per example, its start and its end, whose classes are the positions.

    Only the positions in `context_mask` are classes (without it, all tokens that are not padding), so that the
    question, special tokens and padding take no part in any softmax, mean or order. Labels are `labels`, `(batch, 2)`,
    or Transformers' `start_positions` and `end_positions`; a position that is not a class counts as no label.
    """

    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    outputs_by_token: ClassVar[bool] = True
    token_columns: ClassVar[tuple[str, ...]] = (CONTEXT_MASK,)
    position_columns: ClassVar[tuple[str, ...]] = ("labels", "start_positions", "end_positions")

    columns: tuple[str, ...] = ("labels", CONTEXT_MASK, "start_positions", "end_positions")

    def logits(self, outputs: Mapping[str, Any]) -> Tensor:
        """Return `(batch, tokens, 2)`: start, end."""
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), -1)

    def labels(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the positions, `(batch, 2)`: start, end."""
        if "labels" in inputs or "start_positions" not in inputs:
            return inputs.get("labels")
        return torch.stack((inputs["start_positions"], inputs["end_positions"]), -1)

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return two rows per example: start, end."""
        classes = _classes(inputs)
        assert classes is not None
        kept = classes.any(-1).nonzero()[:, 0]
        mask = classes[kept].repeat_interleave(2, 0)

        def rows(logits: Tensor) -> Tensor:
            flat = upcast(logits)[kept].transpose(1, 2).reshape(len(mask), -1)
            return flat.masked_fill(~mask, IMPOSSIBLE)

        return Rows(
            student=rows(student),
            teacher=None if teacher is None else rows(teacher.detach()),
            labels=self._known(inputs, classes)[kept].reshape(-1),
            example=kept.repeat_interleave(2),
            examples=len(student),
            classes=mask,
        )

    def _known(self, inputs: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        labels = self.labels(inputs)
        if labels is None:
            return torch.full((len(classes), 2), IGNORED, device=classes.device)
        place = labels.clamp(0, classes.shape[1] - 1)
        return labels.masked_fill((place != labels) | ~classes.gather(1, place), IGNORED)

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of rows, labels and examples per example, `(batch,)` each."""
        classes, labels = _classes(inputs), self.labels(inputs)
        if classes is None:  # a batch with labels only
            assert labels is not None
            known = labels >= 0
            rows = torch.full((len(labels),), 2.0, device=labels.device)
        else:
            known = self._known(inputs, classes) != IGNORED
            rows = 2.0 * classes.any(-1)
        return {"row": rows, "label": known.sum(-1).to(rows), "example": torch.ones_like(rows)}


def _classes(inputs: Mapping[str, Tensor]) -> Tensor | None:
    for name in (CONTEXT_MASK, "attention_mask"):
        if name in inputs:
            return inputs[name] != 0
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if "input_ids" in inputs else None


def by_width(rows: Rows) -> list[Rows]:
    """Split rows into parts with equal numbers of classes; a part has only the columns that are classes.

    Raises:
        ValueError: The teacher's rows are sparse, so its classes cannot be assigned to a part.
    """
    if rows.classes is None:
        return [rows]
    classes, theirs = rows.classes, rows.teacher
    if isinstance(theirs, SparseRows):
        raise ValueError("rows with different classes need all of the teacher's logits.")
    widths = classes.sum(-1)
    place = (classes.cumsum(-1) - 1).gather(-1, rows.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    labels = torch.where(rows.labels == IGNORED, IGNORED, place)

    def part(width: int) -> Rows:
        here = (widths == width).nonzero()[:, 0]

        def own(logits: Tensor) -> Tensor:
            return logits[here][classes[here]].reshape(len(here), width)

        return replace(
            rows,
            student=own(rows.student),
            teacher=theirs.map(own) if isinstance(theirs, MixtureRows) else None if theirs is None else own(theirs),
            labels=labels[here],
            example=rows.example[here],
            classes=None,
        )

    return [part(width) for width in torch.unique(widths).tolist()]
