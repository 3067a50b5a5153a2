"""Correct what a language model prefers whatever it reads: contextual calibration, and matching a class prior."""

from __future__ import annotations

import torch
from torch import Tensor

# Enough: the error falls by a constant factor in each round.
_ROUNDS = 10_000
_CLOSE = 1e-10


def contextual(log_probabilities: Tensor) -> Tensor:
    """Return what is added to log-probabilities so that inputs without content have equal ones, `(classes,)`.

    Zhao et al. 2021 (arXiv 2102.09690), section 5: `q = W p`, where `W = diag(p_cf)^-1` and `p_cf` is the mean of the
    probabilities of inputs without content. In logarithms: `log q = log p - log p_cf`, up to a constant.

    Args:
        log_probabilities: Those of the inputs without content, `(inputs, classes)`.

    >>> contextual(torch.tensor([[0.2, 0.8]]).log()).exp()
    tensor([5.0000, 1.2500])
    """
    return -log_probabilities.log_softmax(-1).exp().mean(0).log()


def matching(log_probabilities: Tensor, prior: Tensor) -> Tensor:
    """Return what is added to log-probabilities so that the mean prediction is a prior, `(classes,)`.

    Prior matching (Liusie, Manakul and Gales 2023, arXiv 2309.04992, section 3.2): weights `a` with
    `mean_i a_k p_ik / sum_j a_j p_ij = prior_k`. They are unique up to a factor; found by iterative scaling,
    `a_k <- a_k * prior_k / mean_k`.

    Args:
        log_probabilities: Those of unlabelled inputs, `(inputs, classes)`.
        prior: Probability of each class, `(classes,)`; none is 0.

    >>> p = torch.tensor([[0.9, 0.1], [0.7, 0.3]]).double()
    >>> (p.log() + matching(p.log(), torch.tensor([0.5, 0.5]))).softmax(-1).mean(0)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    exact, wanted = log_probabilities.cpu().double(), prior.cpu().double().log()  # some devices have no float64
    added = torch.zeros_like(wanted)
    for _ in range(_ROUNDS):
        missing = wanted - (exact + added).log_softmax(-1).logsumexp(0) + torch.tensor(float(len(exact))).log()
        added = added + missing
        if missing.abs().max() < _CLOSE:
            break
    return added.to(log_probabilities)
