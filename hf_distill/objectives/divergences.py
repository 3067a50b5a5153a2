"""Divergences between two distributions given by their log-probabilities: one value per row, no reduction.

Every function takes `log_p` and `log_q`, `(rows, classes)`, and returns `(rows,)`; where a model stands on either
side is the caller's choice, so the reverse of a divergence is the same function with its arguments exchanged. A
probability of exactly 0 (log-probability `-inf`) costs nothing where it is the weight of a term.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _expected(log_p: Tensor, values: Tensor) -> Tensor:
    """Return `sum_v p_v values_v`, where a value of a class without probability may be infinite."""
    # Masked before the product: 0 * inf is NaN, also in the gradient.
    return (log_p.exp() * values.masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence, `sum_v p_v (log p_v - log q_v)`.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> kl(p.log(), q.log())
    tensor([0.1438])
    """
    return _expected(log_p, log_p - log_q)


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Cross-entropy, `-sum_v p_v log q_v`: `kl` plus the entropy of `p`, so its minimum over `q` is not 0.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> cross_entropy(p.log(), q.log())
    tensor([0.8370])
    """
    return -_expected(log_p, log_q)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation distance, `1/2 * sum_v |p_v - q_v|`; between 0 and 1.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> total_variation(p.log(), q.log())
    tensor([0.2500])
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def sorted_distance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Distance of two distributions that are each sorted, `sum_i |p_(i) - q_(i)|`, the shorter filled up with zeros.

    The only one here that takes distributions over different classes. It sees how sure each of them is, and not of
    what: it is 0 for any two that are permutations of each other.

    Args:
        log_p: `(rows, classes)`.
        log_q: `(rows, other classes)`.

    >>> sorted_distance(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.4, 0.4, 0.1, 0.1]]).log())
    tensor([0.4000])
    """
    p, q = (one.exp().sort(dim=-1, descending=True).values for one in (log_p, log_q))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(one, (0, width - one.shape[-1])) for one in (p, q))
    return (p - q).abs().sum(-1)


def _mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return the log-probabilities of `share * p + (1 - share) * q`, `0 < share < 1`."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def jensen_shannon(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, `w KL(p || m) + (1 - w) KL(q || m)` with `m = w p + (1 - w) q`.

    Lin 1991, equation 4.1, for two distributions; Agarwal et al. 2024 (arXiv 2306.13649), equation 1.

    Args:
        log_p: Log-probabilities `(rows, classes)`.
        log_q: Of the same shape.
        share: The weight `w` of `p`, `0 < w < 1`.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> jensen_shannon(p.log(), q.log(), 0.5)
    tensor([0.0338])
    """
    log_m = _mixture(log_p, log_q, share)
    return share * kl(log_p, log_m) + (1 - share) * kl(log_q, log_m)


def skewed_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """Skewed Kullback-Leibler divergence, `KL(p || s p + (1 - s) q)`; at most `-log s`, whatever `q` is.

    Lee 1999, there as the alpha-skew divergence with `1 - s`; Ko et al. 2024 (arXiv 2402.03898), section 3.1.

    Args:
        log_p: Log-probabilities `(rows, classes)`.
        log_q: Of the same shape.
        skew: The share `s` of `p` in the mixture, `0 <= s < 1`; 0 is `kl`.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> skewed_kl(p.log(), q.log(), 0.1)
    tensor([0.1131])
    """
    return kl(log_p, log_q if skew == 0 else _mixture(log_p, log_q, skew))


def adaptive_kl(log_p: Tensor, log_q: Tensor, head_mass: float) -> Tensor:
    """Adaptive Kullback-Leibler divergence of a student `q` from a teacher `p`, `h KL(p || q) + (1 - h) KL(q || p)`.

    `h = g_head / (g_head + g_tail)` with the gaps `g = sum |p_v - q_v|`, over the head and over the tail of the
    teacher's distribution, as constants: no gradient passes through `h` (Wu et al. 2024, arXiv 2404.02657).
    The head is that of the authors' code (`AKL.py`): the likeliest classes as long as their mass stays within
    `head_mass`, and always the likeliest one.

    Args:
        log_p: The teacher's log-probabilities `(rows, classes)`.
        log_q: The student's.
        head_mass: Their `mu`.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    >>> adaptive_kl(p.log(), q.log(), 0.5)
    tensor([0.1373])
    """
    with torch.no_grad():
        p, order = log_p.exp().sort(dim=-1, descending=True)
        gaps = (p - log_q.exp().gather(-1, order)).abs()
        head = p.cumsum(-1) <= head_mass
        head[:, 0] = True
        total = gaps.sum(-1)
        # Where there is no gap both divergences are 0, and any share will do.
        share = torch.where(total > 0, (gaps * head).sum(-1) / total.clamp(min=torch.finfo(p.dtype).tiny), 0.5)
    return share * kl(log_p, log_q) + (1 - share) * kl(log_q, log_p)


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Divergence of two events by their log-probabilities, `p log(p / q) + (1 - p) log((1 - p) / (1 - q))`.

    Args:
        log_p: Of any shape, at most 0.
        log_q: Of the same shape.

    Returns:
        One value for each pair of events.

    >>> binary_kl(torch.tensor(0.3).log(), torch.tensor(0.2).log())
    tensor(0.0282)
    """
    # What is certain would have an infinite logarithm of its opposite: it is that of a float32 next to 1 instead.
    nearly = torch.finfo(torch.float32).eps / 2
    certain, sure = log_p > -nearly, log_q > -nearly
    not_p, not_q = (_log1mexp(torch.where(at, -nearly, one)) for at, one in ((certain, log_p), (sure, log_q)))
    others = -torch.expm1(log_p) * (not_p - not_q)
    return log_p.exp() * (log_p - log_q) + torch.where(certain & sure, 0.0, others)


