"""What objectives learn besides the student (projections, memory banks): part of a training, never of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_distill.errors import UserError

# The student's submodule for the time of the training: its optimiser, DDP and FSDP must see these parameters.
ATTRIBUTE = "distillation"
FILE = "distillation.safetensors"


def attach(student: nn.Module, learned: nn.ModuleDict) -> None:
    """Make `learned` part of the student, in place of an earlier training's; `save_pretrained` omits it."""
    detach(student)
    if learned:
        student.add_module(ATTRIBUTE, learned)
        hidden = {f"{ATTRIBUTE}.{name}" for name in learned.state_dict()}
        _ignore_on_save(student, lambda names: names | hidden)


def detach(student: nn.Module) -> None:
    """Give the student back as it was."""
    inner = getattr(student, "get_base_model", None)  # PEFT may have wrapped it after an earlier training
    for model in (student, inner() if inner else student):
        if ATTRIBUTE in model._modules:
            del model._modules[ATTRIBUTE]
            _ignore_on_save(model, lambda names: {name for name in names if not name.startswith(f"{ATTRIBUTE}.")})


@contextmanager
def detached(student: nn.Module) -> Iterator[None]:
    """Give the student back as it was for a moment."""
    learned: Any = student._modules.get(ATTRIBUTE)
    detach(student)
    try:
        yield
    finally:
        if learned is not None:
            attach(student, learned)


def place(learned: nn.ModuleDict, student: nn.Module, device: torch.device) -> nn.ModuleDict:
    """Move what is to be learned to the student: its device, and its precision, since FSDP shards them together."""
    # A quantised student stores integers as well.
    dtype = next((one.dtype for one in student.parameters() if one.is_floating_point()), torch.float32)
    return learned.to(device, dtype)


def _ignore_on_save(student: Any, change: Callable[[set[str]], set[str]]) -> None:
    student._keys_to_ignore_on_save = change(set(getattr(student, "_keys_to_ignore_on_save", None) or ()))


def split_state(state: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Divide the state of a whole student, gathered from several processes, into its own and what was learned."""
    if state is None:
        return None, {}
    prefix = f"{ATTRIBUTE}."
    own = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return own, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def save_learned(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what was learned into a checkpoint."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, checkpoint / FILE)


def check_learned(checkpoint: Path, learned: nn.ModuleDict) -> None:
    """Refuse a checkpoint of other objectives.

    Raises:
        UserError: Projections would start anew in the middle of the training, or be forgotten, without a word.
    """
    file = checkpoint / FILE
    found = {name: value.shape for name, value in load_file(file).items()} if file.exists() else {}
    if found != {name: value.shape for name, value in learned.state_dict().items()}:
        raise UserError(
            f"{checkpoint} was made with other objectives: what they learned ({_names(found)}) is not what is to be "
            f"learned now ({_names(learned.state_dict())}). Start over, or go on with the same objectives."
        )


def _names(tensors: Mapping[str, Any]) -> str:
    shown = [f"{name} {tuple(getattr(value, 'shape', value))}" for name, value in tensors.items()]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "") if shown else "nothing"


def load_learned(checkpoint: Path, learned: nn.ModuleDict) -> None:
    """Go on with what a checkpoint holds."""
    if learned:
        learned.load_state_dict(load_file(checkpoint / FILE))
