"""The layers of a model: how many stacks there are, where they lie, which hidden states each of them has."""

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


# Kinds of layers, in a configuration's `layer_types`, that have no map of attention.
WITHOUT_MAPS = {"linear_attention", "mamba", "conv", "recurrent"}


def each_once(entries: Entries) -> Entries:
    """Refuse what is listed twice: it would weigh twice as much as the others."""
    for entry in entries:
        if entries.count(entry) > 1:
            named = list(entry) if isinstance(entry, tuple) else entry
            raise ValueError(f"{named} stands twice, and would count twice. Keep one.")
    return entries


Index = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class States:
    """Hidden states of one layer of a teacher, as far as an objective reads them.

    Attributes:
        layer: Its index.
        of: Those of all `tokens` that count; or one vector for every text: their `mean`, the `first` or the `last`.
        part: Which stack of an encoder-decoder; None for other models.
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
    """What a configuration says about one stack of blocks.

    Attributes:
        name: Which model, for messages.
        depth: Number of blocks.
        width: Entries of a hidden state.
        heads: Attention heads of a block; None where it has none, or not the same number in every block, or another
            mechanism in some.
    """

    name: str
    depth: int
    width: int
    heads: int | None


def read_stack(config: PretrainedConfig, part: Part | None, whose: str) -> Stack:
    """Return the stack of blocks that is compared.

    Args:
        config: Of a whole model; of one that also sees images, the text part is read.
        part: Which of the two stacks of an encoder-decoder; None for any other model.
        whose: `student` or `teacher`, for messages.

    Raises:
        UserError: `part` is missing, or means nothing here; or the model does not say how many blocks it has.
    """
    name = f"the {whose} ({config.model_type or type(config).__name__})"
    if config.is_encoder_decoder and part is None:
        raise UserError(f"{name} has an encoder and a decoder: say which is compared, encoder or decoder.", key="part")
    if part is not None and not config.is_encoder_decoder:
        raise UserError(f"'{part}' is for models with an encoder and a decoder, and {name} is none.", key="part")
    text: Any = config.get_text_config(encoder=part == "encoder", decoder=part == "decoder")
    depth, width, heads = (
        getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if part == "decoder":  # T5 and ProphetNet count their decoder's blocks apart
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
    """Return what stands for a text where objectives compare texts: nothing but an answer, if that is the embedding.

    Raises:
        UserError: The model does not say how many layers it has.
    """
    if of == "embedding":
        return ()
    part: Part | None = "encoder" if teacher.is_encoder_decoder else None
    return (States(read_stack(teacher, part, "teacher").depth, of, part),)


# Where configurations keep the number of layers: of the only stack, of the encoder, of the decoder.
KEYS = ("num_hidden_layers",)
ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "num_layers")
DECODER_KEYS = ("decoder_layers", "num_decoder_layers")


def stacks(config: PretrainedConfig) -> dict[str, str]:
    """Return `layers`, and `decoder_layers` of an encoder-decoder model -> the key with the number of such layers.

    Raises:
        UserError: The configuration does not say.
    """
    keys = {"layers": ENCODER_KEYS, "decoder_layers": DECODER_KEYS} if config.is_encoder_decoder else {"layers": KEYS}
    found = {
        field: key for field, names in keys.items() for key in names if isinstance(getattr(config, key, None), int)
    }
    if len(found) < len(keys) or getattr(config, "is_heterogeneous", False):
        raise UserError(
            "copy_layers works for models with one stack of layers, or one on each side of encoder and decoder; "
            f"{type(config).__name__} describes something else. "
            "Name a smaller checkpoint: student: {name: pretrained, model: ...}.",
            key="name",
        )
    return found


def find_stacks(model: PreTrainedModel) -> dict[str, tuple[str, nn.ModuleList]]:
    """Return, for each key of `stacks`, the list of layers and its name (`"bert.encoder.layer"`).

    Raises:
        UserError: There is no list as long as the configuration says, or more than one.
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
        # A list inside a layer (of experts, say) may happen to be as long.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == total and not inside:
            found[name] = module
    if len(found) != 1:
        what = f"{len(found)} lists of {total} layers ({', '.join(found)})" if found else f"no list of {total} layers"
        raise UserError(
            f"cannot tell the layers of {type(model).__name__}: it has {what}. Name a smaller checkpoint: "
            "student: {name: pretrained, model: ...}, or start from random weights: {name: from_config, ...}.",
            key="name",
        )
    ((name, layers),) = found.items()
    return prefix + name, layers
