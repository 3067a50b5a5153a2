"""Losses of logits with their gradients written down.

Logits are the largest tensors of a step, and a loss composed of softmaxes and masks goes over them some thirty times,
forward and backward. With the gradient known beforehand it is a handful of times.

A divergence of two distributions is computed from logits `x / T` and their normaliser `z = log sum exp(x / T)`. Where a
probability is exactly 0 a logit may be infinite; it costs nothing as the weight of a term.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED


class _Known(torch.autograd.Function):
    """Values whose gradient has been computed along with them."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, values: Tensor, gradient: Tensor, factor: Tensor) -> Tensor:
        """Return the values, `(rows,)`; the gradient of each is a row of `gradient`, times `factor`."""
        ctx.save_for_backward(gradient, factor)
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the gradient."""
        gradient, factor = ctx.saved_tensors
        return gradient * (slope * factor).unsqueeze(-1), None, None, None


def _with_gradient(student: Tensor, values: Tensor, gradient: Tensor, factor: Tensor | float) -> Tensor:
    """Return values with a gradient; its factor, `(rows,)` or a number, costs no pass over the classes of its own."""
    if not isinstance(factor, Tensor):
        factor = values.new_full((), factor)
    known: Tensor = _Known.apply(student, values, gradient, factor)  # type: ignore[no-untyped-call]
    return known


def _wanted(student: Tensor) -> bool:
    return torch.is_grad_enabled() and student.requires_grad


# Whether what is computed is being traced for a compiler, which fuses operations that follow each other.
_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """Compute by operations that a compiler makes one of, rather than by as few as there are."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities `(rows, classes)`, and the largest logit and its log-probability, `(rows, 1)` each.

    The normaliser is the difference of the latter two. Logits may lie far from 0 (GPT-2's do), where it has few digits
    left: it is for the caller to subtract the largest logits first. All are NaN if a logit is.
    """
    if _TRACED.get():
        highest = logits.amax(-1, keepdim=True)
        powers = (logits - highest).exp()
        whole = powers.sum(-1, keepdim=True)
        return powers / whole, highest, -whole.log()
    probabilities = logits.softmax(-1)
    # The likeliest class has a probability of at least 1 / classes: faster than logsumexp, and as exact.
    return probabilities, logits.amax(-1, keepdim=True), probabilities.amax(-1, keepdim=True).log()


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """Return `sum_v weights_v values_v`, `(rows,)`; autocast would compute it in half precision."""
    device = weights.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        summed: Tensor = torch.linalg.vecdot(weights, values)
    return summed


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`KL(p || q)` with `p = softmax(teacher / T)` and `q = softmax(student / T)`; its gradient is `(q - p) / T`.

    Args:
        student: Logits `(rows, classes)`, float32 or better.
        teacher: Logits of the same shape; no gradient flows to it.
        temperature: `T > 0`.

    Returns:
        `(rows,)`.

    >>> kl(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log(), 1.0)
    tensor([0.1438])
    """
    wanted = _wanted(student)
    with torch.no_grad():
        ours, theirs = student / temperature, teacher / temperature
        q, our_top, log_q = _softmax(ours)
        p, their_top, log_p = _softmax(theirs)
        # 0 * inf, where the teacher finds a class impossible, is no part of the sum. NaN in a logit stays: it is in
        # the normalisers as well.
        expected = theirs.sub_(ours).mul_(p).nansum(-1)
        normalisers = (our_top - their_top) - (log_q - log_p)
        values = (expected + normalisers.squeeze(-1)).clamp_(min=0.0)  # by rounding it may be below
        if not wanted:
            return values
        gradient = q.sub_(p)
    return _with_gradient(student, values, gradient, 1 / temperature)


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float, share: float) -> Tensor:
    """`w KL(p || m) + (1 - w) KL(q || m)` with `m = w p + (1 - w) q`, `p` and `q` as in `kl`.

    Its gradient is `(1 - w) / T * q (log q - log m - KL(q || m))`: what goes through `m` cancels.

    Args:
        student: Logits `(rows, classes)`, float32 or better.
        teacher: Logits of the same shape; no gradient flows to it.
        temperature: `T > 0`.
        share: The weight `w` of `p`, `0 < w < 1`.

    Returns:
        `(rows,)`.

    >>> jensen_shannon(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log(), 1.0, 0.5)
    tensor([0.0338])
    """
    wanted = _wanted(student)
    with torch.no_grad():
        ours, theirs = student / temperature, teacher / temperature
        q, our_top, our_log = _softmax(ours)
        p, their_top, their_log = _softmax(theirs)
        # No probability is smaller than this and above 0, so the logarithm of nothing else is touched.
        least = torch.finfo(p.dtype).tiny
        log_m = (p * share).add_(q, alpha=1 - share).clamp_(min=least).log_()
        log_p = theirs.sub_(their_top - their_log).clamp_(min=math.log(least))
        log_q = ours.sub_(our_top - our_log).clamp_(min=math.log(least))
        from_teacher = _dot(p, log_p.sub_(log_m))
        gap = log_q.sub_(log_m)
        from_student = _dot(q, gap)
        values: Tensor = (share * from_teacher + (1 - share) * from_student).clamp_(min=0.0)
        if not wanted:
            return values
        gradient = gap.sub_(from_student.unsqueeze(-1)).mul_(q)
    return _with_gradient(student, values, gradient, (1 - share) / temperature)


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`-sum_v t_v log q_v` with `q = softmax(student)`, `t` the label, smoothed; its gradient is `q - t`.

    Args:
        student: Logits `(rows, classes)`, float32 or better.
        labels: `(rows,)`; a row without label (-100) costs 0.
        smoothing: Share of `t` that is spread evenly over all classes.

    Returns:
        `(rows,)`.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor([1.3863, 0.0000])
    """
    wanted = _wanted(student)
    with torch.no_grad():
        labelled = labels != IGNORED
        target = labels.where(labelled, 0).unsqueeze(-1)
        q, top, log_top = _softmax(student)
        values = (top - student.gather(-1, target) - log_top).squeeze(-1)
        if smoothing:
            values = (1 - smoothing) * values + smoothing * ((top - log_top).squeeze(-1) - student.mean(-1))
        values = values.masked_fill_(~labelled, 0.0)
        if not wanted:
            return values
        gradient = q.scatter_add_(-1, target, q.new_full((), smoothing - 1).expand(target.shape))
        if smoothing:
            gradient.sub_(smoothing / student.shape[-1])
    return _with_gradient(student, values, gradient, labelled.to(gradient.dtype))


def _again(indices: Tensor) -> Tensor:
    """Return which of the numbers in a row are there for the second time or more."""
    ordered, order = indices.sort(dim=-1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.empty_like(again).scatter_(-1, order, again)


class _Buckets(torch.autograd.Function):
    """Log-probabilities of some classes and of all others together."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
        """Compute the buckets, and keep what the backward pass needs."""
        kept, again = logits.gather(-1, indices).div_(temperature), _again(indices)
        once = kept.masked_fill(again, -math.inf).logsumexp(-1, keepdim=True)
        # Of the others among themselves: 1 - sum(kept) has no digits left where the sum is almost 1. Those that are
        # none of them lie below all logits; at -inf a row without others would be NaN.
        lowest = torch.finfo(logits.dtype).min
        among, top, log_top = _softmax((logits / temperature).scatter_(-1, indices, lowest))
        # Where there are none, or none that is possible, a mass that is nothing and can be multiplied with 0.
        none = top <= lowest
        others = torch.where(none, once + math.log(torch.finfo(torch.float32).tiny), top - log_top)
        made = torch.cat((kept, others), -1).sub_(torch.logaddexp(others, once))
        ctx.save_for_backward(among, indices, again, none, made)
        ctx.temperature = temperature
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """`(g_v - q_v sum(g)) / T` for a bucket; that of the others hands its part on to them by their shares."""
        among, indices, again, none, made = ctx.saved_tensors
        shares = made.exp()
        shares[:, :-1].masked_fill_(again, 0.0)
        gradient = (slope - shares * slope.sum(-1, keepdim=True)).div_(ctx.temperature)
        others = gradient[:, -1:].masked_fill(none, 0.0)
        return (among * others).scatter_add_(-1, indices, gradient[:, :-1]), None, None


def buckets(logits: Tensor, indices: Tensor, temperature: float = 1.0) -> Tensor:
    """Return `log softmax(logits / T)` at some classes, and the logarithm of the mass of all others.

    Args:
        logits: `(rows, classes)`, float32 or better.
        indices: Not all of them, `(rows, k)`; the same one more than once, if it was drawn so often.
        temperature: `T > 0`.

    Returns:
        `(rows, k + 1)`.

    >>> buckets(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000, 0.5000]])
    """
    made: Tensor = _Buckets.apply(logits, indices, temperature)  # type: ignore[no-untyped-call]
    return made
