"""Losses as pure functions of logits: one value per row, no reduction, computed in float32 or better."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import closed_form
from hf_distill.rows.base import SparseRows, upcast


def log_distributions(student: Tensor, teacher: Tensor | SparseRows, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities that a divergence compares: the teacher's and the student's, softened.

    `log softmax(logits / T)`. Of a sparse teacher with `k` classes a row there are `k + 1` columns: those classes and a
    tail bucket with the mass of all others, in both distributions. Putting classes together never increases an
    f-divergence (data processing inequality), so what a divergence gives is at least 0 and at most its dense value.

    Args:
        student: Logits `(rows, classes)`.
        teacher: Logits of the same shape, or `SparseRows`; no gradient flows to it.
        temperature: `T > 0`.

    Raises:
        ValueError: The sparse teacher was stored at another temperature. `p^(1/T)` of a bucket is not that of its
            classes, so it cannot be softened any more.

    >>> log_p, log_q = log_distributions(torch.zeros(1, 4), torch.zeros(1, 4))
    >>> log_p.exp(), log_q.exp()
    (tensor([[0.2500, 0.2500, 0.2500, 0.2500]]), tensor([[0.2500, 0.2500, 0.2500, 0.2500]]))
    >>> log_p, log_q = log_distributions(torch.zeros(1, 4), SparseRows.of(torch.zeros(1, 4), 1))
    >>> log_p.exp(), log_q.exp()
    (tensor([[0.2500, 0.7500]]), tensor([[0.2500, 0.7500]]))
    """
    logits = upcast(student)
    if not isinstance(teacher, SparseRows):
        with torch.no_grad():
            log_p = F.log_softmax(upcast(teacher) / temperature, dim=-1)
        return log_p, F.log_softmax(logits / temperature, dim=-1)
    if teacher.temperature != temperature:
        raise ValueError(
            f"the teacher's probabilities were stored at temperature {teacher.temperature:g}, and {temperature:g} is "
            "wanted. Classes put together in a tail cannot be softened any more: store them at the temperature of use."
        )
    with torch.no_grad():
        log_p = teacher.log_probabilities.to(logits.dtype)
        if every := log_p.shape[-1] == logits.shape[-1]:
            log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        else:
            # A tail of exactly 0 would make every divergence from the student's infinite.
            remaining = teacher.remaining.to(logits.dtype).clamp(min=math.log(torch.finfo(torch.float32).tiny))
            # What was stored in half precision no longer sums to 1, and divergences could fall below 0.
            log_p = torch.cat((log_p, remaining.unsqueeze(-1)), -1).log_softmax(-1)
    if every:
        return log_p, F.log_softmax(logits / temperature, dim=-1).gather(-1, teacher.indices)
    return log_p, closed_form.buckets(logits, teacher.indices, temperature)


def mean_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the logits, mean over classes.

    `1 / V * sum_v (teacher_v - student_v)^2` (Ba and Caruana 2014, arXiv 1312.6184, there as a sum).

    Args:
        student: Logits `(rows, classes)`.
        teacher: Logits of the same shape; no gradient flows to it.

    Returns:
        `(rows,)`.

    >>> mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    return (upcast(student) - upcast(teacher.detach())).square().mean(-1)


def logistic_ranking(student: Tensor, teacher: Tensor) -> Tensor:
    """Pairwise logistic loss: does the student order the classes as the teacher does?

    The mean of `log(1 + exp(s_j - s_i))` over all pairs whose `teacher_i > teacher_j`: RankNet (Burges et al. 2005,
    equation 3, with a target probability of 1), as in DistillKit's `logistic_ranking`, which takes the mean over the
    pairs of a whole micro-batch.

    Relations: of the teacher only the order counts, by no means its probabilities. There is no finite minimum, since a
    wider margin always costs less, so it goes beside a divergence or the labels rather than alone.

    Args:
        student: Logits of the classes to compare, `(rows, classes)`.
        teacher: Logits or log-probabilities of the same shape; no gradient flows to it.

    Returns:
        `(rows,)`; 0 where the teacher prefers none to another.

    >>> logistic_ranking(torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 1.0]]))
    tensor([0.6931])
    """
    student, teacher = upcast(student), teacher.detach()
    preferred = teacher.unsqueeze(-1) > teacher.unsqueeze(-2)
    losses = F.softplus(student.unsqueeze(-2) - student.unsqueeze(-1)) * preferred
    return losses.sum((-2, -1)) / preferred.sum((-2, -1)).clamp(min=1)


