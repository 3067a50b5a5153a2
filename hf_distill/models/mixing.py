"""The mean of several teachers: of their distributions or of their logits, weighted for each run, example or row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_distill.models.target_rows import MixtureRows, upcast

# What is averaged.
Combine = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Mean:
    """How several teachers are averaged.

    Attributes:
        weights: Weight of each teacher, which sum to 1: the same for all examples, or `(batch, teachers)`.
        of: What is averaged. Of `probabilities`, each distribution is softened first: `sum_k w_k softmax(z_k / T)`. Of
            `logits`, `softmax(sum_k w_k z_k / T)`, which is the normalised geometric mean of the same distributions.
        by_confidence: Multiply each weight, in every row, by `exp(-H(softmax(z_k)))`, where `H` is the entropy: one
            over the number of classes between which a teacher hesitates. The weights of a row then sum to 1 again.
    """

    weights: tuple[float, ...] | Tensor
    of: Combine = "probabilities"
    by_confidence: bool = False

    def weight(self, member: int, example: Tensor | None) -> Tensor | float:
        """Return the weight of a teacher, of each row if it differs between examples, `(rows,)`.

        Args:
            member: Number of the teacher, from 0.
            example: Index in the batch of the example of each row, `(rows,)`.
        """
        if not isinstance(self.weights, Tensor):
            return self.weights[member]
        assert example is not None
        return self.weights[:, member].to(example.device)[example]

    def in_words(self, names: Sequence[str], *, classes: bool) -> dict[str, str]:
        """Return how teachers are averaged, for a report: of what, and by which weights.

        Args:
            names: What the report calls the teachers.
            classes: Whether they give distributions; if not, values are averaged.
        """
        what = f"mean of the {self.of if classes else 'values'}"
        if self.by_confidence:
            return {"combined": f"{what}, weighted in each row by exp(-entropy)"}
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(names, self.weights, strict=True))
        return {"combined": what, "weights": weights}


class Mixer:
    """Averages rows of logits teacher by teacher, so that no more than one of them need be there at a time.

    Args:
        mean: How they are averaged.
        temperatures: Every temperature at which the mean of distributions will be asked for.
        example: Index in the batch of the example of each row, `(rows,)`; needed for weights by example.
    """

    def __init__(self, mean: Mean, temperatures: Iterable[float], example: Tensor | None = None) -> None:
        self._mean, self._example = mean, example
        self._temperatures = tuple(dict.fromkeys(temperatures)) if mean.of == "probabilities" else ()
        self._log_means: dict[float, Tensor] = {}
        self._logits: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, member: int, logits: Tensor, rows: slice = slice(None), count: int | None = None) -> None:
        """Add some rows of a teacher; every row of every teacher once.

        Args:
            member: Number of the teacher, from 0.
            logits: `(rows, classes)`, in any precision.
            rows: Which rows these are.
            count: Number of all rows; None if these are all.
        """
        logits = upcast(logits.detach())
        example = None if self._example is None else self._example[rows].to(logits.device)
        log_weight = self._log_weight(member, logits, example)
        shape = (len(logits) if count is None else count, logits.shape[-1])
        if self._mean.by_confidence:
            if self._total is None:
                self._total = logits.new_full(shape[:1], -torch.inf)
            _add(self._total[rows], torch.as_tensor(log_weight).expand(len(logits)))
        share = log_weight.unsqueeze(-1) if isinstance(log_weight, Tensor) else log_weight
        for temperature in self._temperatures:
            if temperature not in self._log_means:
                self._log_means[temperature] = logits.new_full(shape, -torch.inf)
            _add(self._log_means[temperature][rows], (logits / temperature).log_softmax(-1) + share)
        if self._mean.of == "logits":
            if self._logits is None:
                self._logits = logits.new_zeros(shape)
            weight = torch.as_tensor(share, dtype=logits.dtype, device=logits.device).exp()
            self._logits[rows] += torch.where(weight > 0, weight * logits, 0.0)  # without weight, even -inf is nothing

    def _log_weight(self, member: int, logits: Tensor, example: Tensor | None) -> Tensor | float:
        """Return the logarithm of a teacher's weight, of each row where they differ, `(rows,)`."""
        weight = self._mean.weight(member, example)
        if isinstance(weight, Tensor):
            log_weight: Tensor | float = weight.to(logits).log()
        else:
            log_weight = math.log(weight) if weight else -math.inf
        if not self._mean.by_confidence:
            return log_weight
        entropy: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
        return log_weight - entropy

    def rows(self) -> MixtureRows:
        """Return the mean of all that was added."""
        if self._total is not None:
            total = self._total.unsqueeze(-1)
            for mean in self._log_means.values():
                mean -= total
            if self._logits is not None:
                self._logits /= total.exp()
        return MixtureRows(self._log_means, self._logits)


def _add(sums: Tensor, values: Tensor) -> None:
    """Add exponentials: `sums <- log(exp(sums) + exp(values))`, in place."""
    torch.logaddexp(sums, values, out=sums)


def mix(
    members: Iterable[Tensor], mean: Mean, temperatures: Iterable[float], example: Tensor | None = None
) -> MixtureRows:
    """Return the mean of the rows of several teachers, which are asked for one after the other.

    Args:
        members: Logits of each teacher, `(rows, classes)`.
        mean: How they are averaged.
        temperatures: Every temperature that will be asked for.
        example: Index in the batch of the example of each row, `(rows,)`; needed for weights by example.

    >>> members = [torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()]
    >>> mix(members, Mean((0.5, 0.5)), (1.0,)).at(1.0).exp()
    tensor([[0.4000, 0.6000]])
    >>> mix(members, Mean((0.5, 0.5), of="logits"), ()).at(1.0).softmax(-1)
    tensor([[0.3798, 0.6202]])
    >>> mix(members, Mean((0.5, 0.5), by_confidence=True), (1.0,)).at(1.0).exp()
    tensor([[0.3828, 0.6172]])
    """
    mixer = Mixer(mean, temperatures, example)
    for member, logits in enumerate(members):
        mixer.add(member, logits)
    return mixer.rows()
