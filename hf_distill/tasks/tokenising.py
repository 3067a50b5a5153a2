"""Tokenising a split once: the next run finds it in the cache by what it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.files.atomic import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

# Of a tokenizer's Python side; they are no part of what its fast side knows of itself.
_PYTHON_SIDE = ("truncation_side", "padding_side", "model_input_names", "chat_template", "special_tokens_map")
# Classes of tokenizers that were loaded from a file of the `tokenizers` library, whatever is in it.
_ANY = ("TokenizersBackend", "PreTrainedTokenizerFast")


def tokenise(
    split: Dataset,
    name: str,
    encode: Callable[..., dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *settings: Any,
    features: Features | None = None,
    with_rows: bool = False,
) -> Dataset:
    """Return a split with the columns that `encode` makes of its own.

    Args:
        split: Raw examples.
        name: What it is called on the progress bar.
        encode: Batch of raw columns -> batch of new ones.
        tokenizer: What `encode` tokenises with.
        *settings: Everything else that decides what `encode` returns, the name of the task first; JSON-able.
        features: Types of the new columns, where a first batch may be empty.
        with_rows: Whether `encode` is also given the numbers of the rows.
    """
    return split.map(
        encode,
        batched=True,
        with_indices=with_rows,
        remove_columns=split.column_names,
        features=features,
        desc=f"Tokenising {name}",
        new_fingerprint=cache_key(split, tokenizer, *settings),
    )


def with_rows(split: Dataset, tokenised: Dataset) -> Dataset:
    """Return what was made of a split, row by row, with the numbers of its rows, where they stand in it."""
    from hf_distill.cache.replay import ROW

    return tokenised.add_column(ROW, split[ROW][:]) if ROW in split.column_names else tokenised


def cache_key(split: Dataset, tokenizer: PreTrainedTokenizerBase, *settings: Any) -> str | None:
    """Return the name under which what is made of a split lies in the cache; None leaves it to `datasets`.

    `datasets` hashes a pickle of the function, whose bytes also depend on which equal strings are one object in this
    process, and on what the tokenizer was last called with.
    """
    known = tokenizer_state(tokenizer)
    return None if known is None else fingerprint(__version__, split._fingerprint, *known, settings)


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
