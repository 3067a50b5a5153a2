"""Which layer of the student is compared with which of the teacher.

Index 0 is the output of the embeddings, `i` the output of block `i`, counted from 1: the index in the `hidden_states`
that Transformers models return. (Their last entry is what the head sees; in Llama and its kin that is after the final
norm.) Maps of attention belong to blocks, so there is none at index 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.models.layers import Index, each_once

if TYPE_CHECKING:
    pass


def _tuples(value: Any) -> Any:
    """Let Python users write pairs as lists too, as YAML does; what is not a list of lists is left to pydantic."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(pair) if isinstance(pair, list | tuple) else pair for pair in value)


Pairs = Annotated[
    tuple[tuple[Index, Index], ...], Field(min_length=1), BeforeValidator(_tuples), AfterValidator(each_once)
]
# A rule, or pairs [student's index, teacher's index].
Layers = Literal["uniform", "last", "middle", "skip", "tail", "similarity"] | Pairs


def layer_pairs(
    choice: Layers, student_depth: int, teacher_depth: int, *, lowest: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student's index, teacher's index) that `choice` means for two depths `S` and `T`.

    - `uniform`: `i` with `i * T / S`, rounded, for `i` from 1 to `S` (TinyBERT, Jiao et al. 2020, arXiv 1909.10351).
    - `last`: `S` with `T`.
    - `middle`: the middle layer of each (FitNets, Romero et al. 2015, arXiv 1412.6550).
    - `skip`: as `uniform` without the last layer (PKD-skip, Sun et al. 2019, arXiv 1908.09355).
    - `tail`: `i` with `T - S + i` for `i` from 1 to `S - 1` (PKD-last there).
    - `similarity`: as `uniform` until the models have been measured (see `layer_mapping.Similarity`).

    Args:
        choice: A rule or the pairs themselves.
        student_depth: `S`, the student's number of blocks.
        teacher_depth: `T`.
        lowest: The lowest index there is: 0, or 1 where the output of the embeddings has nothing to compare.

    Raises:
        UserError: An index out of range, or a rule that leaves nothing to compare; `key` is `layers`.

    >>> layer_pairs("uniform", 4, 12)
    ((1, 3), (2, 6), (3, 9), (4, 12))
    >>> layer_pairs("skip", 4, 12)
    ((1, 3), (2, 6), (3, 9))
    >>> layer_pairs("tail", 4, 12)
    ((1, 9), (2, 10), (3, 11))
    """
    if not isinstance(choice, str):
        _check_range(choice, student_depth, teacher_depth, lowest)
        return choice
    if choice == "last":
        return ((student_depth, teacher_depth),)
    if choice == "middle":
        return (((student_depth + 1) // 2, (teacher_depth + 1) // 2),)
    # Halves go up: `round` would take them to the even number, and 4 of 6 layers would be 2, 3, 4, 6.
    pairs = tuple(
        (i, max(1, (2 * i * teacher_depth + student_depth) // (2 * student_depth))) for i in range(1, student_depth + 1)
    )
    if choice in ("uniform", "similarity"):
        return pairs
    if student_depth < 2:
        raise UserError(
            f"'{choice}' leaves out the student's last layer, and it has no other. Try 'last'.", key="layers"
        )
    if choice == "skip":
        return pairs[:-1]
    if student_depth > teacher_depth:
        raise UserError(
            f"'tail' counts both stacks from the end, and the student's {student_depth} layers are more than the "
            f"teacher's {teacher_depth}. Try 'uniform'.",
            key="layers",
        )
    return tuple((i, teacher_depth - student_depth + i) for i in range(1, student_depth))


def _check_range(pairs: tuple[tuple[int, int], ...], student_depth: int, teacher_depth: int, lowest: int) -> None:
    for pair in pairs:
        for index, depth, whose in zip(pair, (student_depth, teacher_depth), ("student", "teacher"), strict=True):
            if index < lowest:
                raise UserError(
                    f"{list(pair)}: index 0 is the output of the embeddings, and there is no attention in them; "
                    f"the {whose}'s layers are 1 to {depth}.",
                    key="layers",
                )
            if index > depth:
                raise UserError(
                    f"{list(pair)}: the {whose} has no layer {index}. Its layers are 1 to {depth}"
                    f"{', 0 is the output of its embeddings' if lowest == 0 else ''}; pairs are [student, teacher].",
                    key="layers",
                )


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

        The first process decides: elsewhere the last digit, and so the pair, may differ. All processes must call this.

        Args:
            otherwise: The pairs to take where no token counted. One for each of the student's blocks.
        """
        states = [torch.cat(layer) for layer in self._states if layer]
        self._states = [[] for _ in self._states]
        return parallel.asked_once(lambda: self._paired(states, otherwise))

    @staticmethod
    def _paired(
        states: list[Tensor], otherwise: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[tuple[int, int], ...], str]:
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
