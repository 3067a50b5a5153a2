"""Rows of sequence classification and regression: one for each example, label or value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.rows.base import RowLayout, Rows, Unit, likeliest, upcast

# How far from 1 the sum of a row may be, to allow probabilities of many classes rounded to two digits.
TOLERANCE = 0.02


@dataclass(frozen=True)
class ExampleRows(RowLayout):
    """Sequence classification and regression: logits `(batch, width)`.

    Attributes:
        kind: `"classes"`: one row an example. `"binary"` (multi-label): one row of two classes per example and
            label, with logits `[0, z]`, whose softmax is `[1 - sigmoid(z), sigmoid(z)]`, so that every objective on
            classes is, unchanged, its multi-label form. `"values"` (regression): one row per example and value.
        width: Number of labels (values) of the head.
        teacher_columns: Column of the teacher's logits for each of the student's, if their orders differ.
        soft: For `"binary"`: labels may lie between 0 and 1. (Labels of `"classes"` with two dimensions are always read
            as distributions `(batch, width)`.)
    """

    kind: Literal["classes", "binary", "values"] = "classes"
    width: int = 2
    teacher_columns: tuple[int, ...] | None = None
    soft: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether rows are distributions over classes: for all kinds but `"values"`."""
        return self.kind != "values"

    @property
    def has_named_classes(self) -> bool:
        """Whether every row is a distribution over the task's classes: for `"classes"`."""
        return self.kind == "classes"

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return one row for each example, or for each example and label or value."""
        batch = len(student)
        if teacher is not None and self.teacher_columns is not None:
            teacher = teacher[:, list(self.teacher_columns)]
        example = torch.arange(batch, device=student.device)
        if self.kind != "classes":
            example = example.repeat_interleave(self.width)
        return Rows(
            student=self._rows(student),
            teacher=None if teacher is None else self._rows(teacher.detach()),
            labels=self._labels(inputs, student),
            example=example,
            examples=batch,
        )

    def _rows(self, logits: Tensor) -> Tensor:
        logits = upcast(logits)
        if self.kind == "classes":
            return logits
        flat = logits.reshape(-1)
        return torch.stack((torch.zeros_like(flat), flat), -1) if self.kind == "binary" else flat.unsqueeze(-1)

    def labels(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the labels with which metrics compare predictions; for distributions, the most likely class."""
        labels = inputs.get("labels")
        if labels is None or self.kind != "classes":
            return labels
        return likeliest(labels) if self._is_distribution(labels) else labels.reshape(-1)

    def _is_distribution(self, labels: Tensor) -> bool:
        # Labels `(batch, 1)` are classes, as for Transformers' models.
        return self.kind == "classes" and labels.ndim == 2 and (labels.shape[-1] > 1 or self.width == 1)

    def _labels(self, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        labels = inputs.get("labels")
        if labels is None:
            missing = IGNORED if self.kind != "values" else float("nan")
            rows = len(logits) if self.kind == "classes" else logits.numel()
            return torch.full((rows,), missing, device=logits.device)
        exact = upcast(logits).dtype
        if self.kind == "values":
            return labels.reshape(-1).to(exact)
        if self.kind == "binary":
            flat = labels.reshape(-1)
            if self.soft:
                return torch.stack((1 - flat, flat), -1).to(exact)
            return torch.where(flat.isnan(), IGNORED, flat).long()
        return labels.to(exact) if self._is_distribution(labels) else labels.reshape(-1).long()

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of rows, labels and examples per example, `(batch,)` each."""
        first = next(iter(inputs.values()))
        ones = torch.ones(len(first), device=first.device)
        rows = ones if self.kind == "classes" else ones * self.width
        labels = inputs.get("labels")
        if labels is None:
            labelled = torch.zeros_like(ones)
        elif self._is_distribution(labels):
            labelled = (~labels.isnan().any(-1)).float()
        elif self.kind == "classes":
            labelled = (labels.reshape(-1) != IGNORED).float()
        else:
            labelled = (~labels.isnan()).reshape(len(first), -1).sum(-1).float()
        return {"row": rows, "label": labelled, "example": ones}


def check_batch(batch: Mapping[str, Any], layout: RowLayout) -> None:
    """Refuse labels with one number per class that are not a distribution over the classes.

    Transformers' models read decimals like 1, 1, 0 as several labels at once. Read as a distribution, such an example
    would count twice.

    Raises:
        ValueError: The labels do not sum to 1; the message says how to set several labels.
    """
    labels = batch.get("labels")
    if not isinstance(layout, ExampleRows) or layout.kind != "classes" or not isinstance(labels, Tensor):
        return
    if labels.ndim != 2 or labels.shape[-1] == 1:
        return
    known = labels[~labels.isnan().any(-1)].double()
    bad = (known < 0).any(-1) | ((known.sum(-1) - 1).abs() > TOLERANCE)
    if labels.shape[-1] != layout.width or bool(bad.any()):
        shown = (known[bad] if bool(bad.any()) else labels)[0, :8].tolist()
        raise ValueError(
            f"a batch has the labels {shown}; wanted {layout.width} probabilities that sum to 1. For several labels at "
            'once set problem_type="multi_label_classification" in the configuration of the model.'
        )
