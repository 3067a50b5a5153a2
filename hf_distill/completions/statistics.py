"""What completions look like (length, ends, repetition), and how near two models are on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Tokens of the runs whose repetition is counted.
RUN = 4
# Likeliest tokens of each model that are compared.
TOP = 16

# ---- What was written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What is counted of one completion.

    Attributes:
        length: Number of tokens, with the end of text.
        ended: Whether it has an end of text; if not, it was cut at the longest length.
        repeated: How many of its runs of 4 tokens stand earlier in it as well.
        runs: Number of its runs of 4 tokens.
        text: Its tokens, to tell completions apart; a hash of them does as well.
    """

    length: int
    ended: bool
    repeated: int
    runs: int
    text: tuple[int, ...] | int

    @classmethod
    def of(cls, ids: Sequence[int], ended: bool) -> Written:
        """Count a completion.

        >>> Written.of([7, 8, 7, 8, 7, 8], ended=True).repeated
        1
        """
        repeated, runs = repeated_runs(ids)
        return cls(len(ids), ended, repeated, runs, tuple(ids))


def repeated_runs(ids: Sequence[int], size: int = RUN) -> tuple[int, int]:
    """Return how many runs of `size` tokens stand earlier in the same text as well, and how many runs there are.

    >>> repeated_runs([1, 1, 1, 1, 1, 1]), repeated_runs([1, 2, 3])
    ((2, 3), (0, 0))
    """
    runs = Counter(tuple(ids[start : start + size]) for start in range(len(ids) - size + 1))
    return runs.total() - len(runs), runs.total()


def describe(written: Sequence[Written]) -> dict[str, float]:
    """Return the figures of completions; nothing without any.

    Returns:
        `completion_length` and `completion_length_p95` (tokens; numpy's linear percentile), `ended` (share with an end
        of text), `cut` (the others), `repeated_4grams` (share of all runs of 4 tokens that stand earlier in the same
        completion; 0 without runs) and `distinct` (different completions / completions).

    >>> found = describe([Written.of([1, 2, 3, 4], True), Written.of([1, 2], False)])
    >>> found["completion_length"], found["ended"], found["distinct"]
    (3.0, 0.5, 1.0)
    """
    if not written:
        return {}
    lengths = np.array([one.length for one in written])
    ended = sum(one.ended for one in written) / len(written)
    runs = sum(one.runs for one in written)
    return {
        "completion_length": float(lengths.mean()),
        "completion_length_p95": float(np.percentile(lengths, 95)),
        "ended": ended,
        "cut": 1 - ended,
        "repeated_4grams": sum(one.repeated for one in written) / runs if runs else 0.0,
        "distinct": len({one.text for one in written}) / len(written),
    }


# ---- Two models on the same tokens -----------------------------------------------------------------------------------


def acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return how likely a token that `q` draws is accepted by `p` in speculative decoding, `(rows,)`.

    `sum_v min(p_v, q_v)`, which is 1 - the total variation distance (Leviathan et al. 2023, arXiv 2211.17192,
    corollary 3.6).

    Args:
        log_p: Log-probabilities `(rows, classes)`.
        log_q: Of the same shape.

    >>> import torch
    >>> acceptance(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.7500])
    """
    return log_p.minimum(log_q).exp().sum(-1)


def top_overlap(log_p: Tensor, log_q: Tensor, top: int = TOP) -> tuple[Tensor, Tensor, Tensor]:
    """Return what two models' likeliest tokens have in common (Li et al. 2026, arXiv 2604.13016).

    Args:
        log_p: Log-probabilities `(rows, classes)`.
        log_q: Of the same shape.
        top: How many of each model's likeliest tokens; all, if there are fewer.

    Returns:
        The share of the likeliest tokens that both have, and the mass of these tokens under `p` and under `q`, each
        `(rows,)`.

    >>> import torch
    >>> p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.7, 0.1]])
    >>> top_overlap(p.log(), q.log(), top=1), top_overlap(p.log(), q.log(), top=2)[1:]
    ((tensor([0.]), tensor([0.]), tensor([0.])), (tensor([0.8000]), tensor([0.9000])))
    """
    top = min(top, log_p.shape[-1])
    first, second = log_p.topk(top).indices, log_q.topk(top).indices
    shared = (first.unsqueeze(-1) == second.unsqueeze(-2)).any(-1)
    masses = [(one.gather(-1, first).exp() * shared).sum(-1) for one in (log_p, log_q)]
    return shared.to(log_p.dtype).mean(-1), masses[0], masses[1]
