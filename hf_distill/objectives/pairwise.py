"""Objectives on how the examples of a batch lie to each other: the two models' spaces may have any widths."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.objectives.base import Objective
from hf_distill.objectives.layers import States, last_layer

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
        weight: Factor of the term.
        of: What represents an example: `mean` of the last hidden states of its tokens, that of its `first` or of its
            `last` token, or the `embedding` of a sentence-similarity model.
    """

    unit: ClassVar[Unit] = "pair"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"
    within_batch: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reaches_head: ClassVar[bool] = False

    of: Literal["mean", "first", "last", "embedding"] = "mean"

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """See `Objective.teacher_states`."""
        return last_layer(teacher, self.of)

    @abstractmethod
    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of every example, `(batch,)`, as `batch_relations` says, of `(batch, width)` each."""

    def per_example(self, comparison: Comparison) -> Tensor:
        """Compare representations in float32, place by place where an example is several texts."""
        import torch

        from hf_distill.models.representations import both

        ours, theirs = both(comparison, self.of)
        with torch.autocast(ours.device.type, enabled=False):
            shape = (-1, comparison.rows.examples)
            places = zip(*(one.reshape(*shape, one.shape[-1]) for one in (ours, theirs)), strict=True)
            gaps = [self.gaps(*place) for place in places]
        return torch.stack(gaps).mean(0)


@component
class SimilarityPreserving(PairwiseObjective):
    """Examples that are alike to the teacher shall be alike to the student. See `batch_relations.similarity_gap`.

    `||G_t - G_s||_F^2 / b^2`, `G` the products of all representations of a batch, each row scaled to length 1 (Tung and
    Mori 2019, arXiv 1907.09682). They weigh it with 3000.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "similarity_preserving"

    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See `batch_relations.similarity_gap`."""
        from hf_distill.objectives.batch_relations import similarity_gap

        return similarity_gap(student, teacher)


@component
class Relational(PairwiseObjective):
    """Relational knowledge distillation (RKD): distances of pairs, and angles of triples, as in the teacher's space.

    Park et al. 2019, arXiv 1904.05068: Huber losses of distances relative to their mean, and of cosines. See
    `batch_relations.distance_gap` and `angle_gap`. The defaults are those of RepDistiller and mdistiller.

    Attributes:
        weight: Factor of the term.
        distance_weight: Factor of the distances.
        angle_weight: Factor of the angles, whose memory grows with the cube of the batch size; 0 leaves them out.
    """

    name: ClassVar[str] = "relational"

    distance_weight: Annotated[float, Field(ge=0.0)] = 25.0
    angle_weight: Annotated[float, Field(ge=0.0)] = 50.0

    def gaps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See `batch_relations.distance_gap` and `angle_gap`."""
        from hf_distill.objectives.batch_relations import angle_gap, distance_gap

        distances = self.distance_weight * distance_gap(student, teacher)
        return distances + self.angle_weight * angle_gap(student, teacher) if self.angle_weight else distances
