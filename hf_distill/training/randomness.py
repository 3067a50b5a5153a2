"""An evaluation draws random numbers, and the training after it goes on as if there had been none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's random numbers as they were.

    A data loader draws a seed each time it is gone through: without this the dropout of all later steps, and so the
    trained weights, depend on how often a training is evaluated.

    Args:
        device: Of the training.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
