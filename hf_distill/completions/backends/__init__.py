"""The table of backends: a recipe's name -> the class that lets a model write completions."""

from __future__ import annotations

from hf_distill.completions.backends.base import Backend, Writer
from hf_distill.completions.backends.transformers import TransformersBackend

BACKENDS: dict[str, type[Backend]] = {
    "transformers": TransformersBackend,
}

__all__ = ["BACKENDS", "Backend", "TransformersBackend", "Writer"]
