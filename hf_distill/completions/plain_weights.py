"""The weights of a model that trains, for a server that runs a copy: plain names, adapters merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.models.patching import replaced

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def plain_weights(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the weights of a model as a checkpoint names them, on the CPU; those of adapters are merged into them.

    The model is the same afterwards, bit for bit: a layer is merged, copied and put back before the next one.

    Args:
        model: The model, with adapters or without.
        dtype: What weights are cast to; None for their own.

    Raises:
        UserError: A layer with an adapter is quantised.
    """
    inside: Any = base_model(model)
    merged = dict(_adapted(inside))
    found = {f"{layer}.{name}": _copied(tensor, dtype) for layer, part in merged.items() for name, tensor in part}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in inside.state_dict().items():
        plain = _plain_name(name)
        place = (tensor.data_ptr(), tensor.shape)  # of tied weights, one name is enough
        if plain is None or place in seen or any(name.startswith(f"{layer}.") for layer in merged):
            continue
        seen.add(place)
        found[plain] = _copied(tensor, dtype)
    return found


def save_plain(model: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the weights of a model into a folder, as a checkpoint that any program reads.

    Args:
        model: The model, with adapters or without; it stays as it is.
        folder: Where they are written.
        dtype: What weights are cast to; None for their own.
    """
    from transformers import GenerationConfig

    inside: Any = base_model(model)
    made: Any = GenerationConfig  # untyped
    # Transformers refuses to write some settings that it loads.
    with replaced(inside, "generation_config", made()), _without_bars():
        inside.save_pretrained(str(folder), state_dict=plain_weights(model, dtype))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Context manager: no progress bar of Transformers, beside that of the training."""
    from transformers.utils import logging

    bars: Any = logging  # untyped
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _adapted(inside: nn.Module) -> Iterator[tuple[str, list[tuple[str, Tensor]]]]:
    """Yield each layer with an adapter, and its weights with the adapter merged, which stay on their device."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in inside.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        weights = dict(layer.get_base_layer().named_parameters())
        if not all(one.is_floating_point() for one in weights.values()):
            raise UserError(
                "the weights of a quantised student cannot be handed to a server. Take backend: transformers.",
            )
        before = {key: one.detach().clone() for key, one in weights.items()}
        layer.merge()
        try:
            after = [(key, one.detach().clone()) for key, one in weights.items()]
        finally:
            layer.unmerge()
            for key, one in weights.items():  # subtracting what was added leaves rounding
                one.copy_(before[key])
        yield name, after


def _plain_name(name: str) -> str | None:
    """Return the name in a checkpoint of a weight beside adapters; None for what is in none.

    >>> _plain_name("lm_head.modules_to_save.default.weight"), _plain_name("lm_head.original_module.weight")
    ('lm_head.weight', None)
    """
    if ".original_module." in name:
        return None
    before, found, after = name.partition(".modules_to_save.")
    return f"{before}.{after.partition('.')[2]}" if found else name


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", cast, copy=True)
