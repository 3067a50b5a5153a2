"""Objectives on the vectors of texts, for sentence similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from hf_distill.component import component
from hf_distill.objectives.base import Objective, PreparedObjective
from hf_distill.objectives.schedule import Temperature, number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_distill.objectives.base import Comparison, Reads
    from hf_distill.objectives.term import Term
    from hf_distill.rows.base import Unit

# Column of a batch: how much higher a model that is not asked scores the text that fits than the one that does not.
MARGIN = "margin"
_TASKS = ("sentence-similarity",)


@component
class SentenceEmbedding(PreparedObjective):
    """The student's vector of each text is to be the teacher's. See `sentence_terms.EmbeddingTerm`.

    `mse`: the squared difference, mean over the dimensions (Reimers and Gurevych 2020, arXiv 2004.09813);
    `cosine`: `1 - cos`, which does not care for lengths. Mean over the texts of an example, then over examples.

    Relations: where both models normalise, `mse` is `cosine` times `2 / dimensions`. `similarity_matrix` compares how
    texts lie to each other and not where, so that it needs no projection.

    Attributes:
        weight: Factor of the term.
        loss: `mse` or `cosine`.
        projection: A learned matrix without bias from the student's width to the teacher's. `auto`: where the widths
            differ; `always`: also where they are equal. It trains with the student and is not exported, so cosines of
            the student's own vectors are not what is compared: add similarity_matrix or logits_mse.
    """

    name: ClassVar[str] = "sentence_embedding"
    reads: ClassVar[Reads] = "answers"
    unit: ClassVar[Unit] = "example"
    tasks: ClassVar[tuple[str, ...]] = _TASKS

    loss: Literal["mse", "cosine"] = "mse"
    projection: Literal["auto", "always"] = "auto"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        from hf_distill.objectives.sentence_terms import EmbeddingTerm

        return EmbeddingTerm(self, student, teacher)


@component
class SimilarityMatrix(Objective):
    """Each text's similarities to the other texts of the micro-batch, as a distribution. See `similarity_divergence`.

    `KL(p_i || q_i)` with `p_i = softmax_j(cos(t_i, t_j) / T)` over all other texts `j`, and `q_i` of the student (as
    Koohpayegani et al. 2020, CompRess, arXiv 2010.14713, where the others come from a memory bank). Mean
    over the texts of an example, then over examples. Not multiplied by `T^2`.

    Relations: needs no projection. As texts are compared within a micro-batch, the loss depends on how a step is split;
    large micro-batches compare more.

    Attributes:
        weight: Factor of the term.
        temperature: Divides the cosines of both models; the smaller, the more only the nearest texts count.
    """

    name: ClassVar[str] = "similarity_matrix"
    unit: ClassVar[Unit] = "example"
    within_batch: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = _TASKS

    temperature: Temperature = 0.05

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        from hf_distill.objectives.sentence_terms import both, similarity_divergence

        return similarity_divergence(*both(self, comparison), number(self.temperature))


@component
class MarginMSE(Objective):
    """How much more a text is like one that fits it than like one that does not. See `sentence_terms.margins`.

    `((sim(s, s+) - sim(s, s-)) - (sim(t, t+) - sim(t, t-)))^2` with the student's vectors `s` of text, second text and
    negative, and the teacher's `t` (Hofstaetter et al. 2020, arXiv 2010.02666). Mean over the triples.

    A batch with a column `margin` has the margins of a model that is not asked, such as a cross-encoder, as published:
    they stand in for the teacher's.

    Relations: only differences count, so that the student's similarities may lie elsewhere than the teacher's; widths
    may differ.

    Attributes:
        weight: Factor of the term.
        similarity: `dot`, as published, or `cosine`; the same where models normalise.
    """

    name: ClassVar[str] = "margin_mse"
    unit: ClassVar[Unit] = "triple"
    tasks: ClassVar[tuple[str, ...]] = _TASKS

    similarity: Literal["dot", "cosine"] = "dot"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        from hf_distill.objectives.sentence_terms import margins, vectors

        student = vectors(self, comparison.student)
        if student.shape[1] < 3:
            return student.new_zeros(len(student))
        given = comparison.inputs.get(MARGIN)
        if given is None:
            given = margins(vectors(self, comparison.teacher).detach(), self.similarity)
        return (margins(student, self.similarity) - given.to(student)).square()
