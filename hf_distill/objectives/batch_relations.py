"""Formulas: how the examples of a batch lie to each other, compared between two models.

Every function takes representations `(batch, width)`, the teacher's of any width, and returns `(batch,)`: the value of
each example times `batch - 1`. Divided by the ordered pairs of different examples, `batch * (batch - 1)`, their sum is
what was published, which is a mean over the examples; of several batches it is their mean, weighted by pairs. A single
example has no relations, and is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare cosine-like similarities: `1 / b^2 * ||G_t - G_s||_F^2`, times what the module says.

    `G` is `X X^T` with its rows scaled to length 1 (Tung and Mori 2019, arXiv 1907.09682; as in the code that its
    authors checked, RepDistiller's `SP.py`).

    Args:
        student: `(batch, width)`.
        teacher: `(batch, any width)`.
    """
    ours, theirs = _similarities(student), _similarities(teacher.detach())
    return (ours - theirs).square().mean(-1) * (len(student) - 1)


def distance_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare distances: the mean of `huber(d_s(i, j) - d_t(i, j))` over all `i, j`, times what the module says.

    `d` is the Euclidean distance divided by the mean distance of the batch, each model's by its own, the student's with
    its gradient; `huber` is quadratic up to 1 (Park et al. 2019, arXiv 1904.05068, as in the authors' `RkdDistance`,
    whose mean counts an example's distance of 0 to itself).
    """
    gaps = F.smooth_l1_loss(_distances(student), _distances(teacher.detach()), reduction="none")
    return gaps.mean(-1) * (len(student) - 1)


def angle_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare angles: the mean of `huber(cos_s(j, i, k) - cos_t(j, i, k))` over triples, times what the module says.

    `cos(j, i, k)` is the cosine of the angle at `i` between the directions to `j` and `k`, 0 where one of them is `i`
    (Park et al. 2019, as in the authors' `RKdAngle`). Memory grows with `batch^3` and with `batch^2 * width`.
    """
    gaps = F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()), reduction="none")
    return gaps.mean((-1, -2)) * (len(student) - 1)


def _similarities(vectors: Tensor) -> Tensor:
    return _unit(vectors @ vectors.T)


def _distances(vectors: Tensor) -> Tensor:
    # Through differences: squares of lengths minus products lose the distance of near neighbours to rounding.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances > 0
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=torch.finfo(distances.dtype).tiny)


def _cosines(vectors: Tensor) -> Tensor:
    directions = _unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))
    cosines: Tensor = directions @ directions.mT
    return cosines


def _unit(vectors: Tensor) -> Tensor:
    """Scale to length 1; what is 0, as between two equal examples, stays 0 and has no gradient.

    Divided by a smallest length instead, as in `F.normalize`, it would have one of 1e12.
    """
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths == 0, torch.inf)
