"""The term of `relations`: vectors of chosen layers, and the divergence of their relations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill.objectives.attention_vectors import Vectors
from hf_distill.objectives.feature_terms import FeatureTerm

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison
    from hf_distill.objectives.relations import Relations


class RelationTerm(FeatureTerm):
    """See `Relations`.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.

    Raises:
        UserError: The objective does not fit the two models, or their queries, keys and values were not found.
    """

    objective: Relations

    def __init__(self, objective: Relations, student: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__(objective, student, teacher)
        assert teacher is not None
        theirs: Any = teacher.config
        self.relation_heads = objective.heads(theirs)
        self.student_vectors = Vectors(student, self.student_stack, objective.part)
        self.teacher_vectors = Vectors(teacher, self.teacher_stack, objective.part)
        self.causal = self.student_vectors.causal or self.teacher_vectors.causal

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the vectors of the chosen layers."""
        kinds = {kind for kind in self.objective.of if kind != "attention"}
        if "attention" in self.objective.of:
            kinds |= {"queries", "keys"}
        mine, theirs = zip(*self.pairs, strict=True)
        with self.student_vectors.watching(kinds, mine), self.teacher_vectors.watching(kinds, theirs):
            yield

    def observe(self, comparison: Comparison) -> None:
        """See `FeatureTerm.observe`; the vectors are not looked at."""
        super().observe(comparison)
        self.student_vectors.take()
        self.teacher_vectors.take()

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the sum over the tokens of every example, of the mean over pairs of layers, `(batch,)`."""
        positions = self.positions(comparison)
        mine, theirs = self.student_vectors.take(), self.teacher_vectors.take()
        losses = []
        with torch.autocast(positions.mask.device.type, enabled=False):
            for ours, other in self.pairs:
                for kind in self.objective.of:
                    x, y, heads = (kind, kind, self.relation_heads)
                    if kind == "attention":
                        x, y, heads = "queries", "keys", self.teacher_stack.heads or 1
                    student = mine[ours, x], mine[ours, y]
                    # Of a teacher spread over several devices they are where the layer is.
                    device = positions.mask.device
                    teacher = theirs[other, x].detach().to(device), theirs[other, y].detach().to(device)
                    losses.append(relation_gap(student, teacher, heads, positions.mask, causal=self.causal))
        return positions.sum(positions.select(torch.stack(losses).sum(0) / len(self.pairs)))


def relation_gap(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, mask: Tensor, *, causal: bool = False
) -> Tensor:
    """Return `KL(R_t || R_s)` of every token, mean over heads, `(sequences, tokens)`; meaningless for padding.

    `R = softmax(X Y^T / sqrt(d))`, `X` and `Y` cut into `heads` of `d` entries; over the tokens that are no padding,
    and with `causal` not after the one that looks (Wang et al. 2021, arXiv 2012.15828, with `X = Y`).

    Args:
        student: `X` and `Y`, `(sequences, tokens, width)`.
        teacher: The same of the teacher, whose width may differ.
        heads: Divides both widths.
        mask: Which tokens are no padding, bool `(sequences, tokens)`.
        causal: Whether a token does not see later ones.
    """
    seen = mask[:, None, None, :]
    if causal:
        seen = seen & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    ours, theirs = (_log_relations(x, y, heads, mask, seen) for x, y in (student, teacher))
    gaps = (theirs - ours).masked_fill(~seen, 0.0)
    return (theirs.exp() * gaps).sum(-1).mean(1)


def _log_relations(x: Tensor, y: Tensor, heads: int, mask: Tensor, seen: Tensor) -> Tensor:
    """Return the logarithm of the relations, `(sequences, heads, tokens, tokens)`; finite where nothing is seen."""
    x, y = (_cut(vectors, heads, mask) for vectors in (x, y))
    scores: Tensor = x @ y.mT / x.shape[-1] ** 0.5
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).log_softmax(-1)


def _cut(vectors: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Return `(sequences, heads, tokens, width / heads)`, float32 or better, 0 for padding (whatever is there)."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).masked_fill(~mask.unsqueeze(-1), 0.0)
    return vectors.reshape(*mask.shape, heads, -1).transpose(1, 2)