def label_loss(
    student: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Sequence[float] | None = None
) -> Tensor:
    """Loss against the ground truth: cross-entropy for class indices, squared error for values.

    `-log softmax(student)_label`, or `(student - label)^2` where `labels` is a float tensor (regression: one
    class). A row without label (-100, NaN) costs 0 and has no gradient. With smoothing `e` the target is `1 - e` times
    the label plus `e / V` for every class (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    A label may be a distribution `t` over the classes: `-sum_v t_v log softmax(student)_v`. With weights it is
    `-sum_v w_v t_v log softmax(student)_v`, `t` smoothed, as in torch; who sums these divides by the number of labels,
    where torch's mean divides by the sum of their weights.

    Relations: smoothing is `soft_cross_entropy` with a teacher that knows the label and else nothing.

    Args:
        student: Logits `(rows, classes)`; predicted values `(rows, 1)` for regression.
        labels: `(rows,)`, integer or float; or distributions `(rows, classes)`, NaN throughout where there is none.
        smoothing: `0 <= e < 1`.
        weights: One for each class; all 1 if None.

    Returns:
        `(rows,)`.

    Raises:
        ValueError: Smoothing was asked for, and the labels are values.

    >>> label_loss(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor([1.3863, 0.0000])
    >>> label_loss(torch.tensor([[1.5], [7.0]]), torch.tensor([1.0, float("nan")]))
    tensor([0.2500, 0.0000])
    """
    if labels.ndim == 2 or (weights is not None and smoothing):
        return _soft_label_loss(student, labels, smoothing, weights)
    if weights is not None:
        factors = student.new_tensor(weights)[labels.clamp(min=0)]
        return closed_form.cross_entropy(upcast(student), labels) * factors
    if not labels.is_floating_point():
        return closed_form.cross_entropy(upcast(student), labels, smoothing)
    if smoothing:
        raise ValueError("label_smoothing spreads a label over classes, but these labels are values. Set it to 0.")
    labelled = ~labels.isnan()
    # Masked before the square: NaN * 0 is NaN, also in the gradient.
    difference = torch.where(labelled, student.squeeze(-1) - torch.where(labelled, labels, 0.0), 0.0)
    return difference.square()


def _soft_label_loss(student: Tensor, labels: Tensor, smoothing: float, weights: Sequence[float] | None) -> Tensor:
    """Cross-entropy with a distribution as target; see `label_loss`."""
    logits = upcast(student)
    if labels.ndim == 1:
        labelled = labels >= 0
        target = F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits.dtype)
    else:
        labelled = ~labels.isnan().any(-1)
        target = labels.to(logits.dtype)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / logits.shape[-1]
    if weights is not None:
        target = target * logits.new_tensor(weights)
    # Masked before the product: NaN * 0 is NaN, also in the gradient.
    target = torch.where(labelled.unsqueeze(-1), target, 0.0)
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1)


def sampled_reverse_kl(student: Tensor, written: Tensor, log_p: Tensor) -> Tensor:
    """`log q_y - log p_y` of the token `y` that was drawn from `q = softmax(student)`: on average `KL(q || p)`.

    Its gradient is that of a policy whose advantage is the negative value, `(log q_y - log p_y) d log q_y`: on average
    that of `KL(q || p)`. The gradient of the value itself would be 0 on average, whatever the teacher says.

    Args:
        student: Logits `(rows, classes)`.
        written: The tokens `y`, `(rows,)`; a row without one (-100) costs 0.
        log_p: The teacher's log-probabilities of the tokens, `(rows,)`.

    Returns:
        `(rows,)`; a single value may be negative.

    >>> sampled_reverse_kl(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([0]), torch.tensor([0.3]).log())
    tensor([0.6931])
    """
    log_q = -closed_form.cross_entropy(upcast(student), written)
    gap = (log_q.detach() - log_p).masked_fill(written == IGNORED, 0.0)
    return gap + gap * (log_q - log_q.detach())


def partly_sampled_reverse_kl(
    student: Tensor, written: Tensor, log_p: Tensor, indices: Tensor, log_probabilities: Tensor
) -> Tensor:
    """`sampled_reverse_kl` of what lies outside some classes, and the exact part of `KL(q || p)` within them.

    `sum_{v in S} q_v log(q_v / p_v)`, plus `log q_y - log p_y` where the token is not in `S`. On average it is `KL(q ||
    p)`, in value and gradient, for any `S` that does not depend on the token. As a rule it varies less, the more of `q`
    lies in `S`.

    Args:
        student: Logits `(rows, classes)`.
        written: The tokens `y`, `(rows,)`; a row without one (-100) costs 0.
        log_p: The teacher's log-probabilities of the tokens, `(rows,)`.
        indices: The classes `S`, `(rows, k)`, different ones within a row.
        log_probabilities: The teacher's log-probabilities of these, `(rows, k)`.

    Returns:
        `(rows,)`.
    """
    inside = (indices == written.unsqueeze(-1)).any(-1)
    outside = sampled_reverse_kl(student, written.masked_fill(inside, IGNORED), log_p)
    log_q = F.log_softmax(upcast(student), dim=-1).gather(-1, indices)
    # The derivative of `q log q` is that of `q` times `log q`, plus that of `q`. The latter sums to 0 over all classes,
    # so it is left out on both sides.
    exact = (log_q.exp() * (log_q.detach() - log_probabilities)).sum(-1)
    return exact.masked_fill(written == IGNORED, 0.0) + outside
