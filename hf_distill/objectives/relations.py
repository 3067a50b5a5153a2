"""Relations between the tokens of a text, inside attention: what MiniLM compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives.features import FeatureObjective, check_heads
from hf_distill.objectives.layers import Layers, Part, each_once

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from hf_distill.objectives.term import Term

Relation = Literal["queries", "keys", "values", "attention"]
# Python users may write a list, as YAML does.
Kinds = Annotated[
    tuple[Relation, ...],
    Field(min_length=1),
    BeforeValidator(lambda kinds: tuple(kinds) if isinstance(kinds, list) else kinds),
    AfterValidator(each_once),
]
# Whose attention is softmax(Q K^T / sqrt(d)) and nothing else: no rotation, no bias by distance between Q and K.
PLAIN_ATTENTION = frozenset(
    {"albert", "bart", "bert", "camembert", "distilbert", "electra", "mbart", "roberta", "xlm-roberta"}
)


@component
class Relations(FeatureObjective):
    """How the tokens of a text relate to each other within a layer of attention (MiniLM).

    `queries`, `keys`, `values`: all vectors `X` of a layer, its heads side by side, are cut anew into `relation_heads`
    of `d` entries, and `R = softmax(X X^T / sqrt(d))` says how much a token has to do with each other one. The loss of
    a token is `sum_j R_t(j) log(R_t(j) / R_s(j))`, mean over the relation heads, summed over the kinds of relation; the
    sum over tokens is divided by the number of tokens. The three together are MiniLMv2 (Wang et al. 2021, arXiv
    2012.15828). Widths and numbers of attention heads may differ between the models.

    `attention`: the same divergence between the layers' attention probabilities, before dropout, whose heads must be as
    many in both models. With `values` it is MiniLM (Wang et al. 2020, arXiv 2002.10957).

    Padding is no token, neither as `i` nor as `j`; in a decoder `j` is never after `i`. Vectors are taken before rotary
    positions are applied. There, a mean over texts of means over tokens; here every token weighs the same. Memory grows
    with heads and with the square of the length.

    Attributes:
        weight: Factor of the term.
        of: Which relations: any of `queries`, `keys`, `values`, `attention`.
        relation_heads: Into how many parts queries, keys and values are cut, in both models; published: 48 for
            teachers of the size of BERT-base, 64 for large ones. As many as the teacher's
            attention heads if left out.
        layers: Which layers are compared: `last`, any other rule, or pairs of indices `[[student, teacher], ...]`,
            counted from 1; MiniLMv2 takes layer 21 of BERT-large's 24 and 19 of RoBERTa-large's, `[[6, 21]]`.
        part: Which stack of an encoder-decoder is compared; not given for other models.
    """

    name: ClassVar[str] = "relations"
    lowest_layer: ClassVar[int] = 1

    of: Kinds = ("queries", "keys", "values")
    relation_heads: Annotated[int, Field(ge=1)] | None = None
    layers: Layers = "last"

    @property
    def outputs(self) -> frozenset[str]:  # type: ignore[override]
        """What layers are chosen by; the vectors themselves are no outputs of a model."""
        return frozenset({"hidden_states"} if self.layers == "similarity" else ())

    def heads(self, teacher: PretrainedConfig) -> int:
        """Return the number of relation heads."""
        return self.relation_heads or check_heads(self.stacks(teacher, teacher)[1])

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """See `Objective.check`."""
        super().check(student, teacher)
        stacks = self.stacks(student, teacher)
        ours, theirs = (check_heads(stack) for stack in stacks)
        if "attention" in self.of:
            for stack, config in zip(stacks, (student, teacher), strict=True):
                _check_plain(stack.name, config)
            if ours != theirs:
                raise UserError(
                    f"'attention' compares head by head, but {stacks[0].name} has {ours} heads and {stacks[1].name} "
                    f"{theirs}. Use [queries, keys, values] with relation_heads.",
                    key="of",
                )
        wanted = self.heads(teacher)
        for stack, config in zip(stacks, (student, teacher), strict=True):
            for kind, width in vector_widths(config, self.part).items():
                if kind in self.of and width % wanted:
                    raise UserError(
                        f"{wanted} relation heads do not divide the {width} entries of the {kind} of {stack.name}. "
                        "Set relation_heads to a number that divides them in both models.",
                        key="relation_heads",
                    )

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `relation_terms.RelationTerm`."""
        from hf_distill.objectives.relation_terms import RelationTerm

        return RelationTerm(self, student, teacher)


def vector_widths(config: PretrainedConfig, part: Part | None) -> dict[str, int]:
    """Return how many entries the queries, keys and values of a token have, all heads together."""
    text: Any = config.get_text_config(encoder=part == "encoder", decoder=part == "decoder")
    heads = text.num_attention_heads
    width = getattr(text, "true_hidden_size", None) or text.hidden_size  # MobileBERT attends in a bottleneck
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or width // heads
    shared = (getattr(text, "num_key_value_heads", None) or heads) * size
    return {"queries": heads * size, "keys": shared, "values": shared}


def _check_plain(name: str, config: PretrainedConfig) -> None:
    relative = getattr(config, "position_embedding_type", None) or "absolute"
    if config.model_type not in PLAIN_ATTENTION or relative != "absolute":
        raise UserError(
            f"'attention' is computed from queries and keys alone, and what {name} attends to also depends on "
            "something else (rotary or relative positions, a decoder's cache). Use [queries, keys, values].",
            key="of",
        )
