"""The table of backends: a recipe's name -> the class that lets a model write completions."""

from __future__ import annotations

from hf_distill.completions.backends.base import Backend, Writer
from hf_distill.completions.backends.continuous_batching import ContinuousBatching
from hf_distill.completions.backends.transformers import TransformersBackend
from hf_distill.completions.backends.vllm import VLLM

BACKENDS: dict[str, type[Backend]] = {
    "transformers": TransformersBackend,
    "continuous_batching": ContinuousBatching,
    "vllm": VLLM,
}

__all__ = ["BACKENDS", "VLLM", "Backend", "ContinuousBatching", "TransformersBackend", "Writer"]
