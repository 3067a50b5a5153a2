"""Runs the student in several formats on the same rows, and compares what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.data.example_columns import inputs_of
from hf_distill.models.inspection import taken_by
from hf_distill.models.sentence_encoder import sequences
from hf_distill.objectives import Labels
from hf_distill.tasks.evaluator import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hf_distill.export import Session
    from hf_distill.tasks import Prepared

# Inputs (numpy, `(batch, tokens)` each) -> outputs by name.
Call = Callable[[Mapping[str, "NDArray[Any]"]], Mapping[str, "NDArray[Any]"]]
Batch = Mapping[str, "NDArray[Any]"]
# Outputs with a value for every token, whatever their shape.
_BY_TOKEN = ("start_logits", "end_logits", "last_hidden_state")


@dataclass
class Outputs:
    """What one format gave for the rows.

    Attributes:
        difference: Largest absolute difference of an output from that of the first format; padding does not count.
        largest: Largest absolute value of an output of the first format.
        agreed: Number of the layout's rows with the same class as in the first format.
        compared: Number of the layout's rows.
        logits: As the evaluator takes them, batch by batch; empty if it needs none.
        labels: Labels of the rows, batch by batch; empty if there are none.
        losses: Sum and number of label losses of each example, batch by batch.
    """

    difference: float = 0.0
    largest: float = 0.0
    agreed: float = 0.0
    compared: float = 0.0
    logits: list[NDArray[Any]] = field(default_factory=list)
    labels: list[NDArray[Any]] = field(default_factory=list)
    losses: list[NDArray[Any]] = field(default_factory=list)

    def predictions(self) -> Predictions:
        """Return them as an evaluator takes them."""
        return Predictions(_joined(self.logits), _joined(self.labels), np.concatenate(self.losses))


def from_model(model: Any) -> Call:
    """Return a PyTorch model on the CPU as a function of arrays."""
    names = taken_by(model)  # once: to find them out in each call would be counted as time of the model

    def call(batch: Batch) -> Batch:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(value) for name, value in batch.items() if name in names})
        return {name: value.numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}

    return call


def batches(prepared: Prepared, rows: Sequence[int], size: int) -> Iterator[dict[str, Any]]:
    """Yield the eval rows of these numbers as collated batches."""
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        yield dict(prepared.collator([inputs_of(prepared.eval[int(row)]) for row in chosen]))


def arrays(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the inputs of these names, one text a row: all first texts of a batch, then all second ones."""
    return {name: np.ascontiguousarray(sequences(batch[name]).numpy()) for name in names if name in batch}


def run(
    prepared: Prepared, calls: Mapping[str, Call], names: Sequence[str], rows: Sequence[int], size: int
) -> dict[str, Outputs]:
    """Run all formats on the same batches.

    Args:
        prepared: The data.
        calls: Name -> format; the others are compared with the first one.
        names: Names of the inputs.
        rows: Numbers of eval rows.
        size: Rows of a batch.
    """
    found = {name: Outputs() for name in calls}
    for batch in batches(prepared, rows, size):
        inputs = arrays(batch, names)
        several = batch["input_ids"].shape[1] if batch["input_ids"].dim() == 3 else 0
        first: Mapping[str, Any] | None = None
        of_first: Tensor | None = None
        for name, call in calls.items():
            raw = call(inputs)
            logits = prepared.layout.logits(_grouped(raw, several))
            _add(found[name], prepared, batch, logits)
            if first is None or of_first is None:
                first, of_first = raw, logits
                continue
            _compare(found[name], prepared.layout.outputs, inputs, raw, first)
            _agree(found[name], prepared, batch, logits, of_first)
    return found


def _grouped(raw: Batch, several: int) -> dict[str, Tensor]:
    """Return outputs as the row layout takes them: with the texts of an example side by side."""
    made = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in raw.items()}
    if several and "sentence_embedding" in made:
        vectors = made["sentence_embedding"]
        made["sentence_embedding"] = vectors.reshape(several, -1, vectors.shape[-1]).transpose(0, 1)
    return made


def _add(outputs: Outputs, prepared: Prepared, batch: Mapping[str, Any], logits: Tensor) -> None:
    layout = prepared.layout
    rows = layout.select(logits, None, batch)
    losses = rows.sum_by_example(Labels().rows(rows.student, None, rows.labels))
    outputs.losses.append(np.stack([losses.double().numpy(), layout.counts(batch)["label"].double().numpy()], -1))
    if prepared.evaluator.needs_logits:
        outputs.logits.append(logits.numpy())
        if (labels := layout.labels(batch)) is not None:
            outputs.labels.append(labels.numpy())


def _compare(outputs: Outputs, names: Sequence[str], inputs: Batch, ours: Batch, theirs: Batch) -> None:
    for name in names:
        one, other = ours[name], theirs[name]
        if name in _BY_TOKEN or one.ndim == 3:
            kept = inputs["attention_mask"].astype(bool)
            one, other = one[kept], other[kept]
        outputs.difference = max(outputs.difference, largest(one - other))
        outputs.largest = max(outputs.largest, largest(other))


def largest(values: NDArray[Any]) -> float:
    """Return the largest absolute value; infinite if one is not a number."""
    found = float(np.abs(values).max(initial=0.0))
    return found if np.isfinite(found) else float("inf")


def _agree(outputs: Outputs, prepared: Prepared, batch: Mapping[str, Any], ours: Tensor, theirs: Tensor) -> None:
    layout = prepared.layout
    if not layout.has_classes:
        return
    one, other = (layout.select(logits, None, batch).student for logits in (ours, theirs))
    same = one.argmax(-1) == other.argmax(-1)
    outputs.agreed += float(same.sum())
    outputs.compared += same.numel()


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """Return batches one after another; those with fewer tokens are filled with -100, as `Trainer` does."""
    if not parts:
        return None
    if parts[0].ndim < 2:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    filled = [
        np.pad(part, [(0, 0), (0, longest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)], constant_values=-100)
        for part in parts
    ]
    return np.concatenate(filled)


def alone(session: Session, batch: Batch, names: Sequence[str]) -> float:
    """Return the largest difference of an output between rows that are padded to a batch and the same rows alone."""
    together, worst = session(batch), 0.0
    for row, kept in enumerate(batch["attention_mask"].astype(bool)):
        single = session({name: value[row : row + 1, kept] for name, value in batch.items()})
        for name in names:
            one, other = single[name][0], together[name][row]
            if name in _BY_TOKEN or together[name].ndim == 3:
                other = other[kept]
            worst = max(worst, largest(one - other))
    return worst
