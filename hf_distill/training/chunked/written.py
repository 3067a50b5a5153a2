"""Computes the probabilities of the tokens of a text without a `(tokens, classes)` tensor of all its positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_distill.models.heads import CHUNK_BYTES, ELSEWHERE, slices
from hf_distill.models.projection import Side
from hf_distill.objectives.closed_form import cross_entropy
from hf_distill.rows.base import upcast
from hf_distill.training.chunked.rows import without_autocast


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of one class of every row, `(rows,)`, float32 or better.

    >>> log_probability(torch.zeros(1, 4), torch.tensor([2]))
    tensor([-1.3863])
    """
    return -cross_entropy(upcast(logits), tokens)


def log_probabilities(side: Side, tokens: Tensor) -> Tensor:
    """Return the log-probability of one token at every row of a head's input, `(rows,)`, with its autograd graph.

    The logits of a few rows at a time are computed, and again in the backward pass: three products with the head where
    `HeadRows` has two, and no more memory than that of a chunk.

    Args:
        side: A model at its head.
        tokens: The token of each row, `(rows,)`.
    """
    device = side.hidden.device.type
    size = max(1, CHUNK_BYTES.get(device, ELSEWHERE) // (side.width * side.dtype.itemsize))
    tokens = tokens.to(side.hidden.device)

    def of(hidden: Tensor, part: slice) -> Tensor:
        return log_probability(replace(side, hidden=hidden).logits(), tokens[part])

    with without_autocast(device):
        if not torch.is_grad_enabled():
            found = [of(side.hidden[part], part) for part in slices(0, len(tokens), size)]
        else:
            found = [
                checkpoint(of, side.hidden[part], part, use_reentrant=False, preserve_rng_state=False)
                for part in slices(0, len(tokens), size)
            ]
    # Without a single token still a part of the graph, as processes wait for each other's gradients.
    return torch.cat(found) if found else side.hidden.flatten()[:0].float()
