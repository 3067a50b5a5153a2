"""Tokenising a split once: the next run finds it in the cache by what it depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.tokenizers import tokenizer_state

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase


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
    from hf_distill.models.target_model import ROW

    return tokenised.add_column(ROW, split[ROW][:]) if ROW in split.column_names else tokenised


def cache_key(split: Dataset, tokenizer: PreTrainedTokenizerBase, *settings: Any) -> str | None:
    """Return the name under which what is made of a split lies in the cache; None leaves it to `datasets`.

    `datasets` hashes a pickle of the function, whose bytes also depend on which equal strings are one object in this
    process, and on what the tokenizer was last called with.
    """
    known = tokenizer_state(tokenizer)
    return None if known is None else fingerprint(__version__, split._fingerprint, *known, settings)
