"""Objectives on soft targets: kl and the other divergences from the teacher's distribution."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from hf_distill.component import component
from hf_distill.objectives import closed_form, divergences
from hf_distill.objectives.softened import Softened
from hf_distill.rows.base import Unit


@component
class KLDivergence(Softened):
    """KL divergence of the student from the teacher.

    Formula:
        `T^2 * sum_v p_v log(p_v / q_v)`

    It asks the student to cover everything that the teacher finds possible; `reverse_kl` asks it to avoid everything
    that the teacher finds impossible. `soft_cross_entropy` has the same gradient and another value. For large `T` and
    logits with mean zero the gradient tends to half that of `logits_mse` (section 2.1 of the paper).
    """

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = (
        "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2"
    )
    takes_samples: ClassVar[bool] = True

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.kl(log_p, log_q)

    def from_logits(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the divergence of each row, computed faster, from the logits."""
        return closed_form.kl(student, teacher, temperature)


@component
class ReverseKL(Softened):
    """KL divergence of the teacher from the student: `kl` with the models exchanged.

    Formula:
        `T^2 * sum_v q_v log(q_v / p_v)`

    A student that is too small to cover the teacher keeps to some of its modes. The paper computes it over sequences
    that the student samples; here it is exact, over the classes of every row.
    """

    name: ClassVar[str] = "reverse_kl"
    paper: ClassVar[str] = "Gu et al. 2024, MiniLLM, arXiv 2306.08543, equation 1"
    by_student: ClassVar[bool] = True

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.kl(log_q, log_p)


