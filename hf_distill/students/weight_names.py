"""Names the weights of a model by their task, so that models of different classes can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data.label_names import label_names
from hf_distill.errors import UserError
from hf_distill.models.inspection import OFFSET_POSITIONS
from hf_distill.models.layers import find_stacks
from hf_distill.models.parts import head

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Number of a stack of layers (1 is the decoder of an encoder-decoder model), and of a layer in it.
Layer = tuple[int, int]

# Modules of a layer with the same task, under the names that model classes give them. Of a layer with a gate, the
# activated matrix is the counterpart of the only one of a layer without.
_ROLES = {
    "query": r"query|q_proj|q_lin|q",
    "key": r"key|k_proj|k_lin|k",
    "value": r"value|v_proj|v_lin|v",
    "attention output": r"attention\.output\.dense|o_proj|out_lin|attn\.Wo|self_attn\.out_proj|attn\.c_proj",
    "activated": r"intermediate\.dense|lin1|fc1|gate_proj|mlp\.c_fc|wi|wi_0",
    "gated": r"up_proj|wi_1",
    "neurons' output": r"output\.dense|lin2|fc2|down_proj|mlp\.c_proj|mlp\.Wo|DenseReluDense\.wo",
    "norm after attention": r"attention\.output\.LayerNorm|sa_layer_norm",
    "norm after neurons": r"output\.LayerNorm|output_layer_norm",
    "norm before attention": r"input_layernorm|ln_1|attn_norm|norm",
    "norm before neurons": r"post_attention_layernorm|ln_2|mlp_norm",
}
OF_ATTENTION = ("query", "key", "value", "attention output")
# Modules that hold several of these, one after the other.
_FUSED = {
    r"Wqkv|attn\.c_attn": ("query", "key", "value"),
    r"mlp\.Wi|gate_up_proj": ("activated", "gated"),
}
# Outside the layers.
_TABLES = {"positions": r"position_embeddings|wpe|embed_positions", "segments": r"token_type_embeddings"}
_NORMS = {
    "norm of the embeddings": r"embeddings\.(LayerNorm|norm)",
    "last norm": r"norm|norm_f|ln_f|final_norm|final_layer_norm",
}


@dataclass(frozen=True)
class Piece:
    """Some rows of a parameter, as `(outputs, inputs)`.

    Attributes:
        parameter: The parameter.
        start: First row.
        stop: Row after the last; None for the end.
        transposed: Whether the class stores `(inputs, outputs)`, as GPT-2 does.
    """

    parameter: nn.Parameter
    start: int = 0
    stop: int | None = None
    transposed: bool = False

    @property
    def values(self) -> Tensor:
        """A view of the weights."""
        whole = self.parameter.data
        turned = whole.T if self.transposed and whole.dim() == 2 else whole
        return turned[self.start : self.stop]


def pieces(model: PreTrainedModel, other: PreTrainedModel) -> dict[tuple[Layer | None, str], Piece]:
    """Return the pieces of a model by layer (None outside the layers) and name.

    Args:
        model: The model.
        other: The model with which it is compared.
    """
    found: dict[tuple[Layer | None, str], Piece] = {}
    doubtful: set[tuple[Layer | None, str]] = set()
    for where, piece in _named(model, type(model.config) is type(other.config), _same_head(model, other)):
        if where in found:
            doubtful.add(where)  # several modules of a layer have this task: not known which is which
        found[where] = piece
    return {where: piece for where, piece in found.items() if where not in doubtful}


def _named(
    model: PreTrainedModel, same_class: bool, same_head: bool
) -> Iterator[tuple[tuple[Layer | None, str], Piece]]:
    """Yield layer, name and piece of each weight that can have a counterpart; shared ones under each of their names."""
    untyped: Any = model
    tables: set[int] = set()
    for name, module in (("tokens", untyped.get_input_embeddings()), ("output", untyped.get_output_embeddings())):
        for kind, parameter in () if module is None else module.named_parameters(recurse=False):
            tables.add(id(parameter))
            yield (None, f"{name}:{kind}"), Piece(parameter)
    stacks, heads = _stacks(model), head(model)
    prefix = f"{model.base_model_prefix}."
    for path, module in model.named_modules():
        inside_head = any(path == one or path.startswith(f"{one}.") for one in heads)
        layer, rest = _place(path, stacks)
        rest = rest.removeprefix(prefix) if layer is None else rest
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) in tables:
                continue
            if inside_head:
                if same_head:
                    yield (None, f"head:{path}.{kind}"), Piece(parameter)
            elif same_class:
                yield (layer, f"{_role(rest)}:{rest}.{kind}"), Piece(parameter)
            else:
                yield from _by_role(model, module, layer, rest, kind, parameter)


def _by_role(
    model: PreTrainedModel, module: nn.Module, layer: Layer | None, path: str, kind: str, parameter: nn.Parameter
) -> Iterator[tuple[tuple[Layer | None, str], Piece]]:
    """Yield the pieces of a module's parameter, named by their task."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    turned = isinstance(module, Conv1D)
    if model.config.is_encoder_decoder:
        return
    if layer is None:
        if isinstance(module, nn.Embedding) and (name := _match(_TABLES, path)):
            offset = _first_position(model, module) if name == "positions" else 0
            yield (None, f"{name}:{kind}"), Piece(parameter, start=offset)
        elif parameter.dim() == 1 and (name := _match(_NORMS, path)):
            yield (None, f"{name}{_from_zero(module)}:{kind}"), Piece(parameter)
        return
    for pattern, roles in _FUSED.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path):
            rows = (parameter.shape[-1] if turned else parameter.shape[0]) // len(roles)
            for index, role in enumerate(roles):
                yield (layer, f"{role}:{kind}"), Piece(parameter, index * rows, (index + 1) * rows, turned)
            return
    if name := _match(_ROLES, path):
        yield (layer, f"{name}{_from_zero(module)}:{kind}"), Piece(parameter, transposed=turned)


