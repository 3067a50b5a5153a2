"""Relations between the tokens of a text, inside attention: what MiniLM compares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.layers import Part, each_once
from hf_distill.models.target_rows import upcast
from hf_distill.objectives.attention_vectors import Vectors
from hf_distill.objectives.feature_terms import FeatureTerm
from hf_distill.objectives.features import FeatureObjective, check_heads
from hf_distill.objectives.layer_mapping import Layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.objectives.base import Comparison, Term

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
    """How the tokens of a text relate to each other in a layer of attention (MiniLM).

    Formula:
        `sum_j R_t(j) log(R_t(j) / R_s(j))`, `R = softmax(X X^T / sqrt(d))` for each kind `X` in `of`; mean over
        `relation_heads`, sum over kinds; for `attention`, `R` is the attention probability

    For `queries`, `keys` and `values`, all vectors `X` of a layer, its heads side by side, are cut anew into
    `relation_heads` parts of `d` entries. The three together are MiniLMv2. Widths and numbers of attention heads may
    differ between the models. `attention` compares the layers' attention probabilities before dropout; both models then
    need equally many heads. Together with `values` it is MiniLM.

    Padding does not count, neither as a token nor as `j`; in a decoder `j` is never after the token. Vectors are taken
    before rotary positions are applied. The papers average over texts; here every token weighs the same. Memory grows
    with heads and with the square of the length.

    Attributes:
        of: What to relate: any of `queries`, `keys`, `values` and `attention`.
        relation_heads: Number of parts into which queries, keys and values are cut, in both models. Published: 48 for
            teachers of BERT-base's size, 64 for large ones. Default: the teacher's number of attention heads.
        layers: Which layers to compare, as for `hidden`, counted from 1. MiniLMv2 takes layer 21 of BERT-large's 24 and
            19 of RoBERTa-large's: `[[6, 21]]`.
    """

    name: ClassVar[str] = "relations"
    paper: ClassVar[str] = "Wang et al. 2021, MiniLMv2, arXiv 2012.15828; Wang et al. 2020, MiniLM, arXiv 2002.10957"
    lowest_layer: ClassVar[int] = 1

    of: Kinds = ("queries", "keys", "values")
    relation_heads: Annotated[int, Field(ge=1)] | None = None
    layers: Layers = "last"

    @property
    def outputs(self) -> frozenset[str]:  # type: ignore[override]
        """What layers are chosen by; the vectors themselves are not outputs of a model."""
        return frozenset({"hidden_states"} if self.layers == "similarity" else ())

    def heads(self, teacher: PretrainedConfig) -> int:
        """Return the number of relation heads."""
        return self.relation_heads or check_heads(self.stacks(teacher, teacher)[1])

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse two models that it cannot compare."""
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
        """Return the term for these two models, its layers chosen and its projections made."""
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


class RelationTerm(FeatureTerm):
    """The term of `relations`: vectors of the chosen layers, and the divergence of their relations.

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
        """Look at a batch to choose layers; the vectors themselves are not needed for that."""
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

    `R = softmax(X Y^T / sqrt(d))`, `X` and `Y` cut into `heads` of `d` entries; over the tokens that are not padding,
    and with `causal` not after the one that looks (Wang et al. 2021, arXiv 2012.15828, with `X = Y`).

    Args:
        student: `X` and `Y`, `(sequences, tokens, width)`.
        teacher: The same of the teacher, whose width may differ.
        heads: Divides both widths.
        mask: Which tokens are not padding, bool `(sequences, tokens)`.
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
    vectors = upcast(vectors).masked_fill(~mask.unsqueeze(-1), 0.0)
    return vectors.reshape(*mask.shape, heads, -1).transpose(1, 2)
