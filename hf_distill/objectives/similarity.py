"""How alike the layers of two models are (linear CKA), and which ones to pair by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distill.errors import UserError

# Tokens kept of a sequence, evenly spread: enough to tell layers apart, and little memory even for wide models.
TOKENS = 16


def linear_cka(student: Tensor, teacher: Tensor) -> Tensor:
    """Centred kernel alignment with a linear kernel, between every two of the layers of two models.

    `|Y^T X|^2 / (|X^T X| |Y^T Y|)` in Frobenius norms, the columns of `X` and `Y` centred (Kornblith et al. 2019, arXiv
    1905.00414). From 0 to 1; unchanged by rotations and by scaling of either, so widths may differ and no
    projection is needed.

    Args:
        student: States of the same tokens in every layer, `(layers, tokens, width)`.
        teacher: The same of the other model, `(layers, tokens, width)`.

    Returns:
        `(student's layers, teacher's layers)` in float64; 0 for a layer that is the same for all tokens.

    >>> states = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    >>> linear_cka(states, 3 * states)
    tensor([[1.0000]], dtype=torch.float64)
    """
    mine, theirs = _kernels(student), _kernels(teacher)
    # <X X^T, Y Y^T> = |Y^T X|^2, and tokens x tokens is smaller than width x width for every pair of layers.
    return mine @ theirs.T


def _kernels(states: Tensor) -> Tensor:
    """Return the centred kernel of every layer as a row of length 1, `(layers, tokens * tokens)`."""
    states = states.double()
    states = states - states.mean(1, keepdim=True)
    kernels = (states @ states.transpose(1, 2)).flatten(1)
    norms = kernels.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, kernels / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def best_in_order(scores: Tensor) -> list[int]:
    """Return the column for every row that gives the largest sum, the columns increasing.

    By dynamic programming. Where there are more rows than columns, they may also stay the same. Of equal sums the lower
    columns are taken.

    Args:
        scores: `(rows, columns)`.

    >>> best_in_order(torch.tensor([[0.2, 0.9, 0.1], [0.8, 0.3, 0.5]]))
    [1, 2]
    """
    table = scores.tolist()
    rows, columns = len(table), len(table[0])
    step = int(rows <= columns)  # how far the next one must be
    best = [list(table[0])]  # best[row][column]: largest sum of the rows up to here, this one at that column
    for row in table[1:]:
        before = best[-1]
        reach = [max(before[: column + 1 - step], default=-torch.inf) for column in range(columns)]
        best.append([score + most for score, most in zip(row, reach, strict=True)])
    chosen: list[int] = []
    end = columns
    for sums in reversed(best):
        among = sums[:end]
        chosen.append(among.index(max(among)))
        end = chosen[-1] + 1 - step
    return chosen[::-1]


class Similarity:
    """Collects states of a few batches and pairs layers by them.

    Args:
        student_depth: Blocks of the student.
        teacher_depth: Blocks of the teacher.
    """

    def __init__(self, student_depth: int, teacher_depth: int) -> None:
        self._states: list[list[Tensor]] = [[] for _ in range(student_depth + teacher_depth)]

    def add(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> None:
        """Keep some tokens of every sequence of a batch.

        Args:
            student: Output of every block, `(sequences, tokens, width)` each.
            teacher: The same of the other model.
            mask: Which tokens count, bool `(sequences, tokens)`.
        """
        kept = _spread(mask)
        for states, layer in zip(self._states, (*student, *teacher), strict=True):
            states.append(layer.detach()[kept.to(layer.device)].float().cpu())

    def settle(self, otherwise: tuple[tuple[int, int], ...]) -> tuple[tuple[tuple[int, int], ...], str]:
        """Return the pairs of layers, numbered from 1, and a table of what was measured; forget the states.

        Args:
            otherwise: The pairs to take where no token counted. One for each of the student's blocks.
        """
        states = [torch.cat(layer) for layer in self._states if layer]
        self._states = [[] for _ in self._states]
        if not states or not len(states[0]):
            return otherwise, f"layers: similarity has seen no token that counts; {_written(otherwise)} it is."
        mine, theirs = torch.stack(states[: len(otherwise)]), torch.stack(states[len(otherwise) :])
        for whose, layers in (("student", mine), ("teacher", theirs)):
            bad = [number for number, layer in enumerate(layers, 1) if not bool(layer.isfinite().all())]
            if bad:
                raise UserError(
                    f"layers: similarity: hidden states of the {whose}'s layer {bad[0]} are NaN or infinite, so that "
                    f"nothing is like them. Load the {whose} with dtype: float32 or bfloat16.",
                    key="layers",
                )
        scores = linear_cka(mine, theirs)
        pairs = tuple((row + 1, column + 1) for row, column in enumerate(best_in_order(scores)))
        return pairs, _table(scores, pairs, mine.shape[1])


def _spread(mask: Tensor) -> Tensor:
    """Return `mask` with at most `TOKENS` of every row, evenly spaced."""
    order = mask.cumsum(1) * mask  # 1, 2, ... for those that count
    total = mask.sum(1, keepdim=True).clamp(min=1)
    # The token at which `order * TOKENS / total` passes a whole number.
    return mask & ((order * TOKENS // total) > ((order - 1) * TOKENS // total)) if mask.numel() else mask


def _table(scores: Tensor, pairs: tuple[tuple[int, int], ...], tokens: int) -> str:
    columns = range(1, scores.shape[1] + 1)
    lines = [
        f"linear CKA of the student's layers (rows) and the teacher's (columns) on {tokens} tokens; * is chosen:",
        "     " + "".join(f"{column:>7} " for column in columns),
    ]
    for (row, chosen), values in zip(pairs, scores.tolist(), strict=True):
        cells = (f"{value:7.3f}{'*' if at == chosen else ' '}" for at, value in zip(columns, values, strict=True))
        lines.append(f"{row:>4} " + "".join(cells))
    lines.append(f"layers: {_written(pairs)}")
    return "\n".join(line.rstrip() for line in lines)


def _written(pairs: tuple[tuple[int, int], ...]) -> str:
    return str([list(pair) for pair in pairs])
