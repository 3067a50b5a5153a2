"""Run a teacher whose layers are split over processes (tensor parallelism) on the rows of all of them.

The processes that share it have to run it together on one batch, while each of them trains the student on rows of its
own. So their rows are put together, every process computes the outputs for all of them, and takes those of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models import sharding
from hf_distill.models.patching import replaced


@contextmanager
def on_rows_of_all(model: nn.Module) -> Iterator[None]:
    """Context manager: a split model runs on the rows of all processes of its group; any other stays as it is."""
    group = sharding.split_over(model)
    if group is None:
        yield
        return
    forward: Any = model.forward

    def together(**inputs: Any) -> Any:
        own = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in inputs.items() if name not in own}
        if "attention_mask" not in own:  # what is added to shorter rows must not be read
            own["attention_mask"] = torch.ones_like(own["input_ids"])
        rows, length = own["input_ids"].shape
        whole, start = sharding.rows_of_group(own, group)
        outputs = forward(**whole, **rest)
        return _own(outputs, slice(start, start + rows), length, whole["input_ids"].shape[1])

    with replaced(model, "forward", together):
        yield


def _own(outputs: Any, rows: slice, length: int, padded: int, name: str = "") -> Any:
    """Return the outputs of some rows, at their own tokens."""
    if isinstance(outputs, Mapping):
        return type(outputs)(**{key: _own(one, rows, length, padded, key) for key, one in outputs.items()})
    if isinstance(outputs, tuple):
        return tuple(_own(one, rows, length, padded) for one in outputs)
    if not isinstance(outputs, Tensor):
        return outputs
    found = outputs[rows]
    # Attention has tokens in both of its last dimensions; logits of an example have classes in their only one.
    tokens = {2: () if name == "logits" else (1,), 3: (1,), 4: (2, 3)}.get(found.dim(), ())
    for dimension in tokens:
        if found.shape[dimension] == padded:
            found = found.narrow(dimension, 0, length)
    return found


def check_split(teachers: Iterable[nn.Module], *, differentiates: bool) -> None:
    """Refuse teachers whose layers are split over processes where that would give something else.

    Args:
        teachers: The models of the source.
        differentiates: Whether an objective needs gradients of their outputs.

    Raises:
        ValueError: A split one has an encoder and a decoder, or gradients are needed.
    """
    for model in teachers:
        if sharding.split_over(model) is None:
            continue
        config: Any = model.config
        heads, size = getattr(config, "num_key_value_heads", None), getattr(model, "_tp_size", 1)
        if heads is not None and heads % size:
            raise ValueError(f"a teacher with {heads} heads of keys and values cannot be split over {size} processes.")
        if config.is_encoder_decoder:
            raise ValueError("a teacher with encoder and decoder cannot be split over processes. Load it whole.")
        if differentiates:
            raise ValueError(
                "an objective compares gradients (input_gradient), and the teacher's layers are split over processes. "
                "Load it whole."
            )
