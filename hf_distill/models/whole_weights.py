"""The weights of a model with its adapters merged, while the model itself stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models.lora import has_adapters, merged


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its adapters merged; what they leave as it is, they have in common.

    Without adapters, nothing is in common. Nothing is trained in the copy.
    """
    if not has_adapters(model):
        return copy.deepcopy(model).requires_grad_(False)
    adapted = {id(one) for layer in _switched(model) for one in layer.parameters()}
    common: dict[int, Any] = {
        id(one): nn.Parameter(one.detach(), requires_grad=False)
        for one in model.parameters()
        if not one.requires_grad and id(one) not in adapted
    }
    return merged(copy.deepcopy(model, common)).requires_grad_(False)


@torch.no_grad()
def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of the parameters and buffers of a model, with its adapters merged, one layer at a time.

    The names are those of the plain model. Merged weights are float32 or better.
    """
    if not has_adapters(model):
        yield from chain(model.named_parameters(), model.named_buffers())
        return
    inside: list[str] = []
    for name, module in model.get_base_model().named_modules():
        if name.startswith(tuple(inside)):
            continue
        if (whole := _whole(module)) is not None:
            inside.append(f"{name}.")
            yield from _named(name, whole, recurse=True)
        else:
            yield from _named(name, module, recurse=False)


def _switched(model: nn.Module) -> Iterator[nn.Module]:
    from hf_distill.models.adapters_off import switchable

    yield from switchable(model)


def _whole(module: Any) -> nn.Module | None:
    """Return what stands in the plain model in place of an adapted layer; None for other modules."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        whole: nn.Module = module.modules_to_save[module.active_adapters[0]]
        return whole
    if not isinstance(module, BaseTunerLayer):
        return None
    made: Any = copy.deepcopy(module)
    if any(one.dtype in (torch.float16, torch.bfloat16) for one in made.parameters()):
        made.float()  # in half precision, the product of the adapters would be lost by rounding
    made.merge()
    layer: nn.Module = made.get_base_layer()
    return layer


def _named(name: str, module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    prefix = f"{name}." if name else ""
    for own, value in chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse)):
        yield f"{prefix}{own}", value
