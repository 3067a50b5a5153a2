"""What an objective returned: one line where it is not what was wanted, or where code from outside raised."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_distill.errors import UserError


def from_outside(entry: object) -> bool:
    """Whether the class of an objective, or of another entry of a recipe, is not one of this package."""
    return type(entry).__module__.partition(".")[0] != __name__.partition(".")[0]


@contextmanager
def guarded(entry: Any, kind: str = "objective") -> Iterator[None]:
    """Turn what an entry from outside raises into one line with its name and the place.

    Args:
        entry: An objective, or another entry of a recipe.
        kind: What it is.

    Raises:
        UserError: It raised; ours keep their traceback, and so does a device without memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or type(error).__name__ == "OutOfMemoryError" or not from_outside(entry):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}{_place(entry, error)}"
        raise UserError(f"{kind} '{entry.name}': {text}") from error


def check_result(objective: Any, found: Any, wanted: tuple[int, ...], like: Tensor | None, what: str) -> None:
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


def _place(entry: object, error: Exception) -> str:
    """Return ` (my_losses.py:12)`, the last line of the entry's own module that the error went through."""
    own = getattr(sys.modules.get(type(entry).__module__), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
