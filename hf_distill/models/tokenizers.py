"""What decides how a tokenizer reads, and what to call it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hf_distill.models.inspection import positions_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# No tokenizer knows a limit as high: Transformers writes 10^30 for "none".
NO_LIMIT = 1_000_000
# Of a tokenizer's Python side; they are no part of what its fast side knows of itself.
_PYTHON_SIDE = ("truncation_side", "padding_side", "model_input_names", "chat_template", "special_tokens_map")
# Classes of tokenizers that were loaded from a file of the `tokenizers` library, whatever is in it.
_ANY = ("TokenizersBackend", "PreTrainedTokenizerFast")


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what to call a tokenizer: its class, or where that stands for any, how it makes tokens (`WordPiece`)."""
    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(backend.model).__name__ if backend is not None and name in _ANY else name


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any] | None:
    """Return all that decides how a tokenizer reads, JSON-able; None for one that is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    for key in ("truncation", "padding"):  # of the last call
        state.pop(key, None)
    rest = {key: repr(getattr(tokenizer, key, None)) for key in _PYTHON_SIDE}
    return [state, type(tokenizer).__name__, rest]


def longest_input(configs: Iterable[PretrainedConfig], tokenizers: Iterable[PreTrainedTokenizerBase]) -> int | None:
    """Return how many tokens all of these models and tokenizers take; None where nothing limits it."""
    limits = [limit for limit in map(positions_of, configs) if limit is not None]
    limits += [tokenizer.model_max_length for tokenizer in tokenizers if tokenizer.model_max_length < NO_LIMIT]
    return min(limits, default=None)
