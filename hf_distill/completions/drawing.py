"""Drawing tokens: the distribution that is drawn from, and draws that depend on the seed and the row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_distill.errors import NotFinite

if TYPE_CHECKING:
    from hf_distill.completions.sampling import Sampling


def softened(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return softmax of the logits over the temperature, of which there is none at 0, `(rows, vocabulary)`."""
    return (logits / (sampling.temperature or 1.0)).softmax(-1)


def cut(found: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that tokens are drawn with.

    `top_p` leaves the fewest of the likeliest tokens whose probabilities sum to at least that, and divides them by
    their sum. With temperature 0 the likeliest token has probability 1.

    Args:
        found: Probabilities, `(rows, vocabulary)`.
        sampling: How tokens are drawn.

    >>> from hf_distill.completions.sampling import Sampling
    >>> cut(torch.tensor([[0.5, 0.3, 0.2]]), Sampling(8, top_p=0.7))
    tensor([[0.6250, 0.3750, 0.0000]])
    """
    if not sampling.temperature:
        return torch.zeros_like(found).scatter_(-1, found.argmax(-1, keepdim=True), 1.0)
    if sampling.top_p == 1.0:
        return found
    likeliest, order = found.sort(dim=-1, descending=True, stable=True)
    before = likeliest.cumsum(-1) - likeliest
    likeliest = likeliest.masked_fill(before >= sampling.top_p, 0.0)
    left = torch.zeros_like(found).scatter_(-1, order, likeliest)
    return left / left.sum(-1, keepdim=True)


def uniforms(seed: int, rows: Sequence[int], tokens: int) -> Tensor:
    """Return numbers in [0, 1), one for each token of each row, `(rows, tokens)`, in float64.

    Those of a row depend on the seed and on its number alone: not on the rows beside it.

    Args:
        seed: Seed of all draws.
        rows: Numbers of the rows.
        tokens: How many tokens are drawn in a row.
    """
    drawn = [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, row]))).random(tokens) for row in rows]
    return torch.from_numpy(np.stack(drawn))


def draw(found: Tensor, numbers: Tensor) -> Tensor:
    """Return one token of each row, `(rows,)`: the first whose cumulated probability exceeds the row's number.

    A token of probability 0 is never drawn.

    Args:
        found: Probabilities, `(rows, vocabulary)`; need not sum to 1.
        numbers: In [0, 1), `(rows,)`.

    Raises:
        NotFinite: A probability is NaN.

    >>> draw(torch.tensor([[0.0, 0.25, 0.75, 0.0]] * 3), torch.tensor([0.0, 0.25, 0.99]))
    tensor([1, 2, 2])
    """
    precise = torch.float32 if found.device.type == "mps" else torch.float64
    cumulated = found.to(precise).cumsum(-1)
    whole = cumulated[:, -1:].contiguous()
    check_finite(whole)
    wanted = numbers.to(found.device, precise).unsqueeze(-1) * whole
    last = torch.searchsorted(cumulated, whole)  # the last token that has a probability
    return torch.minimum(torch.searchsorted(cumulated, wanted, right=True), last)[:, 0]


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest token of each row, `(rows,)`.

    Raises:
        NotFinite: The largest logit of a row is NaN or infinite.
    """
    check_finite(logits.amax(-1))
    return logits.argmax(-1)


def check_finite(values: Tensor) -> None:
    """Refuse to choose tokens by numbers that are NaN or infinite.

    Raises:
        NotFinite: One is.
    """
    if not bool(values.isfinite().all()):
        raise NotFinite(
            "the model that writes gives logits that are NaN or infinite, so no token can be drawn. Its weights are "
            "not finite, or its precision is too low: start from other weights, lower learning_rate, or set bf16 and "
            "fp16 to false."
        )