@component
class JensenShannon(Softened):
    """Generalised Jensen-Shannon divergence.

    Formula:
        `T^2 * (w KL(p || m) + (1 - w) KL(q || m))` with `m = w p + (1 - w) q`, `w` = `teacher_share`

    It is bounded (by `log 2` for equal shares), so single rows cannot dominate. Divided by `w` it tends to `kl` as `w`
    goes to 0; divided by `1 - w` it tends to `reverse_kl` as `w` goes to 1. At both ends it is 0, so they are refused
    here; TRL and ms-swift switch to `kl` and `reverse_kl` there. The paper calls `w` beta.

    Attributes:
        teacher_share: Share of the teacher in the mixture that both models are compared with.
    """

    name: ClassVar[str] = "js"
    paper: ClassVar[str] = (
        "Agarwal et al. 2024, On-Policy Distillation of Language Models (GKD), arXiv 2306.13649, equation 1"
    )
    by_student: ClassVar[bool] = True

    teacher_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.jensen_shannon(log_p, log_q, self.teacher_share)

    def from_logits(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the divergence of each row, computed faster, from the logits."""
        return closed_form.jensen_shannon(student, teacher, temperature, self.teacher_share)


@component
class SkewedKL(Softened):
    """`kl` against a student that is mixed with the teacher.

    Formula:
        `T^2 * KL(p || s p + (1 - s) q)`, `s` = `skew`

    At most `-log s` a row, so a token that the student finds impossible does not dominate. At skew 0 it is `kl`.
    DistiLLM's code leaves out the teacher's entropy, which changes the value by a constant.

    Attributes:
        skew: Share of the teacher in the mixture.
    """

    name: ClassVar[str] = "skewed_kl"
    paper: ClassVar[str] = "Ko et al. 2024, DistiLLM, arXiv 2402.03898, section 3.1"

    skew: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.skewed_kl(log_p, log_q, self.skew)


@component
class SkewedReverseKL(Softened):
    """`reverse_kl` against a teacher that is mixed with the student.

    Formula:
        `T^2 * KL(q || s q + (1 - s) p)`, `s` = `skew`

    At skew 0 it is `reverse_kl`. It is `skewed_kl` with the models exchanged.

    Attributes:
        skew: Share of the student in the mixture.
    """

    name: ClassVar[str] = "skewed_reverse_kl"
    paper: ClassVar[str] = "Ko et al. 2024, DistiLLM, arXiv 2402.03898, section 3.1"
    by_student: ClassVar[bool] = True

    skew: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.skewed_kl(log_q, log_p, self.skew)


@component
class AdaptiveKL(Softened):
    """`kl` and `reverse_kl`, weighed in each row by where the student differs from the teacher.

    Formula:
        `T^2 * (h KL(p || q) + (1 - h) KL(q || p))`, `h` = share of `sum_v |p_v - q_v|` in the teacher's head

    `kl` first fits the teacher's most likely classes (the head), `reverse_kl` the rest. `h` is a constant to the
    gradient, as published, so the gradient is not that of the value. For equal models `h` is a half, where the authors'
    code (AKL.py) has 0 / 0. The head is the most likely classes while their mass stays within `head_mass`; in DSKD and
    KDFlow it also holds the class that crosses it.

    Attributes:
        head_mass: Probability of the teacher's most likely classes that make up the head.
    """

    name: ClassVar[str] = "adaptive_kl"
    paper: ClassVar[str] = (
        "Wu et al. 2024, Rethinking Kullback-Leibler Divergence in Knowledge Distillation, arXiv 2404.02657"
    )
    takes_sparse: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = (
        "its head may reach beyond the classes kept, and its tail is compared class by class"
    )

    head_mass: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.adaptive_kl(log_p, log_q, self.head_mass)


@component
class TotalVariation(Softened):
    """Total variation distance.

    Formula:
        `T^2 / 2 * sum_v |p_v - q_v|`

    It is symmetric and at most 1 (at `T = 1`), like `js`, without the logarithm that makes rare classes count. Its
    gradient shrinks as `1 / T` only, so `T^2` overcompensates; DistillKit multiplies by it all the same, hence the
    default.
    """

    name: ClassVar[str] = "total_variation"
    paper: ClassVar[str] = (
        "Wen et al. 2023, f-Divergence Minimization for Sequence-Level Distillation, arXiv 2307.15190"
    )

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.total_variation(log_p, log_q)


@component
class SoftCrossEntropy(Softened):
    """Cross-entropy with the teacher's distribution.

    Formula:
        `-T^2 * sum_v p_v log q_v`

    It is `kl` plus the teacher's entropy: the gradient is the same, but the value at the minimum is that entropy.
    TextBrewer, torchtune and DistiLLM report it. With a sparse teacher it is the cross-entropy of the buckets.
    """

    name: ClassVar[str] = "soft_cross_entropy"
    paper: ClassVar[str] = (
        "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2"
    )
    takes_samples: ClassVar[bool] = True

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.cross_entropy(log_p, log_q)


@component
class DecoupledKL(Softened):
    """Decoupled knowledge distillation (DKD): certainty of the label, and the other classes, apart.

    Formula:
        `T^2 * (a KL(b_p || b_q) + c KL(n_p || n_q))`: `b` label or not, `n` among the others; `a`, `c` =
        `target_weight`, `non_target_weight`

    `kl` is the case `a = 1`, `c = 1 - p_label`: it weighs the other classes least where the teacher is most certain. A
    row without a label costs nothing. The defaults are the authors'.

    Attributes:
        target_weight: Weight of the divergence between label and not label; alpha in the paper.
        non_target_weight: Weight of the divergence among the other classes; beta in the paper.
    """

    name: ClassVar[str] = "decoupled_kl"
    paper: ClassVar[str] = "Zhao et al. 2022, Decoupled Knowledge Distillation, arXiv 2203.08679, equation 7"
    unit: ClassVar[Unit] = "label"
    takes_sparse: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = "the label may be a class that was not kept, and then its probability is unknown"

    target_weight: Annotated[float, Field(ge=0.0)] = 1.0
    non_target_weight: Annotated[float, Field(ge=0.0)] = 8.0

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each row, `(rows,)`."""
        return divergences.decoupled_kl(log_p, log_q, labels, self.target_weight, self.non_target_weight)
