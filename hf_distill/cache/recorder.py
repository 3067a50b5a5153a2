"""Run a teacher on a batch and return the columns to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.cache import hidden_states
from hf_distill.cache.format import SPARSE, Kept, packed
from hf_distill.data.two_tokenizers import teacher_inputs
from hf_distill.models.heads import CHUNK_BYTES, ELSEWHERE, capturing, open_head, slices
from hf_distill.models.inspection import taken_by
from hf_distill.models.mixing import mix
from hf_distill.models.projection import Projector, Side
from hf_distill.models.target_model import Targets, as_source
from hf_distill.models.target_rows import MixtureRows
from hf_distill.models.vocabulary_map import VocabularyMap
from hf_distill.rows.base import RowLayout, SparseRows, side_of
from hf_distill.rows.mixture import MixedSides, mean_outputs
from hf_distill.rows.padding import Padding

Array = np.ndarray[Any, Any]


class Recorder:
    """Runs a teacher and returns what is stored of its outputs.

    Args:
        teacher: The teacher in eval mode, on its device: a model, or a source of targets that runs several.
        layout: Row layout of the task.
        kept: What to store.
        bf16: Whether to compute under autocast to bfloat16, as training with `bf16` does.

    Attributes:
        padding: Pads batches on the side that the teacher needs.
    """

    def __init__(self, teacher: nn.Module, layout: RowLayout, kept: Kept, *, bf16: bool) -> None:
        source = as_source(teacher)
        assert source is not None
        self.source, self.layout, self.kept, self.bf16 = source, layout, kept, bf16
        heads = [open_head(one) for one in source.models.values()] if kept.is_sparse else []
        self.heads = [head for head in heads if head is not None] if None not in heads else []
        self.padding = Padding(source.models, layout, whole=bool(kept.states) or bool(self.heads))
        self._takes = {name: taken_by(one) for name, one in source.models.items()}

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], seed: int = 0) -> dict[str, list[Any]]:
        """Return the columns of the examples of a batch.

        Args:
            batch: The whole batch: in the teacher's tokens, or with them beside the student's.
            seed: Seed of the sampled classes.
        """
        read = teacher_inputs(batch)
        first = next(iter(batch.values()))
        # Sampled on the device of the logits. If the model is spread over devices, it can differ from the batch's.
        drawn_on = self.heads[0].linear.weight.device if self.heads else first.device
        generator = torch.Generator(drawn_on).manual_seed(seed)
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self.bf16), ExitStack() as stack:
            models = zip(self.source.models.values(), self.heads, strict=False)
            captured = [stack.enter_context(capturing(model, head)) for model, head in models]
            targets = self.source.targets(read, lambda name: self._run(name, read, own=read is not batch))
        states = hidden_states.record(targets.outputs, self.kept.states, self.layout, read)
        if not self.kept.is_sparse:
            return {**self._outputs(targets, batch), **states}
        if targets.rows is not None:
            places = self.layout.places(batch)
            assert places is not None
            rows = targets.rows.likeliest(self.kept.top).at(self.kept.temperature)
            return self._sparse(rows, torch.bincount(places.example, minlength=len(first)))
        if self.heads:
            places = self.layout.places(batch)
            assert places is not None
            places = places.of_teacher()
            classes, shared = getattr(self.layout, "their_classes", None), self.layout.shared(places.mask.device)
            pairs = zip(self.heads, captured, strict=True)
            sides = tuple(side_of(head, one, places, classes, shared, of_teacher=True) for head, one in pairs)
            whole = sides[0] if targets.mean is None else MixedSides(sides, targets.mean, places.example)
            rows, example = top_rows(whole, self.kept, generator, self._classes), places.example
        else:
            outputs = targets.mixed if targets.mean is not None else (targets.outputs,)
            logits: Tensor | MixtureRows
            every = [self._rows(self.layout.logits(one), batch) for one in outputs]
            example, logits = every[0]
            if targets.mean is not None:
                members = (one for _, one in every)
                logits = mix(members, targets.mean, (self.kept.temperature, 1.0), example)
            if isinstance(logits, Tensor):
                logits = self._classes(logits)
            rows = sparse_rows(logits, self.kept, generator)
        return {**self._sparse(rows, torch.bincount(example, minlength=len(first))), **states}

    def _classes(self, logits: Tensor) -> Tensor:
        """Return a teacher's logits of what is stored: its classes, or what the tokens of both models stand for."""
        mapping: VocabularyMap | None = getattr(self.layout, "mapping", None)
        return logits if mapping is None else mapping.of_teacher(logits, self.kept.temperature)

    def _rows(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the rows of a model's logits, `(rows, classes)`, and the example of each, `(rows,)`."""
        places = self.layout.places(batch)
        if places is None or places.taught is None:
            rows = self.layout.select(logits, None, batch).compared
            return rows.example, rows.student
        return places.example[places.taught], self.layout.teacher_rows(logits, batch)[places.taught]

    def _run(self, name: str, batch: Mapping[str, Tensor], *, own: bool) -> Mapping[str, Any]:
        """Run one of the source's models on a batch of its tokens.

        Args:
            name: Of the model.
            batch: What it reads.
            own: Whether the student reads other tokens.
        """
        takes = self._takes[name]
        given: dict[str, Any] = {key: value for key, value in batch.items() if key in takes}
        if "use_cache" in takes:
            given["use_cache"] = False
        if self.kept.states:
            given["output_hidden_states"] = True
        outputs: Mapping[str, Any] = self.padding.run(name, self.source.models[name], given, batch, own=own)
        return outputs

    def _outputs(self, targets: Targets, batch: Mapping[str, Tensor]) -> dict[str, list[Array]]:
        """Return the columns of whole outputs; of a mean of distributions, at each temperature."""
        made: Mapping[float, Mapping[str, Any]] = {1.0: targets.outputs}
        if targets.mean is not None:
            made = mean_outputs(self.layout, targets.mixed, targets.mean, batch, self.kept.means or (1.0,))
        return {
            self.kept.column(name, at): self._whole(outputs[name], batch)
            for at, outputs in made.items()
            for name in self.kept.outputs
        }

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


def sparse_rows(given: Tensor | MixtureRows, kept: Kept, generator: torch.Generator) -> SparseRows:
    """Return the most likely classes of some rows, followed by classes sampled from the others.

    Sampled classes are only in `indices`: each stands for an equal part of the remaining probability.

    Args:
        given: Logits, or the mean of several teachers.
        kept: What is stored.
        generator: Of what is sampled.
    """
    logits = given if isinstance(given, Tensor) else given.at(kept.temperature)
    rows = SparseRows.of(logits, kept.top, kept.temperature)
    if kept.means and not isinstance(given, Tensor):
        rows = rows.beginning_with(given.top_class())
    if not kept.tail:
        return rows
    others = (logits.float() / kept.temperature).scatter(-1, rows.indices, -torch.inf).softmax(-1)
    drawn = others.new_zeros(len(logits), kept.tail, dtype=torch.int64)
    if len(logits):
        drawn = torch.multinomial(others, kept.tail, replacement=True, generator=generator)
    return SparseRows(torch.cat((rows.indices, drawn), -1), rows.log_probabilities, rows.remaining, kept.temperature)


def top_rows(
    side: Side | MixedSides, kept: Kept, generator: torch.Generator, change: Callable[[Tensor], Tensor]
) -> SparseRows:
    """Return the sparse rows of a model, or of the mean of several, without computing all logits at once.

    Args:
        side: The model, or several.
        kept: What is stored.
        generator: Of what is sampled.
        change: Makes of the logits of one model those of the classes that are stored.
    """
    first = side.sides[0] if isinstance(side, MixedSides) else side
    # All classes of a chunk are sorted, which takes several times the memory of the chunk.
    budget = min(ELSEWHERE, CHUNK_BYTES.get(first.hidden.device.type, ELSEWHERE))
    chunk = max(1, min(budget // (4 * first.width), len(first.hidden)))
    single = Projector(first)

    def logits(part: slice) -> Tensor | MixtureRows:
        if isinstance(side, MixedSides):
            return side.rows(part, (kept.temperature, 1.0))
        return change(side.finish(single.raw(part)))

    parts = [sparse_rows(logits(part), kept, generator) for part in slices(0, len(first.hidden), chunk)] or [
        sparse_rows(first.hidden.new_zeros(0, kept.classes), kept, generator)
    ]
    indices, log_probabilities, remaining = (torch.cat([getattr(part, name) for part in parts]) for name in SPARSE)
    return SparseRows(indices, log_probabilities, remaining, kept.temperature)
