"""Models with fewer layers: which layers stay in which place, their weights, and whether they still do the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks, stacks
from hf_distill.models.loading import Head
from hf_distill.students.base import NUMBERS_OF_LAYERS, is_per_layer
from hf_distill.students.copied import build_copy

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

# Attributes that differ between layers of a model without changing what they compute.
POSITION = {"layer_idx", "layer_id", "layer_number", "training", "gradient_checkpointing"}

# Numbers of the layers that stay, in ascending order, by the field that chooses them: `layers`, `decoder_layers`.
Kept = Mapping[str, Sequence[int]]


def fields_of(whole: PretrainedConfig, *, decoder: bool) -> dict[str, int]:
    """Return, for each field that chooses layers, how many layers there are to choose from.

    Args:
        whole: Configuration of the model.
        decoder: Whether `decoder_layers` is given.

    Raises:
        UserError: The configuration describes no stack of layers, or one where `decoder_layers` is given.
    """
    keys = stacks(whole)
    if decoder and len(keys) == 1:
        raise UserError(
            f"{type(whole).__name__} describes one stack of layers, not an encoder and a decoder. Leave it out.",
            key="decoder_layers",
        )
    return {field: getattr(whole, key) for field, key in keys.items()}


def proportional_depths(totals: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield numbers of layers for each field that chooses them, in proportion, from one layer to all.

    `decoder_layers` is left out where it is as `layers`, which is its default.

    Args:
        totals: How many layers there are to choose from, from `fields_of`.
    """
    deepest = max(totals.values())
    for count in range(1, deepest + 1):
        layers = {field: max(1, round(total * count / deepest)) for field, total in totals.items()}
        yield layers if len(set(layers.values())) > 1 else dict(list(layers.items())[:1])


def shortened(whole: PretrainedConfig, kept: Kept) -> PretrainedConfig:
    """Return the configuration of a model with only some of its layers.

    Raises:
        UserError: The configuration describes no such stacks of layers.
    """
    config = copy.deepcopy(whole)
    for field, key in stacks(whole).items():
        total, stay = getattr(whole, key), list(kept[field])
        for name, value in vars(whole).items():
            if name in NUMBERS_OF_LAYERS and isinstance(value, list | tuple):
                setattr(config, name, [stay.index(number) for number in value if number in stay])
            elif is_per_layer(name, value, total) and _of_stack(name, field, whole):
                setattr(config, name, [value[index] for index in stay])
        setattr(config, key, len(stay))
    config.name_or_path = ""  # no checkpoint of this shape exists
    return config


def some_layers(whole: PreTrainedModel, kept: Kept, head: Head, labels: PretrainedConfig | None) -> PreTrainedModel:
    """Return a copy of a model with only some of its layers.

    Args:
        whole: The model.
        kept: Which layers of each stack.
        head: The task's head.
        labels: Configuration with the label names of the model's head; None if that head is new.

    Raises:
        UserError: The model's lists of layers cannot be found, its labels are not the task's, or a layer would compute
            something else at its new position.
    """
    found = find_stacks(whole)
    weights = whole.state_dict()
    for field, (place, _) in found.items():
        weights = _renumber(weights, place, kept[field])
    try:
        student = build_copy(whole, shortened(whole.config, kept), weights, head, labels, key="layers")
    except RuntimeError as error:
        mismatch = shorten(str(error).partition("\n")[2], 150, placeholder=" ...")
        which = " and ".join(str(list(kept[field])) for field in found)
        raise UserError(
            f"layers {which} do not fit together in a {type(whole).__name__}: {mismatch} "
            "Its layers are not all alike; choose others, or use student: {name: from_config}.",
            key="layers",
        ) from error
    for field, (place, layers) in found.items():
        for new, old in enumerate(kept[field]):
            _check_alike(student.get_submodule(f"{place}.{new}"), layers[old], old, field)
    return student


def _of_stack(name: str, field: str, whole: PretrainedConfig) -> bool:
    """Return whether a per-layer list belongs to the stack that `field` chooses from."""
    if not whole.is_encoder_decoder:
        return True
    # If both stacks have the same depth only the name tells; windowed attention belongs to the encoder (LED).
    side = "decoder_layers" if name.startswith("decoder") else "layers"
    return side == field and (name.startswith(("encoder", "decoder")) or name == "attention_window")


def _renumber(weights: dict[str, Tensor], place: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of the copied layers under their new numbers, and all weights outside the layers."""
    new = {str(old): str(index) for index, old in enumerate(kept)}
    chosen: dict[str, Tensor] = {}
    for key, weight in weights.items():
        if not key.startswith(f"{place}."):
            chosen[key] = weight
            continue
        number, _, rest = key.removeprefix(f"{place}.").partition(".")
        if number in new:
            chosen[f"{place}.{new[number]}.{rest}"] = weight
    return chosen


def _check_alike(new: nn.Module, old: nn.Module, index: int, field: str) -> None:
    """Refuse a layer that would compute something else at its new position.

    A sliding window, a rotary base or a scale may depend on the position of a layer, and this does not always show in
    shapes or in the configuration.
    """
    modules = dict(new.named_modules())
    for name, theirs in old.named_modules():
        ours = modules.get(name)
        pairs: list[tuple[str, object, object]] = [("class", type(theirs).__name__, type(ours).__name__)]
        for key, value in vars(theirs).items():
            if isinstance(value, bool | int | float | str) and not key.startswith("_") and key not in POSITION:
                pairs.append((key, value, getattr(ours, key, None)))
        for key, was, would_be in pairs:
            if was != would_be:
                raise UserError(
                    f"layer {index} of the teacher would work differently at its new position: {key} of "
                    f"'{name or 'layer'}' is {was} in the teacher and would be {would_be}. Choose other layers.",
                    key=field,
                )
