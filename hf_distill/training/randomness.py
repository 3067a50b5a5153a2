"""Restores the random number generators after an evaluation, so that it does not change the training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Context manager: restore the random number generators of Python, NumPy and PyTorch at the end of the block.

    A data loader draws a seed each time it is iterated. Without this, the dropout of all later steps, and with it the
    trained weights, would depend on how often a training is evaluated.

    Args:
        device: Device of the training.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
