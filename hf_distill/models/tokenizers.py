"""Name a tokenizer, and return the state that decides how it tokenises."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.models.inspection import positions_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# Above any real limit: Transformers writes 10^30 for "no limit".
NO_LIMIT = 1_000_000
# Attributes of a tokenizer's Python class that the state of its fast tokenizer does not contain.
_PYTHON_SIDE = ("truncation_side", "padding_side", "model_input_names", "chat_template", "special_tokens_map")
# Generic classes for any tokenizer file of the `tokenizers` library; their name says nothing.
_ANY = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(frozen=True)
class Reading:
    """How a task's models read a text or pair that is too long, and what turns their outputs into a prediction.

    Attributes:
        max_length: Most tokens of an input, special tokens included; None for no limit.
        cuts: Which text of a pair is cut: the longer one, token by token, or the second.
        stride: Tokens that an input shares with the one before, where a text that is too long becomes several inputs.
        settings: Settings of the prediction, by the name of the task and the names that its `pipeline` has for them.
    """

    max_length: int | None = None
    cuts: Literal["longest_first", "only_second"] = "longest_first"
    stride: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of a tokenizer: its class, or the type of its model (`WordPiece`) if the class is generic."""
    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(backend.model).__name__ if backend is not None and name in _ANY else name


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any] | None:
    """Return everything that decides how a tokenizer tokenises, as plain values; None for a pure Python tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    for key in ("truncation", "padding"):  # left over from the last call
        state.pop(key, None)
    rest = {key: repr(getattr(tokenizer, key, None)) for key in _PYTHON_SIDE}
    return [state, type(tokenizer).__name__, rest]


def longest_input(configs: Iterable[PretrainedConfig], tokenizers: Iterable[PreTrainedTokenizerBase]) -> int | None:
    """Return how many tokens all of these models and tokenizers take; None where nothing limits it."""
    limits = [limit for limit in map(positions_of, configs) if limit is not None]
    limits += [tokenizer.model_max_length for tokenizer in tokenizers if tokenizer.model_max_length < NO_LIMIT]
    return min(limits, default=None)


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of columns of a head that are tokens; models pad their embeddings to round sizes."""
    return max(tokenizer.get_vocab().values()) + 1
