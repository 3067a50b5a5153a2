"""Computing a whole loss inside the forward pass of a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Result = TypeVar("Result")


def inside_forward(wrapped: nn.Module, model: nn.Module, compute: Callable[[], Result], inputs: Any) -> Result:
    """Return `compute()`, run while `wrapped` believes to run the forward pass of `model`.

    DDP and FSDP prepare parameters, and follow which of them a loss needs, from one call of the wrapper to the next.
    What is computed after that call from parameters of the student (a projection of its hidden states), or leaves
    some unused (a head, when only hidden states are compared), would make them fail or, worse, differ between
    processes. Lightning calls it a forward redirection.

    Args:
        wrapped: What the trainer calls: `model` itself, or DDP, FSDP around it.
        model: The student without wrapper; `compute` may call it.
        compute: Returns tensors, whose graph is the loss's, and nothing else that needs one.
        inputs: What the wrapper takes for the inputs; `compute` does not get them.
    """
    own = model.__dict__.get("forward")  # accelerate's autocast is one

    def restore() -> None:
        if own is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = own

    def forward(*_: Any, **__: Any) -> Result:
        restore()
        return compute()

    model.__dict__["forward"] = forward
    try:
        result: Result = wrapped(inputs)
    finally:
        restore()
    return result
