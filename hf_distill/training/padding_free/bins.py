"""Bins: several examples of a padded batch in one row, and the position of each of their tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

# Number of widths that are tried besides that of the longest example. Few batches gain by more, and each takes time.
WIDTHS = 4


@dataclass(frozen=True)
class Bins:
    """A padded batch `(batch, tokens)` rearranged into fewer rows `(rows, width)`, with several examples in a row.

    An example stays in one piece, from its first real token to its last, so that what depends on the distance of two
    tokens (a sliding window, a relative position) does not change. A cell without a token of an example is empty: it
    holds a copy of some token, which is ignored.

    Attributes:
        batch: Number of examples.
        tokens: Width of the padded batch.
        rows: Number of rows of the bins.
        width: Number of cells in a row.
        source: Token of every cell, as an index into `batch * tokens`: `(rows * width,)`.
        owner: The example of every cell, `(rows, width)`; a different negative number for each empty cell.
        cells: Indices of the cells that are not empty, `(real tokens,)`.
        places: Indices of their tokens in the padded batch, in the same order.
        left: Whether an example begins with padding.
        right: Whether an example ends with padding.
    """

    batch: int
    tokens: int
    rows: int
    width: int
    source: Tensor
    owner: Tensor
    cells: Tensor
    places: Tensor
    left: bool
    right: bool

    @property
    def share(self) -> float:
        """Number of cells, divided by the number of positions of the padded batch."""
        return self.rows * self.width / (self.batch * self.tokens)

    @cached_property
    def example(self) -> Tensor:
        """The example of the token in every cell, `(rows, width)`."""
        return (self.source // self.tokens).view(self.rows, self.width)

    @cached_property
    def position(self) -> Tensor:
        """The position in the padded batch of the token in every cell, `(rows, width)`."""
        return (self.source % self.tokens).view(self.rows, self.width)

    @cached_property
    def together(self) -> Tensor:
        """Which cells of a row belong to the same example, bool `(rows, 1, width, width)`."""
        return (self.owner.unsqueeze(1) == self.owner.unsqueeze(2)).unsqueeze(1)

    @cached_property
    def alone(self) -> Tensor:
        """Pairs of an empty cell with itself, bool `(rows, 1, width, width)`.

        Empty cells must attend to something: a softmax over nothing is NaN, and would make gradients NaN.
        """
        return self.together & (self.owner < 0).view(self.rows, 1, self.width, 1)

    def to(self, device: torch.device, non_blocking: bool = False) -> Bins:
        """Return the bins with their tensors on a device; accelerate calls this for every value of a batch."""
        if self.source.device == device:
            return self
        return self._changed(lambda one: one.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Bins:
        """Return the bins in pinned memory; a `DataLoader` calls this."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Bins:
        source, owner, cells, places = map(change, (self.source, self.owner, self.cells, self.places))
        return replace(self, source=source, owner=owner, cells=cells, places=places)

    # ---- Moving tensors ----

    def gather(self, values: Tensor) -> Tensor:
        """Return values per token, `(batch or 1, tokens, ...)`, as values per cell, `(rows, width, ...)`."""
        if len(values) == 1 < self.batch:
            chosen = values[0].index_select(0, self.position.reshape(-1))
        else:
            chosen = values.flatten(0, 1).index_select(0, self.source)
        return chosen.view(self.rows, self.width, *values.shape[2:])

    def scatter(self, values: Tensor) -> Tensor:
        """Return values per cell, `(rows, width, ...)`, as `(batch, tokens, ...)`, with zeros for padding."""
        real = values.flatten(0, 1).index_select(0, self.cells)
        padded = values.new_zeros(self.batch * self.tokens, *values.shape[2:])
        return padded.index_copy_(0, self.places, real).view(self.batch, self.tokens, *values.shape[2:])

    def gather_mask(self, mask: Tensor) -> Tensor:
        """Return an attention mask or bias for the bins: as before within an example, blocked between examples.

        Args:
            mask: `(batch, heads or 1, tokens or 1, tokens)`: bool or integers, where 0 blocks attention; or float,
                added to the scores.

        Returns:
            `(rows, heads or 1, width, width)`, of the same kind.
        """
        mask = mask.expand(-1, -1, self.tokens, -1)
        # Rows first, then columns: an index of all entries at once would take eight bytes per entry.
        queries = mask.transpose(1, 2).flatten(0, 1).index_select(0, self.source)
        heads = queries.shape[1]
        keys = self.position.view(self.rows, 1, 1, self.width).expand(-1, self.width, heads, -1)
        moved = queries.view(self.rows, self.width, heads, self.tokens).gather(3, keys).transpose(1, 2)
        if mask.dtype == torch.bool:
            return (moved & self.together) | self.alone
        blocked, open_ = (torch.finfo(mask.dtype).min, 0.0) if mask.is_floating_point() else (0, 1)
        return moved.masked_fill(~self.together, blocked).masked_fill(self.alone, open_)

    def gather_distances(self, values: Tensor) -> Tensor:
        """Return values that depend only on the distance of two positions, `(1, ..., tokens, tokens)`, for the bins.

        Returns:
            `(1, ..., width, width)`.
        """
        last = self.tokens - 1
        line = torch.cat((values[..., :, 0].flip(-1), values[..., 0, 1:]), -1)
        place = torch.arange(self.width, device=values.device)
        # Tokens of one example are never further apart; attention between two examples is blocked anyway.
        distance = (place - place.unsqueeze(1)).clamp(-last, last)
        return line[..., distance + last]


