"""Rows of a teacher that are not all of its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def upcast(logits: Tensor) -> Tensor:
    """Return logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class SparseRows:
    """A teacher's rows of which the likeliest classes were stored, and the mass of the others.

    Attributes:
        indices: Which classes, `(rows, k)`; different ones within a row, but for those that were drawn.
        log_probabilities: Theirs, `(rows, k)`.
        remaining: Logarithm of the mass of all other classes, `(rows,)`; -inf where none is left.
        temperature: The one at which they were taken. The logits are gone, so it is the only one they can be used at.
        drawn: How many of the classes, the last ones, were drawn to stand for a part of all others each.
    """

    indices: Tensor
    log_probabilities: Tensor
    remaining: Tensor
    temperature: float = 1.0
    drawn: int = 0

    @classmethod
    def of(cls, logits: Tensor, classes: int, temperature: float = 1.0) -> SparseRows:
        """Keep the likeliest `classes` of every row.

        >>> kept = SparseRows.of(torch.tensor([[0.5, 0.3, 0.2]]).log(), 2)
        >>> kept.indices, kept.log_probabilities.exp(), kept.remaining.exp()
        (tensor([[0, 1]]), tensor([[0.5000, 0.3000]]), tensor([0.2000]))
        """
        log_probabilities = (upcast(logits.detach()) / temperature).log_softmax(-1)
        kept, indices = log_probabilities.topk(min(classes, logits.shape[-1]))
        remaining = log_probabilities.scatter(-1, indices, -torch.inf).logsumexp(-1)
        return cls(indices, kept, remaining, temperature)

    def __getitem__(self, rows: slice) -> SparseRows:
        """Return some of the rows."""
        kept = (self.indices[rows], self.log_probabilities[rows], self.remaining[rows])
        return SparseRows(*kept, self.temperature, self.drawn)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.remaining)

    def top_class(self) -> Tensor:
        """Return the likeliest class of every row, `(rows,)`."""
        own = self.log_probabilities[:, : self.log_probabilities.shape[-1] - self.drawn]
        return self.indices.gather(-1, own.argmax(-1, keepdim=True)).squeeze(-1)
