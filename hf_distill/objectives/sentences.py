"""Objectives on the vectors of texts, for sentence similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from hf_distill.component import component
from hf_distill.models.target_rows import upcast
from hf_distill.objectives.base import Objective, PreparedObjective, Term
from hf_distill.objectives.projection import learned_projection
from hf_distill.objectives.schedule import Temperature, number
from hf_distill.rows.similarity import MARGIN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_distill.objectives.base import Comparison, Reads, Term
    from hf_distill.rows.base import Unit


@component
class SentenceEmbedding(PreparedObjective):
    """The student's vector of each text learns the teacher's.

    Formula:
        `mse`: `1 / D * sum_d (W s - t)_d^2`; `cosine`: `1 - cos(W s, t)`; mean over an example's texts

    `cosine` ignores lengths. If both models normalise, `mse` is `cosine` times `2 / D`. `similarity_matrix` compares
    how texts lie to each other instead of where, and needs no projection.

    Attributes:
        loss: `mse` compares length and direction, `cosine` the direction only.
        projection: Learned matrix from the student's width to the teacher's. `auto`: added when the widths differ;
            `always`: also when they are equal. It has no bias and is not exported, so the cosines of the student's own
            vectors are not what is compared: add `similarity_matrix` or `logits_mse`.
    """

    name: ClassVar[str] = "sentence_embedding"
    paper: ClassVar[str] = (
        "Reimers and Gurevych 2020, Making Monolingual Sentence Embeddings Multilingual, arXiv 2004.09813"
    )
    reads: ClassVar[Reads] = "answers"
    unit: ClassVar[Unit] = "example"
    vectors: ClassVar[bool] = True

    loss: Literal["mse", "cosine"] = "mse"
    projection: Literal["auto", "always"] = "auto"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return EmbeddingTerm(self, student, teacher)


@component
class SimilarityMatrix(Objective):
    """Each text's similarities to the other texts of the micro-batch, as a distribution.

    Formula:
        `KL(p_i || q_i)`, `p_i = softmax_j(cos(t_i, t_j) / T)` over all other texts `j`, `q_i` the same of the student;
        mean over an example's texts

    It is not multiplied by `T^2`, and needs no projection. In the paper the other texts come from a memory bank. Since
    texts are compared within a micro-batch, the loss depends on how a step is split; large micro-batches compare more.

    Attributes:
        temperature: Divides the cosines of both models. The smaller it is, the more only the nearest texts count.
    """

    name: ClassVar[str] = "similarity_matrix"
    paper: ClassVar[str] = "Koohpayegani et al. 2020, CompRess, arXiv 2010.14713"
    unit: ClassVar[Unit] = "example"
    within_batch: ClassVar[bool] = True
    vectors: ClassVar[bool] = True

    temperature: Temperature = 0.05

    def per_example(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of each example, `(batch,)`."""
        return similarity_divergence(*both(self, comparison), number(self.temperature))


