"""Find the stacks of layers in a model and its configuration, and name hidden states of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


Part = Literal["encoder", "decoder"]


Entries = TypeVar("Entries", bound=tuple[Any, ...])


# Values in a configuration's `layer_types` for layers without attention maps.
WITHOUT_MAPS = {"linear_attention", "mamba", "conv", "recurrent"}


def each_once(entries: Entries) -> Entries:
    """Return the entries; refuse duplicates, which would have twice the weight.

    Raises:
        ValueError: An entry is listed twice.
    """
    for entry in entries:
        if entries.count(entry) > 1:
            named = list(entry) if isinstance(entry, tuple) else entry
            raise ValueError(f"{named} is listed twice, and would count twice. Keep one.")
    return entries


Index = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class States:
    """Which hidden states of a teacher's layer an objective reads.

    Attributes:
        layer: Index of the layer.
        of: `tokens`: of all tokens that count; or one vector per text: their `mean`, the `first` or the `last`.
        part: Which stack of an encoder-decoder model; None for other models.
    """

    layer: int
    of: Literal["tokens", "mean", "first", "last"] = "tokens"
    part: Part | None = None

    def __str__(self) -> str:
        """Return `4`, `12 (mean)` or `encoder 6`."""
        number = f"{self.part} {self.layer}" if self.part else str(self.layer)
        return number if self.of == "tokens" else f"{number} ({self.of})"


@dataclass(frozen=True)
class Stack:
    """Sizes of one stack of layers, from a configuration.

    Attributes:
        name: Which model, for messages.
        depth: Number of layers.
        width: Width of a hidden state.
        heads: Attention heads of each layer; None if layers have none, different numbers, or another mechanism.
    """

    name: str
    depth: int
    width: int
    heads: int | None


def read_stack(config: PretrainedConfig, part: Part | None, whose: str) -> Stack:
    """Return the sizes of the stack of layers that is compared.

    Args:
        config: Configuration of the whole model; for a model that also reads images, its text part is used.
        part: Which of the two stacks of an encoder-decoder model; None for any other model.
        whose: `student` or `teacher`, for messages.

    Raises:
        UserError: `part` is missing, or the model has no such part, or its configuration has no number of layers.
    """
    name = f"the {whose} ({config.model_type or type(config).__name__})"
    if config.is_encoder_decoder and part is None:
        raise UserError(f"{name} has an encoder and a decoder: say which is compared, encoder or decoder.", key="part")
    if part is not None and not config.is_encoder_decoder:
        raise UserError(f"'{part}' is for encoder-decoder models, and {name} is not one.", key="part")
    text: Any = config.get_text_config(encoder=part == "encoder", decoder=part == "decoder")
    depth, width, heads = (
        getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if part == "decoder":  # T5 and ProphetNet have a separate number for their decoder
        depth = getattr(text, "num_decoder_layers", None) or depth
    if not isinstance(depth, int) or not isinstance(width, int):
        raise UserError(
            f"{name} does not say how many layers it has, or how wide they are, so they cannot be compared. Compare "
            "the outputs instead, e.g. {name: kl}.",
            key="name",
        )
    everywhere = WITHOUT_MAPS.isdisjoint(getattr(text, "layer_types", None) or ())
    return Stack(name, depth, width, heads if isinstance(heads, int) and everywhere else None)


def last_layer(teacher: PretrainedConfig, of: Literal["mean", "first", "last", "embedding"]) -> tuple[States, ...]:
    """Return the hidden states that represent a text; none for `embedding`, which is an output of the model.

    Raises:
        UserError: The configuration does not give the number of layers.
    """
    if of == "embedding":
        return ()
    part: Part | None = "encoder" if teacher.is_encoder_decoder else None
    return (States(read_stack(teacher, part, "teacher").depth, of, part),)


# Keys of configurations for the number of layers: of the only stack, of the encoder, of the decoder.
KEYS = ("num_hidden_layers",)
ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "num_layers")
DECODER_KEYS = ("decoder_layers", "num_decoder_layers")


def stacks(config: PretrainedConfig) -> dict[str, str]:
    """Return `layers` (and `decoder_layers` for an encoder-decoder model) -> configuration key of their number.

    Raises:
        UserError: The configuration has no such key.
    """
    keys = {"layers": ENCODER_KEYS, "decoder_layers": DECODER_KEYS} if config.is_encoder_decoder else {"layers": KEYS}
    found = {
        field: key for field, names in keys.items() for key in names if isinstance(getattr(config, key, None), int)
    }
    if len(found) < len(keys) or getattr(config, "is_heterogeneous", False):
        raise UserError(
            "layers can be chosen in models with one stack of layers, or with an encoder and a decoder; "
            f"{type(config).__name__} describes something else. "
            "Name a smaller checkpoint: student: {name: pretrained, model: ...}.",
            key="name",
        )
    return found


def find_stacks(model: PreTrainedModel) -> dict[str, tuple[str, nn.ModuleList]]:
    """Return, for each key of `stacks`, the list of layers and its name (`"bert.encoder.layer"`).

    Raises:
        UserError: The model has no list of the configured length, or several.
    """
    keys = stacks(model.config)
    if not model.config.is_encoder_decoder:
        return {"layers": _find_list(model, model, getattr(model.config, keys["layers"]))}
    untyped: Any = model
    sides = {"layers": untyped.get_encoder(), "decoder_layers": untyped.get_decoder()}
    return {field: _find_list(model, sides[field], getattr(model.config, key)) for field, key in keys.items()}


def _find_list(model: PreTrainedModel, side: nn.Module, total: int) -> tuple[str, nn.ModuleList]:
    from torch import nn

    prefix = next((f"{name}." for name, module in model.named_modules() if module is side and name), "")
    found: dict[str, nn.ModuleList] = {}
    for name, module in side.named_modules():
        # A list inside a layer (for example of experts) may have the same length by chance.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == total and not inside:
            found[name] = module
    if len(found) != 1:
        what = f"{len(found)} lists of {total} layers ({', '.join(found)})" if found else f"no list of {total} layers"
        raise UserError(
            f"cannot find the layers of {type(model).__name__}: it has {what}. Name a smaller checkpoint: "
            "student: {name: pretrained, model: ...}, or start from random weights: {name: from_config, ...}.",
            key="name",
        )
    ((name, layers),) = found.items()
    return prefix + name, layers