def _match(names: Mapping[str, str], path: str) -> str | None:
    """Return the first name whose pattern is the end of a path."""
    return next((name for name, ends in names.items() if re.fullmatch(rf"(?:.*\.)?(?:{ends})", path)), None)


def _from_zero(module: nn.Module) -> str:
    """Return what to add to the name of a norm that scales by 1 plus its weight, as Gemma's do; else nothing."""
    import torch

    if not type(module).__name__.endswith("Norm"):
        return ""
    try:
        with torch.device("cpu"):
            start: Any = type(module)(1).weight
    except Exception:  # a class of its own, with other arguments
        return ""
    return " from zero" if float(start) == 0 else ""


def _role(path: str) -> str:
    """Return the task of a module in a layer, or its path."""
    fused = next((roles[0] for ends, roles in _FUSED.items() if re.fullmatch(rf"(?:.*\.)?(?:{ends})", path)), None)
    return _match(_ROLES, path) or fused or path


def _first_position(model: PreTrainedModel, module: nn.Module) -> int:
    """Return the row of the first position in a table of positions."""
    if model.config.model_type in OFFSET_POSITIONS:
        return (model.config.pad_token_id or 0) + 1
    return int(getattr(module, "offset", 0))


def _same_head(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Return whether two heads have the same weights, and the same labels in the same order."""

    def shapes(one: PreTrainedModel) -> set[tuple[str, tuple[int, ...]]]:
        places = head(one)
        return {
            (name, tuple(parameter.shape))
            for name, parameter in one.named_parameters()
            if any(name.startswith(f"{place}.") for place in places)
        }

    return shapes(model) == shapes(other) and label_names(model.config) == label_names(other.config)


def heads_of(model: PreTrainedModel) -> tuple[Any, Any]:
    """Return the number of attention heads of a layer, and of heads of keys and values."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    return heads, getattr(config, "num_key_value_heads", None) or heads


def _stacks(model: PreTrainedModel) -> list[str]:
    """Return the paths of a model's lists of layers; none if they cannot be found."""
    try:
        return [place for place, _ in find_stacks(model).values()]
    except UserError:
        return []


def depths(model: PreTrainedModel) -> list[int]:
    """Return the number of layers of each stack."""
    return [len(list(model.get_submodule(place).children())) for place in _stacks(model)]


def _place(path: str, stacks: list[str]) -> tuple[Layer | None, str]:
    """Return the layer in which a module is, None if in none, and its path there."""
    for stack, place in enumerate(stacks):
        if path.startswith(f"{place}."):
            number, _, rest = path.removeprefix(f"{place}.").partition(".")
            return (stack, int(number)), rest
    return None, path