@component
class MarginMSE(Objective):
    """How much more similar a text is to its match than to a negative.

    Formula:
        `((sim(s, s+) - sim(s, s-)) - (sim(t, t+) - sim(t, t-)))^2`

    Only differences count: the student's similarities may be higher or lower than the teacher's, and widths may differ.
    A column `margin` holds the margins of another model, such as a cross-encoder, as published; they replace the
    teacher's.

    Attributes:
        similarity: `dot`, as published, or `cosine`. They are equal for models that normalise.
    """

    name: ClassVar[str] = "margin_mse"
    paper: ClassVar[str] = "Hofstaetter et al. 2020, Cross-Architecture Knowledge Distillation, arXiv 2010.02666"
    unit: ClassVar[Unit] = "triple"
    vectors: ClassVar[bool] = True

    similarity: Literal["dot", "cosine"] = "dot"

    def per_example(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of each example, `(batch,)`."""
        student = vectors(self, comparison.student)
        if student.shape[1] < 3:
            return student.new_zeros(len(student))
        given = comparison.inputs.get(MARGIN)
        if given is None:
            given = margins(vectors(self, comparison.teacher).detach(), self.similarity)
        return (margins(student, self.similarity) - given.to(student)).square()


class EmbeddingTerm(Term):
    """Compares the vector of each text.

    Args:
        objective: What it computes.
        student: A sentence encoder.
        teacher: Another one.

    Attributes:
        projection: From the student's width to the teacher's, at the start uniform within
            `sqrt(6 / (student's width + teacher's))`, drawn from torch's seed; None where there is none.
    """

    def __init__(self, objective: SentenceEmbedding, student: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__(objective)
        if teacher is None:
            raise ValueError(f"'{objective.name}' needs a teacher.")
        from hf_distill.models.sentence_encoder import vector_width  # imports Transformers

        mine, theirs = vector_width(student), vector_width(teacher)
        self.projection = learned_projection(mine, theirs, always=objective.projection == "always")

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of each example, `(batch,)`."""
        objective: Any = self.objective
        student, teacher = both(objective, comparison)
        if self.projection is not None:
            student = student @ self.projection.weight.to(student.dtype).T
        if objective.loss == "cosine":
            return (1 - cosine_similarity(student, teacher, dim=-1)).mean(-1)
        return (student - teacher).square().mean((-2, -1))


def both(objective: Objective, comparison: Comparison) -> tuple[Tensor, Tensor]:
    """Return the vectors of both models, `(examples, texts, width)`, float32 or better, the teacher's detached.

    Raises:
        ValueError: A model is not a sentence encoder.
    """
    return vectors(objective, comparison.student), vectors(objective, comparison.teacher).detach()


def vectors(objective: Objective, outputs: Mapping[str, Any] | None) -> Tensor:
    """Return the vectors of a model's texts, `(examples, texts, width)`, float32 or better.

    Raises:
        ValueError: It is not a sentence encoder.
    """
    found = None if outputs is None else outputs.get("sentence_embedding")
    if found is None:
        raise ValueError(
            f"'{objective.name}' compares sentence embeddings, and a model has none. Wrap both with "
            "hf_distill.models.sentence_encoder.sentence_encoder(model)."
        )
    exact = upcast(found)
    return exact.unsqueeze(1) if exact.dim() == 2 else exact


def similarity_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of each text's similarities to all other texts.

    `KL(p_i || q_i)`, `p_i = softmax over j != i of cos(t_i, t_j) / T`, `q_i` likewise of the student, mean over the
    texts of an example; 0 where there are no two other texts to choose between.

    Args:
        student: Vectors `(examples, texts, width)`.
        teacher: Vectors `(examples, texts, width)`, of any width.
        temperature: `T`.

    Returns:
        `(examples,)`.

    >>> import torch
    >>> vectors = torch.eye(3).unsqueeze(1)
    >>> similarity_divergence(vectors, vectors, 0.1)
    tensor([0., 0., 0.])
    """
    log_q, log_p = (_log_neighbours(vectors.flatten(0, 1), temperature) for vectors in (student, teacher))
    divergences = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergences.reshape(student.shape[:2]).mean(-1)


def _log_neighbours(vectors: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities of all other vectors, `(vectors, vectors - 1)`."""
    count = len(vectors)
    unit = normalize(vectors, dim=-1)
    cosines = unit @ unit.T
    # The diagonal is left out rather than set to -inf: nothing infinite is in the gradient. It is every (count + 1)-th
    # entry; a mask would ask the device how many there are.
    others = cosines.flatten()[1:].view(max(count - 1, 0), count + 1)[:, :-1]
    return (others.reshape(count, max(count - 1, 0)) / temperature).log_softmax(-1)


def margins(vectors: Tensor, similarity: Literal["dot", "cosine"]) -> Tensor:
    """Return how much more similar the first text is to the second than to the third, `(examples,)`.

    Args:
        vectors: `(examples, 3, width)`.
        similarity: Of two vectors.

    >>> import torch
    >>> margins(torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]]), "dot")
    tensor([3.])
    """
    text, fitting, other = vectors[:, :3].unbind(1)
    if similarity == "cosine":
        text, fitting, other = (normalize(one, dim=-1) for one in (text, fitting, other))
    return (text * (fitting - other)).sum(-1)
