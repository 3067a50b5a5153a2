"""Objectives on hidden states: of all layers, of the embeddings, of the first token, of one layer in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.models.layers import Stack
from hf_distill.objectives.feature_terms import FeatureTerm, Positions
from hf_distill.objectives.features import FeatureObjective, StackObjective
from hf_distill.objectives.layer_mapping import Layers

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison, Reads, Term
    from hf_distill.rows.base import Unit


@component
class Hidden(FeatureObjective):
    """Difference of hidden states of paired layers, at every token.

    Formula:
        `mse`: `1 / D * sum_d (W h_s - h_t)_d^2`; `cosine`: `1 - cos(W h_s, h_t)`; mean over pairs of layers

    `W` is the identity if both models are equally wide, else a learned matrix for every pair; it trains with the
    student and is not exported. TinyBERT shares one matrix, with a bias, and sums over layers. `cosine` with `layers:
    last` is the third loss of DistilBERT (section 3). TextBrewer's `hidden_mse` and DistillKit report the same number
    for a pair.

    `embeddings` is `mse` at index 0; `hint` compares one layer and always has `W`; `patient` compares one normalised
    token.

    Attributes:
        loss: `mse` compares length and direction, `cosine` the direction only.
        normalize: First give every state mean 0 and variance 1, as MobileBERT does (a layer norm without weights).
            Without it, the few entries that are large in all states make up most of `mse`.
        projection: Learned matrix from the student's width to the teacher's. `auto`: added when the widths differ;
            `always`: also when they are equal, as in TinyBERT.
    """

    name: ClassVar[str] = "hidden"
    paper: ClassVar[str] = (
        "Jiao et al. 2020, TinyBERT, arXiv 1909.10351, equation 8; Sanh et al. 2019, DistilBERT, arXiv 1910.01108"
    )
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    loss: Literal["mse", "cosine"] = "mse"
    normalize: bool = False
    projection: Literal["auto", "always"] = "auto"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        projected = True if self.projection == "always" else None
        return HiddenTerm(self, student, teacher, self.loss, normalize=self.normalize, projected=projected)


@component
class Embeddings(StackObjective):
    """Mean squared error of the outputs of the embeddings, at every token.

    Formula:
        `1 / D * sum_d (W e_s - e_t)_d^2`

    The outputs are what the first layer sees: with positions, and in BERT after the layer norm. `W` is learned if the
    widths differ. It is `hidden` with `layers: [[0, 0]]`.
    """

    name: ClassVar[str] = "embeddings"
    paper: ClassVar[str] = "Jiao et al. 2020, TinyBERT, arXiv 1909.10351, equation 9"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    def pairs(self, student: Stack, teacher: Stack) -> tuple[tuple[int, int], ...]:
        """Return the embeddings of both."""
        return ((0, 0),)

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return HiddenTerm(self, student, teacher, "mse")


@component
class Patient(FeatureObjective):
    """Patient knowledge distillation (PKD): squared difference of the normalised states of one token.

    Formula:
        `sum_d (h_s / |h_s| - h_t / |h_t|)_d^2 = 2 - 2 cos(h_s, h_t)` of one token; mean over pairs of layers

    It lies between 0 and 4 whatever the width, as in the paper and in TextBrewer. The authors' code takes the mean over
    the `D` entries: divide a weight from there by `D`. If the widths differ, a learned projection comes first. It is
    twice `hidden` with `loss: cosine`, of one token instead of all.

    Attributes:
        layers: Which layers to compare, as for `hidden`. The default is the paper's better choice: it leaves out the
            last layer.
        token: `first` for encoders, which sum up a text there; `last` for decoder-only classifiers, whose first token
            sees only itself.
    """

    name: ClassVar[str] = "patient"
    paper: ClassVar[str] = (
        "Sun et al. 2019, Patient Knowledge Distillation for BERT Model Compression, arXiv 1908.09355"
    )
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    layers: Layers = "skip"
    token: Literal["first", "last"] = "first"

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """One token of every example."""
        return "example"

    @property
    def states_of(self) -> Literal["tokens", "first", "last"]:  # type: ignore[override]
        """That token."""
        return self.token

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return PatientTerm(self, student, teacher, last=self.token == "last")


@component
class Hint(FeatureObjective):
    """A layer of the student predicts one of the teacher's through a learned matrix.

    Formula:
        `1 / D * sum_d (W h_s - h_t)_d^2`, `W` always learned

    The matrix lets the student represent the teacher's features in its own way. The paper has half the sum over `d`
    (multiply a weight from there by `D / 2`), a convolution as the regressor, and trains it in a stage of its own
    before the labels; here it is a loss like any other, as in RepDistiller. It is `hidden` with `layers: middle` and
    `projection: always`.

    Attributes:
        layers: Which layers to compare, as for `hidden`; by default the middle layer of each model.
    """

    name: ClassVar[str] = "hint"
    paper: ClassVar[str] = "Romero et al. 2015, FitNets: Hints for Thin Deep Nets, arXiv 1412.6550"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    layers: Layers = "middle"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return HiddenTerm(self, student, teacher, "mse", projected=True)


class HiddenTerm(FeatureTerm):
    """Mean squared error or cosine distance of hidden states.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        loss: `mse` or `cosine`.
        normalize: Whether states get mean 0 and variance 1 first.
        projected: Whether there is a learned projection; where the widths differ, if left out.
    """

    def __init__(
        self,
        objective: StackObjective,
        student: nn.Module,
        teacher: nn.Module | None,
        loss: Literal["mse", "cosine"],
        *,
        normalize: bool = False,
        projected: bool | None = None,
    ) -> None:
        super().__init__(objective, student, teacher, projected=projected)
        self.loss = loss
        self.normalize = normalize

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare one pair of layers, position by position."""
        student = self.projected(place, student)
        if self.normalize:
            student, teacher = (F.layer_norm(states, states.shape[-1:]) for states in (student, teacher))
        if self.loss == "cosine":
            return 1 - F.cosine_similarity(student, teacher, dim=-1)
        return (student - teacher).square().mean(-1)


class PatientTerm(FeatureTerm):
    """Squared distance of the normalised states of one token of every sequence.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        last: Whether it is the last token that counts, not the first.
    """

    def __init__(
        self, objective: StackObjective, student: nn.Module, teacher: nn.Module | None, *, last: bool = False
    ) -> None:
        super().__init__(objective, student, teacher, projected=None)
        self.last = last

    def positions(self, comparison: Comparison) -> Positions:
        """Return the first (last) token that counts of every sequence."""
        mask = super().positions(comparison).mask
        order = mask.cumsum(1)  # padding may be on either side
        wanted = order[:, -1:] if self.last else 1
        return Positions(mask & (order == wanted), comparison)

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare one pair of layers, position by position."""
        student = self.projected(place, student)
        return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)
