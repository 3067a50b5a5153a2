"""What an objective returned: one line where it is not what was wanted, or where code from outside raised."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from hf_distill.objectives.base import Objective


def from_outside(objective: Objective) -> bool:
    """Whether the class of an objective is not one of this package."""
    return type(objective).__module__.partition(".")[0] != __name__.partition(".")[0]


@contextmanager
def guarded(objective: Objective) -> Iterator[None]:
    """Turn what an objective from outside raises into one line with its name and the place.

    Raises:
        UserError: It raised; ours keep their traceback, and so does a device without memory.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not from_outside(objective):
            raise
        text = " ".join(str(error).split())
        raise UserError(
            f"objective '{objective.name}': {type(error).__name__}: {text}{_place(objective, error)}"
        ) from error


def check_result(objective: Objective, found: Any, wanted: tuple[int, ...], like: Tensor | None, what: str) -> None:
    """Refuse a result that is not one number for each row or example.

    Args:
        objective: What returned it.
        found: What it returned.
        wanted: The shape.
        like: A tensor on the device of the loss; None where that is not known.
        what: What the method must return, `"rows must return the loss of each of the 8 rows"`.

    Raises:
        UserError: It is not a tensor, or has another shape, an integer type or another device, or no gradient.
    """
    start = f"objective '{objective.name}': {what}, shape {wanted}; found"
    if not isinstance(found, Tensor):
        raise UserError(f"{start} {type(found).__name__}.")
    if tuple(found.shape) != wanted:
        mean = " Do not average or sum: the trainer divides by the number of rows in the whole step."
        raise UserError(f"{start} {tuple(found.shape)}.{mean if found.numel() == 1 else ''}")
    if not found.is_floating_point():
        raise UserError(f"{start} {found.dtype}. Wanted floating point.")
    if like is not None and found.device != like.device:
        raise UserError(f"{start} a tensor on {found.device}. Wanted {like.device}.")
    lost = torch.is_grad_enabled() and not found.requires_grad and (like is None or like.requires_grad)
    # A constant 0 is what an objective gives where no row counts for it.
    if lost and from_outside(objective) and bool(found.any()):
        raise UserError(
            f"{start} numbers without a gradient to the student, from which nothing is learned. Is there a detach(), "
            "item(), argmax or no_grad() in it?"
        )


def _place(objective: Objective, error: Exception) -> str:
    """Return ` (my_losses.py:12)`, the last line of the objective's own module that the error went through."""
    own = getattr(sys.modules.get(type(objective).__module__), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
