"""Figures of two models on the same tokens that nothing is trained on: computed as objectives are, in chunks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hf_distill.completions.statistics import top_overlap
from hf_distill.component import component
from hf_distill.objectives.soft_targets import KLDivergence, ReverseKL, TotalVariation
from hf_distill.objectives.softened import Softened


@component
class TeacherLoss(Softened):
    """The teacher's loss on the label, `-log p_y`: how unlikely it finds a token that was written."""

    name: ClassVar[str] = "teacher_loss"
    takes_sparse: ClassVar[bool] = False

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row, `(rows,)`; 0 without a label."""
        return -log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(labels < 0, 0.0)


@component
class TopOverlap(Softened):
    """Share of the 16 likeliest tokens of each model that both have."""

    name: ClassVar[str] = "top_overlap"
    takes_sparse: ClassVar[bool] = False
    # Which of the results of `top_overlap` it is.
    part: ClassVar[int] = 0

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the value of each row, `(rows,)`."""
        return top_overlap(log_p, log_q)[self.part]


@component
class TeacherMass(TopOverlap):
    """Probability that the teacher gives the tokens which are among the 16 likeliest of both models."""

    name: ClassVar[str] = "teacher_mass"
    part: ClassVar[int] = 1


@component
class StudentMass(TopOverlap):
    """Probability that the student gives the tokens which are among the 16 likeliest of both models."""

    name: ClassVar[str] = "student_mass"
    part: ClassVar[int] = 2


# What is measured of a teacher that gives the likeliest tokens and the mass of all others, and what needs them all.
OF_SPARSE: tuple[Softened, ...] = (ReverseKL(), KLDivergence(), TotalVariation())
MEASURES: tuple[Softened, ...] = (*OF_SPARSE, TeacherLoss(), TopOverlap(), TeacherMass(), StudentMass())
