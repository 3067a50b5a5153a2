"""Rows of a teacher that are not all of its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def upcast(logits: Tensor) -> Tensor:
    """Return logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# Columns that `top_class` looks at as one.
_STRIDE = 64


def top_class(logits: Tensor) -> Tensor:
    """Return the likeliest class of every row, `(rows,)`: `argmax`, the first of equals.

    Over a whole vocabulary the place of a maximum takes ten times as long to find as its value. Hence first among the
    maxima of blocks of columns, then within one block.

    >>> top_class(torch.tensor([[0.0, 2.0, 2.0]]))
    tensor([1])
    """
    whole = logits.shape[-1] // _STRIDE * _STRIDE
    if whole < 16 * _STRIDE:
        return logits.argmax(-1)
    blocks = logits[:, :whole].view(len(logits), whole // _STRIDE, _STRIDE)
    highest, block = blocks.amax(-1).max(-1, keepdim=True)
    within = blocks.take_along_dim(block.unsqueeze(-1), 1).squeeze(1).argmax(-1, keepdim=True)
    top: Tensor = block * _STRIDE + within
    if whole < logits.shape[-1]:
        last, place = logits[:, whole:].max(-1, keepdim=True)
        top = torch.where((last > highest) | (last.isnan() & ~highest.isnan()), place + whole, top)
    return top.squeeze(-1)


@dataclass(frozen=True)
class SparseRows:
    """A teacher's rows of which the likeliest classes were stored, and the mass of the others.

    Attributes:
        indices: Which classes, `(rows, k)`; different ones within a row, but for those that were drawn.
        log_probabilities: Theirs, `(rows, k)`.
        remaining: Logarithm of the mass of all other classes, `(rows,)`; -inf where none is left.
        temperature: The one at which they were taken. The logits are gone, so it is the only one they can be used at.
        drawn: How many of the classes, the last ones, were drawn to stand for a part of all others each.
        ordered: Whether the first class is the likeliest at temperature 1, which for a mean of several teachers may be
            another one than here.
        written: Log-probability of the token that stands in the text, `(rows,)`, be it among the classes or not; None
            where it is not known. It may be all that a teacher gives: then there are no classes, and `remaining` is 0.
    """

    indices: Tensor
    log_probabilities: Tensor
    remaining: Tensor
    temperature: float = 1.0
    drawn: int = 0
    ordered: bool = False
    written: Tensor | None = None

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

    def beginning_with(self, classes: Tensor) -> SparseRows:
        """Return the same with one of the classes of every row first, `(rows,)`, if it is there."""
        order = (self.indices != classes.unsqueeze(-1)).int().argsort(dim=-1, stable=True)
        kept = (self.indices.gather(-1, order), self.log_probabilities.gather(-1, order))
        return replace(self, indices=kept[0], log_probabilities=kept[1], ordered=True)

    def __getitem__(self, rows: slice | Tensor) -> SparseRows:
        """Return some of the rows."""
        kept = (self.indices[rows], self.log_probabilities[rows], self.remaining[rows])
        written = None if self.written is None else self.written[rows]
        return SparseRows(*kept, self.temperature, self.drawn, self.ordered, written)

    def likeliest(self, classes: int) -> SparseRows:
        """Return the same with fewer classes, the likeliest of those that are there; the mass of the others remains."""
        if classes >= self.indices.shape[-1]:
            return self
        kept, order = self.log_probabilities.topk(classes)
        others = self.log_probabilities.scatter(-1, order, -torch.inf)
        remaining = torch.cat((others, self.remaining.unsqueeze(-1)), -1).logsumexp(-1)
        return replace(self, indices=self.indices.gather(-1, order), log_probabilities=kept, remaining=remaining)

    def at(self, temperature: float) -> SparseRows:
        """Return the rows at another temperature, which can be computed where all classes are there; no `written` then.

        Raises:
            ValueError: They are not.

        >>> whole = SparseRows.of(torch.tensor([[0.5, 0.3, 0.2]]).log(), 3)
        >>> whole.at(2.0).log_probabilities.exp()
        tensor([[0.4154, 0.3218, 0.2628]])
        """
        if temperature == self.temperature:
            return self
        if not bool(self.remaining.isneginf().all()):
            raise ValueError(f"rows at temperature {self.temperature:g} cannot be softened: their tail is one number.")
        softened = (self.log_probabilities * (self.temperature / temperature)).log_softmax(-1)
        return replace(self, log_probabilities=softened, temperature=temperature, written=None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.remaining)

    def for_rows(self, count: int, taught: Tensor | None = None) -> SparseRows:
        """Return one row for each of a batch; one in which all classes are as likely where none was stored.

        Args:
            count: Number of rows of the batch.
            taught: For which of them there is a stored row, bool `(count,)`; None for all.

        Raises:
            ValueError: There are not as many.
        """
        if (wanted := count if taught is None else int(taught.sum())) != len(self):
            raise ValueError(f"the batch has {wanted} rows, and the cache {len(self)} for them.")
        if taught is None:
            return self
        width = self.indices.shape[-1]
        blank = SparseRows(
            torch.arange(width, device=self.indices.device).unsqueeze(0),
            self.log_probabilities.new_full((1, width), -math.log(width + 1)),
            self.remaining.new_full((1,), -math.log(width + 1)),
        )
        place = torch.where(taught, taught.cumsum(0) - 1, len(self))
        indices, log_probabilities, remaining = (
            torch.cat((getattr(self, name), getattr(blank, name)))[place]
            for name in ("indices", "log_probabilities", "remaining")
        )
        return SparseRows(indices, log_probabilities, remaining, self.temperature, self.drawn, self.ordered)

    def top_class(self) -> Tensor:
        """Return the likeliest class of every row, `(rows,)`; -1 where no class is known."""
        if not self.indices.shape[-1]:
            return self.remaining.new_full((len(self),), -1, dtype=torch.long)
        if self.ordered:
            return self.indices[:, 0]
        own = self.log_probabilities[:, : self.log_probabilities.shape[-1] - self.drawn]
        return self.indices.gather(-1, own.argmax(-1, keepdim=True)).squeeze(-1)

    @property
    def numbers(self) -> Tensor:
        """Numbers of every row, one of which is not finite where the teacher's logits are not, `(rows, k)`."""
        if self.written is None:
            return self.log_probabilities
        return torch.cat((self.written.unsqueeze(-1), self.log_probabilities), -1)


@dataclass(frozen=True)
class MixtureRows:
    """Rows of several teachers: the weighted mean of their distributions, each softened before it is averaged.

    At temperature `T` they are those of one teacher whose logits are `T * log sum_k w_k softmax(z_k / T)`: an objective
    that divides these by `T` compares exactly with the mean. At another temperature they are other logits, so they are
    made for each one that is asked for.

    Attributes:
        log_means: Temperature -> `log sum_k w_k softmax(z_k / T)`, `(rows, classes)`, float32 or better.
        logits: The mean of logits, `(rows, classes)`, where that was taken: it is right at every temperature.
    """

    log_means: Mapping[float, Tensor]
    logits: Tensor | None = None

    def at(self, temperature: float) -> Tensor:
        """Return what takes the place of one teacher's logits at a temperature, `(rows, classes)`."""
        if self.logits is not None:
            return self.logits
        if temperature not in self.log_means:
            known = ", ".join(f"{one:g}" for one in self.log_means)
            raise ValueError(f"the mean of the teachers was taken at temperature {known}, not at {temperature:g}.")
        return self.log_means[temperature] * temperature

    def map(self, change: Callable[[Tensor], Tensor]) -> MixtureRows:
        """Return other rows or columns of it."""
        logits = None if self.logits is None else change(self.logits)
        return MixtureRows({temperature: change(one) for temperature, one in self.log_means.items()}, logits)

    def __getitem__(self, rows: slice | Tensor) -> MixtureRows:
        """Return some of the rows."""
        return self.map(lambda one: one[rows])

    def top_class(self) -> Tensor:
        """Return the likeliest class of every row at temperature 1, `(rows,)`."""
        return top_class(self.at(1.0))

    @property
    def numbers(self) -> Tensor:
        """Numbers of every row, one of which is not finite where a teacher's logits are not, `(rows, classes)`."""
        return self.at(1.0)


# What a teacher gives of the rows of a batch: logits, or one of these in their place.
TeacherRows = Tensor | SparseRows | MixtureRows
