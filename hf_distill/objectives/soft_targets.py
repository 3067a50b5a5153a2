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
    """`T^2 * KL(teacher || student)`, both softened by the temperature. See `divergences.kl`.

    `T^2 * sum_v p_v (log p_v - log q_v)` (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2).

    Relations: `soft_cross_entropy` has the same gradient and another value. It asks the student to cover all that the
    teacher finds possible; `reverse_kl` to do nothing that the teacher finds impossible. For large `T` and logits with
    mean zero the gradient tends to half that of `logits_mse` (section 2.1 there).

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = (
        "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2"
    )
    takes_samples: ClassVar[bool] = True

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.kl`."""
        return divergences.kl(log_p, log_q)

    def from_logits(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """See `closed_form.kl`."""
        return closed_form.kl(student, teacher, temperature)


@component
class ReverseKL(Softened):
    """`T^2 * KL(student || teacher)`. See `divergences.kl`.

    `T^2 * sum_v q_v (log q_v - log p_v)` (Gu et al. 2024, MiniLLM, arXiv 2306.08543, equation 1, there over sequences
    that the student samples; here exactly, over the classes of every row).

    Relations: `kl` with the models exchanged. A student too small to cover the teacher keeps to some of its modes.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "reverse_kl"
    paper: ClassVar[str] = "Gu et al. 2024, MiniLLM, arXiv 2306.08543, equation 1"

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.kl`."""
        return divergences.kl(log_q, log_p)


@component
class JensenShannon(Softened):
    """Generalised Jensen-Shannon divergence, times `T^2`. See `divergences.jensen_shannon`.

    `T^2 * (w KL(p || m) + (1 - w) KL(q || m))` with `m = w p + (1 - w) q` and `w` the teacher's share (Agarwal et al.
    2024, GKD, arXiv 2306.13649, equation 1, where `w` is beta).

    Relations: bounded, by `log 2` for equal shares, so that single rows cannot dominate. Divided by `w` it tends to
    `kl` as `w` goes to 0, divided by `1 - w` to `reverse_kl` as `w` goes to 1; at both ends it is 0 itself, so they
    are refused here, where TRL and ms-swift switch to those two.

    Attributes:
        weight: Factor of the term.
        teacher_share: Share of the teacher in the mixture that both are compared with, between 0 and 1.
    """

    name: ClassVar[str] = "js"
    paper: ClassVar[str] = (
        "Agarwal et al. 2024, On-Policy Distillation of Language Models (GKD), arXiv 2306.13649, equation 1"
    )

    teacher_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.jensen_shannon`."""
        return divergences.jensen_shannon(log_p, log_q, self.teacher_share)

    def from_logits(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """See `closed_form.jensen_shannon`."""
        return closed_form.jensen_shannon(student, teacher, temperature, self.teacher_share)


@component
class SkewedKL(Softened):
    """`T^2 * KL(p || s p + (1 - s) q)`, `kl` against a student mixed with the teacher. See `divergences.skewed_kl`.

    Ko et al. 2024, DistiLLM (arXiv 2402.03898), section 3.1, with its default skew.

    Relations: `kl` at skew 0. At most `-log s` a row, so that a token the student finds impossible does not dominate.
    DistiLLM's code leaves out the teacher's entropy, which changes the value by a constant.

    Attributes:
        weight: Factor of the term.
        skew: Share of the teacher in the mixture.
    """

    name: ClassVar[str] = "skewed_kl"
    paper: ClassVar[str] = "Ko et al. 2024, DistiLLM, arXiv 2402.03898, section 3.1"

    skew: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.skewed_kl`."""
        return divergences.skewed_kl(log_p, log_q, self.skew)


@component
class SkewedReverseKL(Softened):
    """`T^2 * KL(q || s q + (1 - s) p)`: `reverse_kl` against a teacher mixed with the student.

    See `divergences.skewed_kl`.

    Ko et al. 2024, DistiLLM (arXiv 2402.03898), section 3.1, with its default skew.

    Relations: `reverse_kl` at skew 0; `skewed_kl` with the models exchanged.

    Attributes:
        weight: Factor of the term.
        skew: Share of the student in the mixture.
    """

    name: ClassVar[str] = "skewed_reverse_kl"
    paper: ClassVar[str] = "Ko et al. 2024, DistiLLM, arXiv 2402.03898, section 3.1"

    skew: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.skewed_kl`."""
        return divergences.skewed_kl(log_q, log_p, self.skew)


@component
class AdaptiveKL(Softened):
    """`kl` and `reverse_kl`, each row weighing them by where its gap to the teacher is. See `divergences.adaptive_kl`.

    `T^2 * (h KL(p || q) + (1 - h) KL(q || p))`, `h` the share of the gap `sum |p - q|` that lies in the head of the
    teacher's distribution (Wu et al. 2024, arXiv 2404.02657, as in the authors' AKL.py, whose 0 / 0 for
    equal models is a half here).

    Relations: between `kl`, which first fits the head, and `reverse_kl`, which first fits the tail. `h` is a constant
    to the gradient, so the gradient is not that of the value. The head in DSKD and KDFlow also holds the class that
    crosses `head_mass`.

    Attributes:
        weight: Factor of the term.
        head_mass: Mass of the teacher's likeliest classes that make up the head.
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
        """See `divergences.adaptive_kl`."""
        return divergences.adaptive_kl(log_p, log_q, self.head_mass)


@component
class TotalVariation(Softened):
    """Total variation distance, `T^2 / 2 * sum_v |p_v - q_v|`. See `divergences.total_variation`.

    Wen et al. 2023, f-distill (arXiv 2307.15190). Its gradient shrinks as `1 / T` only, so `T^2` overcompensates;
    DistillKit multiplies by it all the same, hence the default.

    Relations: symmetric and at most 1, like `js`, without the logarithm that makes rare classes count.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "total_variation"
    paper: ClassVar[str] = (
        "Wen et al. 2023, f-Divergence Minimization for Sequence-Level Distillation, arXiv 2307.15190"
    )

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.total_variation`."""
        return divergences.total_variation(log_p, log_q)


@component
class SoftCrossEntropy(Softened):
    """`-T^2 * sum_v p_v log q_v`, the cross-entropy with the teacher's distribution. See `divergences.cross_entropy`.

    Relations: `kl` plus the teacher's entropy: the same gradient, but the value at the minimum is that entropy.
    TextBrewer, torchtune and DistiLLM report it. With a sparse teacher it is the cross-entropy of the buckets.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "soft_cross_entropy"
    paper: ClassVar[str] = (
        "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2"
    )
    takes_samples: ClassVar[bool] = True

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.cross_entropy`."""
        return divergences.cross_entropy(log_p, log_q)


@component
class DecoupledKL(Softened):
    """Decoupled knowledge distillation (DKD): certainty of the label and ranking of the others apart, times `T^2`.

    `a KL(b_p || b_q) + c KL(n_p || n_q)` (Zhao et al. 2022, arXiv 2203.08679, equation 7, with the authors'
    defaults). A row without label costs nothing, so the sum is divided by the number of labels. See
    `divergences.decoupled_kl`.

    Relations: `kl` is the case `a = 1`, `c = 1 - p_label`, which weighs the other classes least where the teacher is
        surest.

    Attributes:
        weight: Factor of the term.
        target_weight: `a`, of the divergence between label and not label; alpha in the paper.
        non_target_weight: `c`, of the divergence among the other classes; beta in the paper.
    """

    name: ClassVar[str] = "decoupled_kl"
    paper: ClassVar[str] = "Zhao et al. 2022, Decoupled Knowledge Distillation, arXiv 2203.08679, equation 7"
    unit: ClassVar[Unit] = "label"
    takes_sparse: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = "the label may be a class that was not kept, and then its probability is unknown"

    target_weight: Annotated[float, Field(ge=0.0)] = 1.0
    non_target_weight: Annotated[float, Field(ge=0.0)] = 8.0

    def between(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Tensor:
        """See `divergences.decoupled_kl`."""
        return divergences.decoupled_kl(log_p, log_q, labels, self.target_weight, self.non_target_weight)
