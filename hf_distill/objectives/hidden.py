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
    """Difference of the hidden states of paired layers, for every token. See `hidden.HiddenTerm`.

    `mse`: `1 / D * sum_d (W h_s - h_t)_d^2`. `cosine`: `1 - cos(W h_s, h_t)`; with `layers: last` the third term of
    DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 3). The mean over pairs of layers; a sum over tokens that
    the trainer divides by their number: the number that TextBrewer's `hidden_mse` and DistillKit report for a pair.

    `W` is the identity where both models are equally wide, else a learned matrix for every pair, which trains with the
    student and is not exported. TinyBERT (Jiao et al. 2020, arXiv 1909.10351, equation 8) shares one, with a bias, and
    sums over layers.

    Relations: `embeddings` is `mse` at index 0, `hint` at one layer and always with `W`, `patient` a normalised one of
    one token.

    Attributes:
        weight: Factor of the term.
        loss: `mse` compares length and direction, `cosine` the direction only.
        normalize: Give every state mean 0 and variance 1 first, as MobileBERT does (a layer norm without weights):
            without it the few entries that are large in all states make up most of `mse`.
        projection: `auto`: learned where the widths differ. `always`: also where they are equal, as in TinyBERT.
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
        """See `Objective.prepare`."""
        projected = True if self.projection == "always" else None
        return HiddenTerm(self, student, teacher, self.loss, normalize=self.normalize, projected=projected)


@component
class Embeddings(StackObjective):
    """Mean squared error of the outputs of the embeddings, `1 / D * sum_d (W e_s - e_t)_d^2` for every token.

    TinyBERT (Jiao et al. 2020, arXiv 1909.10351, equation 9). They are what the first block sees: with positions, and
    in BERT after the layer norm. `W` is learned where the widths differ.

    Relations: `hidden` with `layers: [[0, 0]]`.

    Attributes:
        weight: Factor of the term.
    """

    name: ClassVar[str] = "embeddings"
    paper: ClassVar[str] = "Jiao et al. 2020, TinyBERT, arXiv 1909.10351, equation 9"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    def pairs(self, student: Stack, teacher: Stack) -> tuple[tuple[int, int], ...]:
        """Return the embeddings of both."""
        return ((0, 0),)

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        return HiddenTerm(self, student, teacher, "mse")


@component
class Patient(FeatureObjective):
    """Patient knowledge distillation (PKD): squared difference of the normalised states of one token.

    `sum_d (h_s / |h_s| - h_t / |h_t|)_d^2` of the first token, which is BERT's `[CLS]`, the mean over pairs of layers
    (Sun et al. 2019, arXiv 1908.09355). The unit is the example. That is `2 - 2 cos`, between 0 and 4 whatever the
    width, as in the paper and in TextBrewer; the authors' code takes the mean over the `D` entries, so a weight from
    there is `D` times too large here. Where the widths differ, a learned projection comes first.

    Relations: `hidden` with `loss: cosine`, doubled, of one token instead of all.

    Attributes:
        weight: Factor of the term.
        layers: As elsewhere; by default `skip`, the paper's better choice, which leaves out the last layer.
        token: `first`, where encoders sum up a text; `last`, where decoder-only classifiers do: their first token sees
            nothing but itself.
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
        """See `Objective.prepare`."""
        return PatientTerm(self, student, teacher, last=self.token == "last")


@component
class Hint(FeatureObjective):
    """A layer of the student predicts one of the teacher's through a learned regressor, which is always there.

    `1 / D * sum_d (W h_s - h_t)_d^2` for every token (FitNets: Romero et al. 2015, arXiv 1412.6550). The paper has half
    the sum over `d`, a convolution as the regressor, and trains it in a stage of its own before the labels; here it is
    a term like any other, as in RepDistiller, and a weight of the paper is multiplied by `D / 2`.

    Relations: `hidden` with `layers: middle` and `projection: always`. The regressor lets the student keep the
    teacher's features in a basis of its own.

    Attributes:
        weight: Factor of the term.
        layers: As elsewhere; by default the middle layer of each.
    """

    name: ClassVar[str] = "hint"
    paper: ClassVar[str] = "Romero et al. 2015, FitNets: Hints for Thin Deep Nets, arXiv 1412.6550"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"

    layers: Layers = "middle"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
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
        """See `FeatureTerm.compare`."""
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
        """See `FeatureTerm.compare`."""
        student = self.projected(place, student)
        return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)
