"""Divergences as pure functions of logits: one value per row, no reduction, computed in float32 or better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the softened distributions, scaled by the squared temperature.

    `T^2 * sum_v p_v (log p_v - log q_v)` with `p = softmax(teacher / T)` and `q = softmax(student / T)`
    (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2: the gradients of the soft targets scale as
    1 / T^2, so the factor keeps their size when T changes).

    Relations: for large T and logits with zero mean the gradient tends to half that of `logits_mse`
    (section 2.1 there). Cross-entropy with soft targets has the same gradient but not the same value.

    Args:
        student: Logits `(rows, classes)`.
        teacher: Logits of the same shape; no gradient flows to it.
        temperature: `T > 0`.

    Returns:
        `(rows,)`, never negative beyond rounding.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kl_divergence(logits, logits, temperature=3.0)
    tensor([0.])
    """
    log_q = F.log_softmax(student / temperature, dim=-1)
    with torch.no_grad():
        log_p = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * temperature**2


def mean_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the logits, mean over classes.

    `1 / V * sum_v (teacher_v - student_v)^2` (Ba and Caruana 2014, arXiv 1312.6184, equation 2, there as a sum).

    Args:
        student: Logits `(rows, classes)`.
        teacher: Logits of the same shape; no gradient flows to it.

    Returns:
        `(rows,)`.

    >>> mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    return (student - teacher.detach()).square().mean(-1)


def label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Loss against the ground truth: cross-entropy for class indices, squared error for values.

    `-log softmax(student)_label`, or `(student - label)^2` where `labels` is a float tensor (regression: one
    class). A row without label (-100, NaN) costs 0 and has no gradient.

    Args:
        student: Logits `(rows, classes)`; predicted values `(rows, 1)` for regression.
        labels: `(rows,)`, integer or float.

    Returns:
        `(rows,)`.

    >>> label_loss(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor([1.3863, 0.0000])
    >>> label_loss(torch.tensor([[1.5], [7.0]]), torch.tensor([1.0, float("nan")]))
    tensor([0.2500, 0.0000])
    """
    if not labels.is_floating_point():
        return F.cross_entropy(student, labels, reduction="none", ignore_index=-100)
    labelled = ~labels.isnan()
    # Masked before the square: NaN * 0 is NaN, also in the gradient.
    difference = torch.where(labelled, student.squeeze(-1) - torch.where(labelled, labels, 0.0), 0.0)
    return difference.square()
