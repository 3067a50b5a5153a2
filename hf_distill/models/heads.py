"""Separate a language model from its output head, so that logits can be computed for a few rows at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models import sharding
from hf_distill.models.inspection import base_model, evaluating, wrapper_of
from hf_distill.models.patching import replaced

# Bytes of one model's logits in a chunk. Large enough for fast matrix products, and on a GPU for few chunks: each chunk
# adds to a gradient as large as the head, which at 700 TFLOP/s and 3 TB/s takes as long as the product of 1500 rows.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
ELSEWHERE = 256 * 2**20


@dataclass(frozen=True)
class OutputHead:
    """The last linear layer of a model, and what its class does with the result.

    Attributes:
        linear: The layer. What comes before it (BERT's transform, T5's scaling) counts as part of the model.
        extra_bias: Added to the result (BART's `final_logits_bias`), `(1, classes)`.
        scale: Factor of the logits (Cohere's `logit_scale`, Granite's `logits_scaling`).
        soft_cap: Logits are `soft_cap * tanh(logits / soft_cap)` (Gemma 2).
    """

    linear: nn.Linear
    extra_bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def finish(self, logits: Tensor) -> Tensor:
        """Return the model's logits from the result of the linear layer, both `(rows, classes)`."""
        if self.extra_bias is not None:
            logits = logits + self.extra_bias.to(logits)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@dataclass
class Captured:
    """The captured input of a model's output head.

    Attributes:
        hidden: `(batch, tokens, width)`; None until the model has run.
        dtype: Precision in which the model would have computed the product.
    """

    hidden: Tensor | None = None
    dtype: torch.dtype = field(default=torch.float32)


def open_head(model: nn.Module) -> OutputHead | None:
    """Return the output head of a language model; None if the model cannot be separated from it.

    This is tried out on a few tokens, so no list of architectures is needed.
    """
    if wrapper_of(model) is not None:
        return None  # compiled, spread over devices, or a user's wrapper, which may do more with the logits
    base: Any = base_model(model)
    linear = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if type(linear) is not nn.Linear or type(linear.weight).__module__.startswith("torchao"):
        return None  # no head, or one with an adapter or quantized weights
    if sharding.split_over(base) is not None:  # each process has some of its rows
        return None
    if linear.weight.is_meta:  # offloaded: accelerate loads the weights only during its forward pass
        return None
    if "forward" in linear.__dict__ and not hasattr(linear, "_hf_hook"):  # a user's patch; accelerate's has the hook
        return None
    config = base.config.get_text_config(decoder=True)
    scaling = getattr(config, "logits_scaling", None)
    scale = getattr(config, "logit_scale", None) or (1.0 / scaling if scaling else 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    head = OutputHead(linear, getattr(base, "final_logits_bias", None), float(scale), cap)
    return head if _fits(base, head) else None


@torch.no_grad()
def _fits(model: Any, head: OutputHead) -> bool:
    """Return whether the model's logits are exactly `head.finish` of the linear layer's result.

    For the test, the result is replaced by numbers from -60 to 60: with the small logits of an untrained model, an
    unknown soft cap of 30 would not be noticed.
    """
    ids = torch.arange(4, device=head.linear.weight.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    weight = head.linear.weight
    numbers = torch.arange(ids.numel() * len(weight), device=ids.device, dtype=torch.float32)
    raw = (60 * numbers.sin()).view(*ids.shape, len(weight)).to(weight.dtype)  # neighbours are not alike
    try:
        with evaluating(model):
            with replaced(head.linear, "forward", lambda _: raw):
                logits = model(**inputs)["logits"]
            with capturing(model, head) as captured:
                model(**inputs)
    # A class that does more with its logits than return them may raise any of these.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError):
        return False
    if captured.hidden is None or captured.hidden.shape[:-1] != ids.shape or logits.shape != raw.shape:
        return False
    exact = torch.promote_types(raw.dtype, torch.float32)
    tolerance = 1e-5 if raw.dtype == exact else 4 * torch.finfo(raw.dtype).eps
    return torch.allclose(head.finish(raw.to(exact)), logits.to(exact), rtol=tolerance, atol=tolerance)


@contextmanager
def capturing(model: nn.Module, head: OutputHead) -> Iterator[Captured]:
    """Context manager: capture the input of the model's head; the model then returns logits with zero columns."""
    base: Any = base_model(model)
    captured = Captured()

    def forward(hidden: Tensor) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        captured.hidden = hidden
        captured.dtype = torch.get_autocast_dtype(device) if autocast else head.linear.weight.dtype
        return hidden.new_empty(*hidden.shape[:-1], 0)

    if head.extra_bias is not None:  # added to zero columns, it would be broadcast to all of them
        base._buffers["final_logits_bias"] = head.extra_bias[:, :0]
    try:
        with replaced(head.linear, "forward", forward):
            yield captured
    finally:
        if head.extra_bias is not None:
            base._buffers["final_logits_bias"] = head.extra_bias


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover `start` to `stop`; the last one may be shorter."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
