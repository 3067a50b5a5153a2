"""Run a teacher on a batch and return the columns to store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.cache import hidden_states
from hf_distill.cache.format import SPARSE, Kept, packed
from hf_distill.models.heads import CHUNK_BYTES, ELSEWHERE, capturing, open_head, slices
from hf_distill.models.projection import Projector, Side
from hf_distill.rows.base import RowLayout, SparseRows, side_of
from hf_distill.rows.padding import Padding

Array = np.ndarray[Any, Any]


class Recorder:
    """Runs a teacher and returns what is stored of its outputs.

    Args:
        teacher: The teacher in eval mode, on its device.
        layout: Row layout of the task.
        kept: What to store.
        bf16: Whether to compute under autocast to bfloat16, as training with `bf16` does.

    Attributes:
        padding: Pads batches on the side that the teacher needs.
    """

    def __init__(self, teacher: nn.Module, layout: RowLayout, kept: Kept, *, bf16: bool) -> None:
        self.teacher, self.layout, self.kept, self.bf16 = teacher, layout, kept, bf16
        self.head = open_head(teacher) if kept.is_sparse else None
        whole = bool(kept.states) or self.head is not None
        self.padding = Padding({"teacher": teacher}, layout, whole=whole)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], inputs: Mapping[str, Any], seed: int = 0) -> dict[str, list[Any]]:
        """Return the columns of the examples of a batch.

        Args:
            batch: The whole batch.
            inputs: Those columns of the batch that `forward` takes.
            seed: Seed of the sampled classes.
        """
        if self.kept.states:
            inputs = {**inputs, "output_hidden_states": True}
        first = next(iter(batch.values()))
        # Sampled on the device of the logits. If the model is spread over devices, it can differ from the batch's.
        drawn_on = first.device if self.head is None else self.head.linear.weight.device
        generator = torch.Generator(drawn_on).manual_seed(seed)
        device = first.device.type
        seen = capturing(self.teacher, self.head) if self.head is not None else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16), seen as captured:
            outputs: Any = self.padding.run("teacher", self.teacher, inputs, batch)
        states = hidden_states.record(outputs, self.kept.states, self.layout, batch)
        if not self.kept.is_sparse:
            return {**{name: self._whole(outputs[name], batch) for name in self.kept.outputs}, **states}
        if captured is not None and self.head is not None:
            places = self.layout.places(batch)
            assert places is not None
            classes = getattr(self.layout, "classes", None)
            side = side_of(self.head, captured, places, classes, self.layout.shared(places.mask.device))
            rows, example = top_rows(side, self.kept, generator), places.example
        else:
            logits = self.layout.logits(outputs)
            all_rows = self.layout.select(logits, None, batch)
            rows, example = sparse_rows(all_rows.compared.student, self.kept, generator), all_rows.example
        return {**self._sparse(rows, torch.bincount(example, minlength=len(first))), **states}

    def _whole(self, output: Tensor, batch: Mapping[str, Tensor]) -> list[Array]:
        values = output.to(getattr(torch, self.kept.precision)).cpu()
        if not self.kept.by_token:
            return [value.numpy() for value in values]
        mask = self.layout.tokens(batch).cpu()
        return [value[: len(here)][here].numpy() for value, here in zip(values, mask, strict=True)]

    def _sparse(self, rows: SparseRows, counts: Tensor) -> dict[str, list[Any]]:
        ends = counts.cumsum(0).tolist()
        columns = {
            "indices": packed(rows.indices.cpu().numpy(), self.kept.index_bytes),
            "log_probabilities": rows.log_probabilities.cpu().numpy().astype(self.kept.precision),
            "remaining": rows.remaining.cpu().numpy().astype(self.kept.precision),
        }
        return {
            name: [values[start:end].tobytes() for start, end in zip([0, *ends], ends, strict=False)]
            for name, values in columns.items()
        }


def sparse_rows(logits: Tensor, kept: Kept, generator: torch.Generator) -> SparseRows:
    """Return the most likely classes of some rows, followed by classes sampled from the others.

    Sampled classes are only in `indices`: each stands for an equal part of the remaining probability.
    """
    rows = SparseRows.of(logits, kept.top, kept.temperature)
    if not kept.tail:
        return rows
    others = (logits.float() / kept.temperature).scatter(-1, rows.indices, -torch.inf).softmax(-1)
    drawn = others.new_zeros(len(logits), kept.tail, dtype=torch.int64)
    if len(logits):
        drawn = torch.multinomial(others, kept.tail, replacement=True, generator=generator)
    return SparseRows(torch.cat((rows.indices, drawn), -1), rows.log_probabilities, rows.remaining, kept.temperature)


def top_rows(side: Side, kept: Kept, generator: torch.Generator) -> SparseRows:
    """Return the sparse rows of a model, without computing all logits at once."""
    # All classes of a chunk are sorted, which takes several times the memory of the chunk.
    budget = min(ELSEWHERE, CHUNK_BYTES.get(side.hidden.device.type, ELSEWHERE))
    chunk = max(1, min(budget // (4 * side.width), len(side.hidden)))
    projector = Projector(side)
    parts = [
        sparse_rows(side.finish(projector.raw(part)), kept, generator) for part in slices(0, len(side.hidden), chunk)
    ] or [sparse_rows(side.hidden.new_zeros(0, kept.classes), kept, generator)]
    indices, log_probabilities, remaining = (torch.cat([getattr(part, name) for part in parts]) for name in SPARSE)
    return SparseRows(indices, log_probabilities, remaining, kept.temperature)
