"""Liger's kernels in the student's layers during training, and their removal afterwards (`use_liger_kernel`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Liger's losses from labels. They are not used: forward passes here get no labels.
LOSSES = ("fused_linear_cross_entropy", "cross_entropy")


def layers_only(config: dict[str, bool] | None) -> dict[str, bool]:
    """Return the configuration for Liger with its losses switched off.

    >>> layers_only({"rope": False})
    {'rope': False, 'fused_linear_cross_entropy': False, 'cross_entropy': False}
    """
    return {**(config or {}), **dict.fromkeys(LOSSES, False)}


@contextmanager
def undone_afterwards(model: Callable[[], nn.Module]) -> Iterator[None]:
    """Context manager: remove Liger's kernels at the end of the block.

    Liger changes the layers of a model, and the classes and functions of their Python module, from which later models
    are made. If that stayed, the report would time a student with these kernels against a teacher without.

    Args:
        model: Returns the student.
    """
    modules = [sys.modules[name] for name in {type(layer).__module__ for layer in model().modules()}]
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, names in zip(modules, before, strict=True):
            for name in [name for name, value in vars(module).items() if _is_liger(value) and name in names]:
                setattr(module, name, names[name])
        for layer in model().modules():
            for name in [name for name, value in vars(layer).items() if _is_liger(value)]:
                delattr(layer, name)


def _is_liger(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("liger_kernel")
