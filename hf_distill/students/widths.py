"""The widths of a model that can be pruned, and which smaller ones are possible: from its configuration alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from hf_distill.errors import UserError
from hf_distill.students.configurations import reason

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _some(wanted: int | float) -> int | float:
    if wanted <= 0 or (isinstance(wanted, float) and wanted > 1):
        what = "is more than all" if wanted > 0 else "leaves nothing"
        raise ValueError(f"{wanted} {what}. Wanted how many to keep (1 or more), or the share to keep (0.5 is half).")
    return wanted


# How much is kept: a number, or a share of what there is.
Kept = Annotated[int | float, AfterValidator(_some)]


@dataclass(frozen=True)
class Architecture:
    """Where the widths of a family of models are.

    Attributes:
        queries: Name of the projection to queries in a layer; the same for the others.
        keys: To keys.
        values: To values.
        attended: From the heads back to the hidden width.
        up: From the hidden width to the intermediate one; two where one is a gate.
        down: From the intermediate width to the hidden one.
        intermediate: Key of the configuration for the intermediate width.
        own_head_dim: Whether the configuration has the width of a head (`head_dim`). Without it, heads and hidden
            width cannot differ: the hidden width is the number of heads times the width of one.
        divided: Whether the hidden width has to be a multiple of the number of heads all the same.
    """

    queries: str
    keys: str
    values: str
    attended: str
    up: tuple[str, ...]
    down: str
    intermediate: str = "intermediate_size"
    own_head_dim: bool = False
    divided: bool = False


_BERT = Architecture(
    queries="attention.self.query",
    keys="attention.self.key",
    values="attention.self.value",
    attended="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
)
_DISTILBERT = Architecture(
    queries="attention.q_lin",
    keys="attention.k_lin",
    values="attention.v_lin",
    attended="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    intermediate="hidden_dim",
)
_MISTRAL = Architecture(
    queries="self_attn.q_proj",
    keys="self_attn.k_proj",
    values="self_attn.v_proj",
    attended="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    own_head_dim=True,
)
# `model_type` of the configuration -> where its widths are. In each, all layers are alike.
ARCHITECTURES = {
    **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), _BERT),
    "distilbert": _DISTILBERT,
    "llama": replace(_MISTRAL, divided=True),
    **dict.fromkeys(("mistral", "qwen2", "qwen3"), _MISTRAL),
}


@dataclass(frozen=True)
class Widths:
    """Widths of a model, equal in all layers.

    Attributes:
        heads: Attention heads of a layer.
        groups: Key-value heads of a layer; each is shared by `heads / groups` heads.
        head_dim: Width of a head.
        intermediate: Neurons of a layer, between its two linear maps.
        hidden: Width of the hidden states.
    """

    heads: int
    groups: int
    head_dim: int
    intermediate: int
    hidden: int


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Return where the widths of a model are.

    Raises:
        UserError: The model is of another architecture than those known here.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None or getattr(config, "add_cross_attention", False):
        raise UserError(
            f"prune_width knows the widths of {', '.join(ARCHITECTURES)}; {type(config).__name__} describes something "
            "else. Prune layers instead: student: {name: prune_depth, layers: 0.5}.",
            key="name",
        )
    return known


def widths_of(config: PretrainedConfig) -> Widths:
    """Return the widths of a model.

    Raises:
        UserError: As `architecture_of`.
    """
    architecture = architecture_of(config)
    heads, hidden = config.num_attention_heads, config.hidden_size
    return Widths(
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        intermediate=getattr(config, architecture.intermediate),
        hidden=hidden,
    )


def narrower(
    whole: Widths,
    architecture: Architecture,
    *,
    heads: int | float | None,
    intermediate: int | float | None,
    hidden: int | float | None,
) -> Widths:
    """Return the widths that are asked for.

    Args:
        whole: The widths of the whole model.
        architecture: Where they are.
        heads: Heads of a layer to keep: a number, a share, or None for all. The same for the others.
        intermediate: Neurons of a layer.
        hidden: Hidden width.

    Raises:
        UserError: There are not so many, or such a model does not exist.
    """
    neurons = kept_of("intermediate", intermediate, whole.intermediate)
    if architecture.own_head_dim:
        shared = whole.heads > whole.groups
        unit, why = (whole.groups, "the number of key-value heads, since each keeps equally many heads")
        fewer = kept_of("heads", heads, whole.heads, unit if shared else 1, why)
        return Widths(
            heads=fewer,
            groups=whole.groups if shared else fewer,
            head_dim=whole.head_dim,
            intermediate=neurons,
            hidden=kept_of("hidden", hidden, whole.hidden, fewer if architecture.divided else 1, "the number of heads"),
        )
    narrow = kept_of("hidden", hidden, whole.hidden, whole.head_dim, "the width of a head, which stays")
    follows = narrow // whole.head_dim
    fewer = follows if heads is None else kept_of("heads", heads, whole.heads)
    if fewer != follows:
        raise UserError(
            f"{fewer} heads of {whole.head_dim} are {fewer * whole.head_dim} wide, but the hidden width is {narrow}, "
            f"and in this architecture the two are the same. Set hidden: {fewer * whole.head_dim}, or leave heads out: "
            "their number follows hidden.",
            key="heads",
        )
    return Widths(fewer, fewer, whole.head_dim, neurons, narrow)


def with_widths(config: PretrainedConfig, widths: Widths) -> PretrainedConfig:
    """Return a copy of a configuration with other widths.

    Raises:
        UserError: Its class refuses them: a Llama's hidden width has to be a multiple of its number of heads.
    """
    narrow, whole = copy.deepcopy(config), widths_of(config)
    narrow.name_or_path = ""  # no checkpoint of this shape exists
    if widths == whole:
        return narrow
    architecture = architecture_of(config)
    setattr(narrow, architecture.intermediate, widths.intermediate)
    narrow.hidden_size, narrow.num_attention_heads = widths.hidden, widths.heads
    if architecture.own_head_dim:
        narrow.num_key_value_heads, narrow.head_dim = widths.groups, widths.head_dim
    try:
        narrow.validate()  # else it is refused when the trained student is saved
    except Exception as error:
        raise UserError(f"{type(config).__name__} refuses these widths: {reason(error)}", key="heads") from error
    return narrow


def kept_of(field: str, wanted: int | float | None, total: int, unit: int = 1, why: str = "") -> int:
    """Return how many are kept of `total`, in multiples of `unit`; a share gives the nearest of these.

    Args:
        field: The recipe's key.
        wanted: How many, or which share; None for all.
        total: How many there are.
        unit: What it must be a multiple of.
        why: What `unit` is, for the error.

    Raises:
        UserError: There are not so many, or it is not a multiple.
    """
    if wanted is None:
        return total
    if isinstance(wanted, float):
        return max(round(wanted * total / unit), 1) * unit
    if wanted > total:
        raise UserError(
            f"{wanted} is more than there is: the model has {total}. A share is written as a decimal: 0.5.", key=field
        )
    if wanted % unit:
        below = wanted // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if 0 < size <= total)
        raise UserError(f"{wanted} is not a multiple of {unit}, {why}. Set {near}.", key=field)
    return wanted
