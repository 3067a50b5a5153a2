"""Where the weights of a teacher lie: spread over several devices, or kept in memory or on disk until they are needed.

accelerate's hooks do it, by the `device_map` of `from_pretrained`: a module on a device of its own gets its input
there, and the weights of one that is kept elsewhere are on the device of the run only while it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
Offload = Literal["cpu", "disk"]


@dataclass(frozen=True)
class Placement:
    """Where the weights of a model lie.

    Attributes:
        device_map: How its layers are spread over the accelerators of this process; None if they are not.
        offload: Where its layers wait until they compute; None if they stay on the device.
    """

    device_map: DeviceMap | None = None
    offload: Offload | None = None

    def check(self, *, quantized: bool) -> None:
        """Refuse settings that exclude each other.

        Raises:
            UserError: They do.
        """
        if self.device_map is not None and self.offload is not None:
            raise UserError(
                f"device_map: {self.device_map} decides by itself which layers wait in memory. Leave one of them out.",
                key="offload",
            )
        if quantized and self:
            key = "offload" if self.device_map is None else "device_map"
            raise UserError("quantized weights lie on the device of the run. Leave this or quantization out.", key=key)

    def __bool__(self) -> bool:
        """Return whether there is anything but one device."""
        return self != Placement()

    def arguments(self, whole: PreTrainedModel) -> dict[str, Any]:
        """Return the arguments of `from_pretrained`.

        Args:
            whole: The model without its weights.

        Raises:
            UserError: Its layers cannot be found.
        """
        device = parallel.device()
        if self.device_map is not None:
            own = parallel.devices()
            return {"device_map": self.device_map, "max_memory": _memory(own)} if own else {}
        if self.offload is None or self.offload == device.type:
            return {}
        waiting = [
            f"{name}.{index}" for name, layers in find_stacks(whole).values() for index in range(len(layers))
        ]  # the embeddings and the head stay
        return {"device_map": _cover(whole, "", waiting, self.offload, name_of(device))}


def name_of(device: torch.device) -> str:
    """Return what accelerate calls a device. Processes on a CPU have `cpu:0`, which is another one for it."""
    return device.type if device.type == "cpu" else str(device)


def _memory(devices: list[int]) -> dict[int | str, int]:
    """Return the free bytes of some accelerators and of the memory, by the names of accelerate."""
    from accelerate.utils import get_max_memory

    return {name: size for name, size in get_max_memory().items() if name in devices or isinstance(name, str)}


def _cover(module: nn.Module, name: str, waiting: list[str], offload: str, device: str) -> dict[str, str]:
    """Return the place of every part of a model, as few as possible."""
    if name in waiting:
        return {name: offload}
    prefix = f"{name}." if name else ""
    if not any(one.startswith(prefix) for one in waiting):
        return {name: device}
    found = {f"{prefix}{own}": device for own, _ in module.named_parameters(recurse=False)}
    for own, inner in module.named_children():
        found |= _cover(inner, f"{prefix}{own}", waiting, offload, device)
    return found


def is_offloaded(model: nn.Module) -> bool:
    """Return whether some weights of a model are elsewhere until they are needed."""
    return any(one.is_meta for one in model.parameters())


def stored_state(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return the state dict of a model, read anew where its weights wait elsewhere."""
    return _Stored(model) if is_offloaded(model) else model.state_dict()


class _Stored(Mapping[str, Any]):
    """A state dict that reads one tensor at a time, as all of them may be larger than the memory."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._held = model, model.state_dict()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Any:
        return iter(self._held)

    def __getitem__(self, name: str) -> torch.Tensor:
        held: torch.Tensor = self._held[name]
        if not held.is_meta:
            return held
        module, _, own = name.rpartition(".")
        hook: Any = self._model.get_submodule(module)._hf_hook
        hooks = getattr(hook, "hooks", (hook,))  # several in one
        loader = next(one.weights_map for one in hooks if getattr(one, "weights_map", None) is not None)
        found: torch.Tensor = loader[own]
        return found.to(held.dtype)