def _log1mexp(log_p: Tensor) -> Tensor:
    """Return `log(1 - p)`, exact for `p` near 0 and near 1."""
    near = log_p > -math.log(2)
    small, large = torch.where(near, log_p, -1.0), torch.where(near, -1.0, log_p)
    return torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def decoupled_kl(
    log_p: Tensor, log_q: Tensor, labels: Tensor, target_weight: float, non_target_weight: float
) -> Tensor:
    """Decoupled divergence of a student `q` from a teacher `p`, `a KL(b_p || b_q) + c KL(n_p || n_q)`.

    `b = (p_label, 1 - p_label)` says how sure of the label each model is, `n` is its distribution over the other
    classes, renormalised (Zhao et al. 2022, arXiv 2203.08679, equation 7).

    Relations: `kl` is the same sum with `a = 1` and `c = 1 - p_label` (equation 6 there): where the teacher is sure, it
    hides what the teacher thinks of the other classes. With two classes `n` is a point, and nothing but `a kl` is left.

    Args:
        log_p: The teacher's log-probabilities `(rows, classes)`.
        log_q: The student's.
        labels: `(rows,)`; a row without label (-100) costs 0.
        target_weight: `a`, alpha in the paper.
        non_target_weight: `c`, beta in the paper.

    >>> p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.5, 0.4, 0.1]])
    >>> decoupled_kl(p.log(), q.log(), torch.tensor([0]), 1.0, 8.0)
    tensor([1.7851])
    """
    labelled = labels >= 0
    target = labels.clamp(min=0).unsqueeze(-1)

    def parts(log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        others = log_probabilities.scatter(-1, target, -math.inf)
        mass = others.logsumexp(-1, keepdim=True)
        return torch.cat((log_probabilities.gather(-1, target), mass), -1), others - mass

    (sure_p, others_p), (sure_q, others_q) = parts(log_p), parts(log_q)
    losses = target_weight * kl(sure_p, sure_q) + non_target_weight * kl(others_p, others_q)
    return torch.where(labelled, losses, 0.0)
