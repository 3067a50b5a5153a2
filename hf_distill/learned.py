"""What objectives learn besides the student (projections, memory banks): part of a training, never of its result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    if hasattr(student, ATTRIBUTE):
        delattr(student, ATTRIBUTE)
        _ignore_on_save(student, lambda names: {name for name in names if not name.startswith(f"{ATTRIBUTE}.")})


def _ignore_on_save(student: Any, change: Any) -> None:
    student._keys_to_ignore_on_save = change(set(getattr(student, "_keys_to_ignore_on_save", None) or ()))


def save_learned(checkpoint: Path, learned: nn.ModuleDict, state: Mapping[str, Any] | None) -> None:
    """Write what was learned into a checkpoint.

    Args:
        checkpoint: Directory.
        learned: What is attached to the student.
        state: State of the whole student where it was gathered from several processes (FSDP).
    """
    prefix = f"{ATTRIBUTE}."
    gathered = {name.removeprefix(prefix): value for name, value in (state or {}).items() if name.startswith(prefix)}
    tensors: Mapping[str, Tensor] = gathered or learned.state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, checkpoint / FILE)


def load_learned(checkpoint: Path, learned: nn.ModuleDict) -> None:
    """Go on with what a checkpoint holds.

    Raises:
        UserError: It was made with other objectives: the projections would start anew, in the middle of the training.
    """
    if not learned:
        return
    file = checkpoint / FILE
    found = load_file(file) if file.exists() else {}
    wanted = learned.state_dict()
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in wanted.items()}:
        raise UserError(f"{checkpoint} was made with other objectives: what they learned does not fit. Start over.")
    learned.load_state_dict(found)
