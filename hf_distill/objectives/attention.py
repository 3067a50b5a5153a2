"""The objective on maps of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.layers import Stack
from hf_distill.objectives.feature_terms import FeatureTerm, Positions
from hf_distill.objectives.features import FeatureObjective, check_heads
from hf_distill.objectives.layer_mapping import Layers

if TYPE_CHECKING:
    from hf_distill.objectives.base import Term
    from hf_distill.objectives.features import StackObjective


@component
class Attention(FeatureObjective):
    """Difference of the attention probabilities of paired layers.

    Formula:
        `mse`: `1 / L * sum_j (a_t - a_s)_j^2`; `kl`: `sum_j a_t log(a_t / a_s)`; mean over heads and pairs of layers

    `a_j` is the probability with which a head at a token attends token `j`, and `L` the number of tokens of the text.
    The probabilities are those before dropout: dropped entries would be 0, and their divergence infinite. TinyBERT
    (equation 7) compares the scores before the softmax, which Transformers no longer returns, so its weights are not
    transferable. Maps exist with eager attention only; both models are switched to it for the training.

    `hidden` compares what was found there. `kl` weighs tokens by what the teacher attends to, and is not bounded; `mse`
    becomes small if attention is spread over many tokens.

    Attributes:
        layers: Which layers to compare, as for `hidden`, counted from 1: the embeddings have no attention.
        compare: `mse`: squared difference of the probabilities. `kl`: their divergence.
        heads: `groups`: head by head; if the teacher has a multiple of the student's heads, each of the student's is
            compared with the mean of as many neighbouring ones. `mean`: compare the means over all heads.
    """

    name: ClassVar[str] = "attention"
    paper: ClassVar[str] = "Jiao et al. 2020, TinyBERT, arXiv 1909.10351, equation 7"
    needs_eager_attention: ClassVar[bool] = True
    lowest_layer: ClassVar[int] = 1

    layers: Layers = "uniform"
    compare: Literal["mse", "kl"] = "mse"
    heads: Literal["groups", "mean"] = "groups"

    @property
    def outputs(self) -> frozenset[str]:  # type: ignore[override]
        """Maps, and hidden states where layers are paired by their similarity."""
        return frozenset({"attentions", "hidden_states"} if self.layers == "similarity" else {"attentions"})

    def check_stacks(self, student: Stack, teacher: Stack) -> None:
        """Refuse models without attention, and heads that cannot be grouped.

        Raises:
            UserError: They cannot be compared.
        """
        mine, theirs = check_heads(student), check_heads(teacher)
        if self.heads == "groups" and theirs % mine:
            raise UserError(
                f"{teacher.name} has {theirs} attention heads and {student.name} {mine}: no multiple, so they cannot "
                "be grouped. Compare their means: 'mean'.",
                key="heads",
            )

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return AttentionTerm(self, student, teacher, self.compare, mean=self.heads == "mean")


class AttentionTerm(FeatureTerm):
    """Squared difference or divergence of maps of attention, for every token that looks.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        measure: `mse` or `kl`.
        mean: Whether the means over heads are compared, rather than heads (or groups of them).
    """

    compared: ClassVar[str] = "attentions"

    def __init__(
        self,
        objective: StackObjective,
        student: nn.Module,
        teacher: nn.Module | None,
        measure: Literal["mse", "kl"],
        *,
        mean: bool = False,
    ) -> None:
        super().__init__(objective, student, teacher)
        self.measure = measure
        self.mean = mean

    def watching(self) -> AbstractContextManager[None]:
        """Keep attention probabilities as they are before dropout."""
        watch: Any = _BeforeDropout()
        return watch  # type: ignore[no-any-return]

    def rows(self, layer: Tensor, positions: Positions) -> Tensor:
        """Return the rows of `(sequences, heads, queries, keys)` whose query counts, `(positions, heads, keys)`.

        Padding is not a key: its probability is 0 in both models.
        """
        whole: Tensor = getattr(layer, "before_dropout", layer)
        return positions.select(whole.transpose(1, 2))

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean over heads of the sum over keys, `(positions,)`; see `FeatureTerm.compare`."""
        heads = 1 if self.mean else student.shape[1]
        student, teacher = (
            maps.reshape(len(maps), heads, maps.shape[1] // heads, maps.shape[2]).mean(2) for maps in (student, teacher)
        )
        if self.measure == "mse":
            return (student - teacher).square().sum(-1).mean(-1)
        # A probability may underflow to 0, which is also that of keys to come and of padding.
        log_student = student.clamp(min=torch.finfo(student.dtype).tiny).log()
        return (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(-1)

    def reduce(self, losses: Tensor, positions: Positions) -> Tensor:
        """Sum `(positions,)` into `(batch,)`; of `mse` the mean over the tokens there are to look at."""
        if self.measure == "mse":
            losses = losses / positions.mask.sum(-1)[positions.sequences]
        return positions.sum(losses)


class _BeforeDropout(TorchFunctionMode):
    """Notes on what comes out of dropout what went in: models return their maps after it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = settings or {}
        found = function(*arguments, **settings)
        if function is F.dropout and isinstance(found, Tensor) and found.ndim == 4:
            whole = arguments[0] if arguments else settings["input"]
            if found is not whole:
                found.before_dropout = whole  # type: ignore[attr-defined]
        return found
