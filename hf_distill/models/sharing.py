"""Hold weights once that a frozen part of the student and a teacher have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Values by which tensors are compared before they are compared whole.
_FIRST = 8


@dataclass(frozen=True)
class Shared:
    """A tensor that is held once.

    Attributes:
        ours: The student's parameter.
        theirs: The parameters of teachers that use its tensor, one of each teacher.
    """

    ours: nn.Parameter
    theirs: list[nn.Parameter]


def share_frozen(student: nn.Module, teachers: Iterable[nn.Module]) -> list[Shared]:
    """Let teachers take the tensors of frozen parameters of the student that equal theirs.

    Parameters are found by their values, since names differ: those under adapters, or of copied layers. A teacher that
    is not on the student's device yet is there afterwards with these parameters, and never takes the memory twice.

    Args:
        student: The student, on its device.
        teachers: Models that are not trained.

    Returns:
        What is held once now. While it is, nothing may be written to it: `own` ends it.
    """
    frozen = [one for one in student.parameters() if not one.requires_grad and _is_plain(one)]
    shared: dict[int, Shared] = {}
    for teacher in teachers:
        if not frozen or getattr(teacher, "hf_device_map", None):  # spread over several devices
            continue
        left: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for one in frozen:
            left[_first(one)].append(one)
        for theirs in filter(_is_plain, teacher.parameters()):
            candidates = left.get(_first(theirs), [])
            ours = next((one for one in candidates if one is not theirs and _equal(one, theirs)), None)
            if ours is not None:
                # Each once: two parameters of a teacher, such as biases of zero, must not become one.
                candidates[:] = [one for one in candidates if one is not ours]
                theirs.data = ours.data
                shared.setdefault(id(ours), Shared(ours, [])).theirs.append(theirs)
    return list(shared.values())


def own(shared: Iterable[Shared]) -> None:
    """Give parameters a memory of their own again."""
    for one in shared:
        for parameter in (one.ours, *one.theirs[1:]):
            parameter.data = parameter.data.clone()


def place_of(parameter: nn.Parameter) -> int | None:
    """Return where the values of a parameter are in memory; None if it has none."""
    return parameter.data_ptr() or None if _is_plain(parameter) else id(parameter)


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter is one tensor with values: not quantized, not sharded, not on the meta device."""
    return type(parameter.data) is Tensor and not parameter.is_meta and parameter.numel() > 0


def _first(parameter: nn.Parameter) -> Any:
    first = parameter.data[(0,) * (parameter.dim() - 1)][:_FIRST] if parameter.dim() else parameter.data.reshape(1)
    return parameter.dtype, parameter.shape, tuple(first.tolist())


def _equal(ours: nn.Parameter, theirs: nn.Parameter) -> bool:
    if ours.data_ptr() == theirs.data_ptr():
        return True
    return torch.equal(ours.data, theirs.data.to(ours.device))
