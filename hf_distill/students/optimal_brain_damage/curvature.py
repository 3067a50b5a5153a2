"""The diagonal of the second derivatives of the loss: how much it costs to change one weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_distill.errors import UserError
from hf_distill.models.inspection import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows

# So many backward passes for one example are made one by one; above, one pass of a random combination stands for all.
EXACT = 8


def second_derivatives(
    model: PreTrainedModel, weights: Sequence[Tensor], rows: CalibrationRows, count: int
) -> list[Tensor]:
    """Return the diagonal of the Gauss-Newton matrix of the mean loss of a row, for some weights of a model.

    This is LeCun et al.'s approximation of the second derivatives `h_kk` (1990, section 2.2: the part with the second
    derivative of the network's function is left out, so that none is negative), for any model: `h_kk = 1/N sum_rows
    (J' H J)_kk`, where `J` are the derivatives of a row's logits by the weights and `H` is the curvature of its loss:
    `diag(p) - p p'` for cross-entropy, 2 for a squared error. No label occurs in `H`, so hard labels and a teacher's
    probabilities have the same matrix; for cross-entropy it is also the Fisher information (Martens 2020, section 9).

    An example costs a forward pass, and for each of its rows one backward pass for each class but one: for two
    classes, all rows together cost as much as an epoch of training on them. If that are more than 8 passes (a
    vocabulary, the tokens of a text), a single one replaces them: of their sum with random signs, whose square has
    the right mean.

    Args:
        model: The model; put into eval mode for this.
        weights: Parameters of the model.
        rows: Rows to measure on.
        count: Number of examples.

    Returns:
        The second derivatives, in the shapes of the weights, float32 or better.

    Raises:
        UserError: No example has a row to measure on, or a derivative is not finite.
    """
    sums = [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    signs = torch.Generator().manual_seed(0)
    number = 0
    kernels = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # others add in any order
    with evaluating(model), torch.enable_grad(), kernels:
        for logits in rows.predicted(model, count, batch_size=1):
            number += len(logits)
            for direction in directions(logits.detach(), rows.layout.has_classes, signs):
                found = torch.autograd.grad(logits, weights, direction, retain_graph=True, allow_unused=True)
                for total, gradient in zip(sums, found, strict=True):
                    if gradient is not None:
                        total.addcmul_(gradient, gradient)
    if not number:
        raise UserError("no row of the train split has an output to measure on: no token or text counts.", key="name")
    if not all(bool(total.isfinite().all()) for total in sums):
        raise UserError("second derivatives of its loss are not finite, so nothing can be deleted by them.", key="name")
    return [total / number for total in sums]


def increase(before: PreTrainedModel, after: PreTrainedModel, rows: CalibrationRows, count: int) -> float:
    """Return by how much the mean loss of a row grew, if the labels are what a model predicted before.

    The Kullback-Leibler divergence of its predictions afterwards, or their squared difference. To second order it is
    what the second derivatives say, all of them, not the diagonal alone. Both models are in eval mode.
    """
    total, number = 0.0, 0
    with torch.no_grad():
        for theirs, ours in zip(rows.predicted(before, count), rows.predicted(after, count), strict=True):
            p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
            lost = p.exp() * (p - q) if rows.layout.has_classes else (theirs - ours).square()
            total, number = total + float(lost.double().sum()), number + len(ours)
    return total / number


def directions(logits: Tensor, has_classes: bool, signs: torch.Generator) -> Iterator[Tensor]:
    """Yield directions `u` in the space of an example's logits: the sum of `u u'` is the curvature `H` of its loss.

    Args:
        logits: `(rows, classes)`.
        has_classes: Whether rows are distributions, whose loss is cross-entropy; else values with a squared error.
        signs: Draws random signs, if there would be too many directions: then the sum of `u u'` is `H` on average.
    """
    rows, classes = logits.shape
    columns = classes - 1 if has_classes else classes
    root = softmax_root if has_classes else squared_root
    if rows * columns > EXACT:
        drawn = torch.randint(0, 2, (rows, classes), generator=signs).to(logits) * 2 - 1
        yield root(logits, drawn)
        return
    for row in range(rows):
        for column in range(columns):
            one = torch.zeros_like(logits)
            one[row, column] = 1
            yield root(logits, one)


def softmax_root(logits: Tensor, directions: Tensor) -> Tensor:
    """Return `A v` of every row, for the root `A A' = diag(p) - p p'` of the curvature of cross-entropy.

    Column `j` of `A` is class `j` against all later ones, which `A` is triangular for: with `r_j = sum_{i > j} p_i`,
    `A_jj = sqrt(p_j r_j / (p_j + r_j))` and `A_ij = -A_jj p_i / r_j` below. The last column is 0.

    Args:
        logits: `(rows, classes)`; `p` is their softmax.
        directions: `v`, of the same shape.

    >>> softmax_root(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([[ 0.5000, -0.5000]])
    """
    p = logits.softmax(-1)
    later = p.flip(-1).cumsum(-1).flip(-1)
    after = torch.cat((later[:, 1:], torch.zeros_like(later[:, :1])), -1)
    tiny = torch.finfo(p.dtype).tiny
    weighted = (p * after / later.clamp(min=tiny)).sqrt() * directions
    shared = (weighted / after.clamp(min=tiny)).cumsum(-1)
    before = torch.cat((torch.zeros_like(shared[:, :1]), shared[:, :-1]), -1)
    return weighted - p * before


def squared_root(values: Tensor, directions: Tensor) -> Tensor:
    """Return `sqrt(2) v` of every row: the second derivative of `(value - label)^2` is 2."""
    return 2**0.5 * directions
