"""Objectives on a teacher's distribution over its own vocabulary, for comparison with others' results."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.component import component
from hf_distill.objectives.base import RowObjective
from hf_distill.objectives.divergences import sorted_distance
from hf_distill.objectives.schedule import Temperature, number
from hf_distill.objectives.soft_targets import KLDivergence
from hf_distill.rows.base import Rows, SparseRows


@component
class UniversalLogit(RowObjective):
    """Distance of both distributions, each sorted: for a teacher of another vocabulary, by rank alone.

    Formula:
        `sum_i |p_(i) - q_(i)|`, `p_(1) >= p_(2) >= ...`, the shorter one filled up with zeros

    It is for comparison with others' results. Which token is likely plays no part: at `(.7, .2, .1)` against `(.1, .2,
    .7)` it is 0. It teaches how sure to be, and needs `labels`, or the teacher's texts, to teach of what. In published
    comparisons it does worse than `kl` over the tokens that both models have, and in some than training on the
    teacher's texts alone. It sorts both vocabularies for every row.

    Attributes:
        temperature: Temperature of both models' softmax. The loss is not multiplied by its square.
    """

    name: ClassVar[str] = "uld"
    paper: ClassVar[str] = "Boizard et al. 2024, Towards Cross-Tokenizer Distillation (ULD), arXiv 2402.12030"
    own_vocabulary: ClassVar[bool] = True
    needs_all_classes: ClassVar[str] = "it sorts the teacher's probabilities of all classes"

    temperature: Temperature = 1.0

    @property
    def takes_impossible(self) -> bool:
        """Whether impossible classes change nothing: they do not, since their probability is 0 in both."""
        return True

    def rows(
        self,
        student: Tensor,
        teacher: Tensor | SparseRows | None,
        labels: Tensor,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        """Return the distance of each row, `(rows,)`.

        Args:
            student: See `RowObjective.rows`.
            teacher: See `RowObjective.rows`; it may have another number of classes.
            labels: Not used.
            temperature: In place of the objective's own.
        """
        divisor = number(self.temperature) if temperature is None else temperature
        with torch.no_grad():
            log_p = F.log_softmax(self.dense(teacher) / divisor, dim=-1)
        return sorted_distance(log_p, F.log_softmax(student / divisor, dim=-1))


@component
class NearestTokens(KLDivergence):
    """`kl` with a teacher of another vocabulary, of whose tokens each counts for the student's that is nearest to it.

    Formula:
        `T^2 * sum_v p_v log(p_v / q_v)`, `p = softmax(z / T)`, `z_v` the largest logit of the teacher's tokens nearest
        to `v`

    Nearest is the token of the same bytes, else one that is a single byte more, less or other. The teacher's other
    tokens are left out, and its probabilities are those among what is left. It is for comparison with others' results.
    What looks alike need not mean the same (`cat` and `hat`), and of several tokens only the likeliest counts, so the
    teacher is another one than was asked for; `kl` adds up equal tokens and keeps the rest as a rest. The papers look
    for tokens at any distance, and align rows by edit distance too: rows that are not one token in both become labels
    there, and are left out here.
    """

    name: ClassVar[str] = "mined"
    paper: ClassVar[str] = "Wan et al. 2024, Knowledge Fusion of Large Language Models (FuseLLM), arXiv 2401.10491"
    own_vocabulary: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = False
    takes_samples: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = "it looks for the nearest of all the teacher's tokens"

    def sums(self, rows: Rows, **settings: Tensor) -> Tensor:
        """Sum the losses of some rows within each example, `(batch,)`; see `RowObjective.sums`."""
        teacher = rows.teacher
        if rows.mapping is not None and isinstance(teacher, Tensor):
            rows = replace(rows, teacher=rows.mapping.by_nearest(teacher), mapping=None)
        return super().sums(rows, **settings)
