"""Objectives on how the examples of a batch lie to each other: the two models' spaces may have any widths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from hf_distill.component import component
from hf_distill.data.two_tokenizers import teacher_inputs
from hf_distill.models.layers import States, last_layer
from hf_distill.models.representations import Pooling, _sequences, represent
from hf_distill.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from hf_distill.objectives.base import Comparison, Reads
    from hf_distill.rows.base import Unit


@component
class PairwiseObjective(Objective):
    """An objective on relations between examples of the same micro-batch.

    Of the pairs of a step only those within a micro-batch of a process exist, so the loss depends on how the step is
    split: as much of it as memory allows belongs into one micro-batch. The sum is divided by the number of ordered
    pairs. Where an example is several texts, the first ones are compared with each other, the second ones, and so on.

    Attributes:
        of: What represents an example: the `mean` of its last hidden states, that of its `first` or `last` token, or
            the `embedding` of a sentence-similarity model.
    """

    unit: ClassVar[Unit] = "pair"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"
    within_batch: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reaches_head: ClassVar[bool] = False
    vectors_by: ClassVar[str] = "of"

    of: Literal["mean", "first", "last", "embedding"] = "mean"

    @property
    def vectors(self) -> bool:  # type: ignore[override]
        """Whether the model's own vectors represent the examples."""
        return self.of == "embedding"

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """Return the hidden states of the teacher that it reads."""
        return last_layer(teacher, self.of)

    @abstractmethod
    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of every example, `(batch,)`, as `batch_relations` says, of `(batch, width)` each."""

    def per_example(self, comparison: Comparison) -> Tensor:
        """Compare representations in float32, place by place where an example is several texts."""
        import torch

        ours, theirs = both(comparison, self.of)
        with torch.autocast(ours.device.type, enabled=False):
            shape = (-1, comparison.rows.examples)
            places = zip(*(one.reshape(*shape, one.shape[-1]) for one in (ours, theirs)), strict=True)
            gaps = [self.gaps(*place) for place in places]
        return torch.stack(gaps).mean(0)


@component
class SimilarityPreserving(PairwiseObjective):
    """Examples that are similar to the teacher shall be similar to the student.

    Formula:
        `1 / b^2 * sum_ij (G_t - G_s)_ij^2`, `G = X X^T` with the rows of `X` scaled to length 1, over the `b` examples
        of a micro-batch

    The paper weighs it with 3000.
    """

    name: ClassVar[str] = "similarity_preserving"
    paper: ClassVar[str] = "Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, arXiv 1907.09682"

    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the squared gap between the similarities of each example to the others."""
        return similarity_gap(student, teacher)


@component
class Relational(PairwiseObjective):
    """Relational knowledge distillation (RKD): distances of pairs and angles of triples, as in the teacher's space.

    Formula:
        `distance_weight` x mean over pairs of `huber(d_s - d_t)`, `d` the distance over the micro-batch's mean
        distance, + `angle_weight` x mean over triples of `huber(cos_s - cos_t)`

    The defaults are those of RepDistiller and mdistiller.

    Attributes:
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles; 0 leaves them out. Their memory grows with the cube of the micro-batch size.
    """

    name: ClassVar[str] = "relational"
    paper: ClassVar[str] = "Park et al. 2019, Relational Knowledge Distillation, arXiv 1904.05068"

    distance_weight: Annotated[float, Field(ge=0.0)] = 25.0
    angle_weight: Annotated[float, Field(ge=0.0)] = 50.0

    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the gap between distances, and between angles, for each example."""
        distances = self.distance_weight * distance_gap(student, teacher)
        return distances + self.angle_weight * angle_gap(student, teacher) if self.angle_weight else distances


def both(comparison: Comparison, of: Pooling) -> tuple[Tensor, Tensor]:
    """Return the representations of student and teacher, `(sequences, width)` each, the teacher's detached."""
    assert comparison.teacher is not None
    theirs = teacher_inputs(comparison.inputs)
    tokens = comparison.tokens if theirs is comparison.inputs else attended(theirs)
    ours = represent(comparison.student, comparison.tokens, of)
    return ours, represent(comparison.teacher, tokens, of).detach()


def attended(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return which tokens of a teacher with its own tokenizer are not padding, bool `(sequences, tokens)`."""
    mask = inputs.get("attention_mask")
    found = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask != 0
    return _sequences(found)


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
