"""The rows of several teachers, of which students learn the mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.heads import slices
from hf_distill.models.mixing import Mean, Mixer, mix
from hf_distill.models.projection import Projector, Side
from hf_distill.models.target_rows import MixtureRows, upcast
from hf_distill.rows.base import IMPOSSIBLE, RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.spans import CONTEXT_MASK, SpanRows


def mixture(
    layout: RowLayout,
    outputs: Iterable[Mapping[str, Any]],
    mean: Mean,
    inputs: Mapping[str, Tensor],
    temperatures: Iterable[float],
    example: Tensor,
) -> Tensor | MixtureRows:
    """Return the rows of a batch: the mean of distributions or logits, of regression the mean of values.

    Args:
        layout: Which logits count.
        outputs: Of every teacher.
        mean: How they are averaged.
        inputs: The batch.
        temperatures: At which objectives compare.
        example: Index in the batch of the example of each row, `(rows,)`.
    """
    members = (layout.teacher_rows(layout.logits(one).detach(), inputs) for one in outputs)
    return mean_rows(layout, members, mean, temperatures, example)


def mean_rows(
    layout: RowLayout,
    members: Iterable[Tensor],
    mean: Mean,
    temperatures: Iterable[float],
    example: Tensor | None = None,
) -> Tensor | MixtureRows:
    """Return the mean of rows, each `(rows, classes)`: of distributions or logits, of regression the mean of values.

    Args:
        layout: Which logits count.
        members: Of every teacher, the rows of the same batch.
        mean: How they are averaged.
        temperatures: At which objectives compare.
        example: Index in the batch of the example of each row, `(rows,)`; needed for weights by example.
    """
    if layout.has_classes:
        return mix(members, mean, temperatures, example)

    def weighted() -> Iterator[Tensor]:
        for member, values in enumerate(members):
            weight = mean.weight(member, example)
            yield values.detach() * (weight.to(values).unsqueeze(-1) if isinstance(weight, Tensor) else weight)

    return torch.stack(list(weighted())).sum(0)


def softened(
    layout: RowLayout, outputs: Mapping[float, Mapping[str, Any]], inputs: Mapping[str, Tensor]
) -> MixtureRows:
    """Return the rows of a mean of distributions from what `mean_outputs` returned, for classes.

    Args:
        layout: Which logits count.
        outputs: Temperature -> outputs.
        inputs: The batch.
    """
    rows = {one: layout.teacher_rows(layout.logits(made), inputs) for one, made in outputs.items()}
    return MixtureRows({temperature: (one / temperature).log_softmax(-1) for temperature, one in rows.items()})


def mean_outputs(
    layout: RowLayout,
    outputs: Iterable[Mapping[str, Any]],
    mean: Mean,
    inputs: Mapping[str, Any],
    temperatures: Sequence[float] = (1.0,),
) -> dict[float, dict[str, Tensor]]:
    """Return, for each temperature, the outputs of the one model that teaches the mean there.

    Its logits are `T * log sum_k w_k softmax(z_k / T)`, or the mean of logits, in the shape of a model's outputs.

    Args:
        layout: Which outputs it reads.
        outputs: Of every teacher.
        mean: How they are averaged.
        inputs: The batch.
        temperatures: The temperatures.
    """
    logits = (layout.logits(one).detach() for one in outputs)
    found = {}
    for temperature, whole in _mean_logits(layout, logits, mean, inputs, temperatures).items():
        parts = whole.unbind(-1) if len(layout.outputs) > 1 else (whole,)
        found[temperature] = dict(zip(layout.outputs, parts, strict=True))
    return found


def _mean_logits(
    layout: RowLayout,
    logits: Iterable[Tensor],
    mean: Mean,
    inputs: Mapping[str, Any],
    temperatures: Sequence[float],
) -> dict[float, Tensor]:
    """Return the logits of the mean at each temperature, in the shape of a model's logits."""

    def mixed(members: Iterable[Tensor]) -> dict[float, Tensor]:
        first, *others = members
        example = torch.arange(len(first), device=first.device).repeat_interleave(first[..., 0].numel() // len(first))
        rows = mix((one.reshape(-1, one.shape[-1]) for one in (first, *others)), mean, temperatures, example)
        return {temperature: rows.at(temperature).reshape(first.shape) for temperature in temperatures}

    if not layout.has_classes:
        every = list(logits)
        value: Any = mean_rows(layout, every, mean, (), torch.arange(len(every[0]), device=every[0].device))
        return dict.fromkeys(temperatures, value)
    if isinstance(layout, ExampleRows) and layout.kind == "binary":
        both = mixed(torch.stack((torch.zeros_like(one), one), -1) for one in map(upcast, logits))
        return {temperature: one[..., 1] - one[..., 0] for temperature, one in both.items()}
    if isinstance(layout, SpanRows):
        hidden = (inputs[CONTEXT_MASK if CONTEXT_MASK in inputs else "attention_mask"] == 0).unsqueeze(1)
        spans = mixed(upcast(one).transpose(1, 2).masked_fill(hidden, IMPOSSIBLE) for one in logits)
        return {temperature: one.transpose(1, 2) for temperature, one in spans.items()}
    return mixed(one[..., : getattr(layout, "classes", None)] for one in logits)


@dataclass(frozen=True)
class MixedSides:
    """Several teachers at their heads, of which the mean is taken.

    Attributes:
        sides: Each teacher at its head.
        mean: How they are averaged.
        example: Index in the batch of the example of each row, `(rows,)`.
    """

    sides: tuple[Side, ...]
    mean: Mean
    example: Tensor

    def rows(
        self, part: slice, temperatures: Sequence[float], block: int = 0, device: torch.device | None = None
    ) -> MixtureRows:
        """Return the mean of some rows. Teachers run in turn, so memory does not grow with their number.

        Args:
            part: Which rows.
            temperatures: The temperatures of the objectives that will use them.
            block: How many rows are softened together; all of them if 0.
            device: Where to put the result; None for the device of the first head.
        """
        mixer = Mixer(self.mean, temperatures, self.example[part])
        for member, side in enumerate(self.sides):
            raw = Projector(side).raw(part)
            for rows in slices(0, len(raw), block or max(1, len(raw))):
                mixer.add(member, side.finish(raw[rows]).to(device), rows, len(raw))
            del raw
        return mixer.rows()