def arrange(attended: Tensor, hidden: int = 512, widest: int | None = None) -> Bins | None:
    """Return the bins for a batch; None if they would save nothing, or if an example has no token.

    Best-fit decreasing: the longest example first, each into the fullest row that has room. The rows are as wide as
    the longest example, or wider if that costs less: a cell costs `1 + width / (4 * hidden)`, where the second part is
    attention over the whole row.

    Args:
        attended: Which tokens are not padding, `(batch, tokens)`, on a CPU. Padding may be anywhere.
        hidden: Width of the model.
        widest: Largest number of cells in a row, unless an example is longer; None for any number.

    >>> bins = arrange(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]))
    >>> bins.rows, bins.width, bins.owner.tolist()
    (2, 4, [[0, 0, 0, 0], [1, 1, 2, 2]])
    """
    batch, tokens = attended.shape
    real = attended.to(torch.int8)
    starts: list[int] = real.argmax(-1).tolist()  # argmax returns the first of equal values
    ends: list[int] = (tokens - real.flip(-1).argmax(-1)).tolist()
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    if not bool(real.any(-1).all()) or sum(lengths) == batch * tokens:
        return None
    width, bins = _narrowest(lengths, hidden, widest)
    if len(bins) * width >= batch * tokens:
        return None
    order, firsts = [], []
    for row, members in enumerate(bins):
        cell = row * width
        for example in members:
            order.append(example)
            firsts.append(cell)
            cell += lengths[example]
    length, start, first = torch.tensor(
        [(lengths[one], starts[one], cell) for one, cell in zip(order, firsts, strict=True)]
    ).T
    whose = torch.tensor(order).repeat_interleave(length)
    within = torch.arange(len(whose)) - (length.cumsum(0) - length).repeat_interleave(length)
    places = whose * tokens + start.repeat_interleave(length) + within
    cells = first.repeat_interleave(length) + within
    source = torch.full((len(bins) * width,), int(places[0]))
    owner = -1 - torch.arange(len(bins) * width)
    source[cells], owner[cells] = places, whose
    return Bins(
        batch, tokens, len(bins), width, source, owner.view(-1, width), cells, places,
        left=any(starts), right=min(ends) < tokens,
    )  # fmt: skip


def _narrowest(lengths: Sequence[int], hidden: int, widest: int | None) -> tuple[int, list[list[int]]]:
    """Return the width that costs least, and the examples of each row."""
    longest, total = max(lengths), sum(lengths)
    best = longest, fill(lengths, longest)
    least = _cost(len(best[1]) * longest, longest, hidden)
    for rows in range(len(best[1]) - 1, max(0, len(best[1]) - 1 - WIDTHS), -1):
        width = max(longest, ceil(total / rows))
        if (widest is not None and width > widest) or _cost(total, width, hidden) >= least:
            break
        bins = fill(lengths, width)
        if (cost := _cost(len(bins) * width, width, hidden)) < least:
            best, least = (width, bins), cost
    return best


def _cost(cells: int, width: int, hidden: int) -> float:
    return cells * (1 + width / (4 * hidden))


def fill(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the examples of each row: the longest first, each into the fullest row with room for it.

    >>> fill([2, 5, 3, 1], 5)
    [[1], [2, 0], [3]]
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for example in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        at = bisect_left(rooms, (lengths[example], -1))
        if at == len(rooms):
            room, row = width, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(at)
        rows[row].append(example)
        insort(rooms, (room - lengths[example], row))
    return rows
