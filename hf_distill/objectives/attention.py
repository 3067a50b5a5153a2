"""The objective on maps of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives.features import FeatureObjective, check_heads
from hf_distill.objectives.layers import Layers, Stack

if TYPE_CHECKING:
    from torch import nn

    from hf_distill.objectives.term import Term


@component
class Attention(FeatureObjective):
    """Does every token of the student look where the teacher's looks? See `attention_terms.AttentionTerm`.

    With `a(h, i, j)` the probability with which head `h` at token `i` attends token `j`:
    `kl`: `sum_j a_t log(a_t / a_s)`. `mse`: `1 / L * sum_j (a_t - a_s)^2`, `L` the number of tokens of the sequence.
    Means over heads and pairs of layers, and a sum over the tokens that are no padding.

    The probabilities are those before dropout: dropped entries would be 0, and their divergence infinite. TinyBERT
    (Jiao et al. 2020, arXiv 1909.10351, equation 7) compares the scores before the softmax, which Transformers does
    not return any more: its weights are not transferable. Maps exist with eager attention only, to which both models
    are switched for the training.

    Relations: `hidden` compares what was found there. `kl` weighs rows by what the teacher finds likely, and is not
    bounded; `mse` becomes small where attention is spread over many tokens.

    Attributes:
        weight: Factor of the term.
        layers: As elsewhere, from 1 on: the embeddings have no attention.
        compare: `mse` or `kl`.
        heads: `groups`: head by head; where the teacher has a multiple of the student's heads, each of the student's is
            compared with the mean of as many neighbours. `mean`: the means over all heads, whatever their numbers.
    """

    name: ClassVar[str] = "attention"
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
        """See `Objective.prepare`."""
        from hf_distill.objectives.attention_terms import AttentionTerm

        return AttentionTerm(self, student, teacher, self.compare, mean=self.heads == "mean")
