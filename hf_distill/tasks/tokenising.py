"""Tokenise a split once: the next run with the same data, tokenizer and settings reads it from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.data.example_columns import SOURCE, held, held_features
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.tokenizers import tokenizer_state

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

# What `remembering` was given.
_REMEMBERED: ContextVar[dict[str, Dataset] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembering(splits: dict[str, Dataset]) -> Iterator[None]:
    """Context manager: take tokenised splits from `splits`, and put new ones there; data in memory has no cache."""
    token = _REMEMBERED.set(splits)
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def tokenise(
    split: Dataset,
    name: str,
    encode: Callable[..., dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *settings: Any,
    features: Features | None = None,
    with_rows: bool = False,
) -> Dataset:
    """Return a split with the columns that `encode` returns in place of its own.

    Args:
        split: Raw examples.
        name: Name of the split on the progress bar.
        encode: Batch of raw columns -> batch of new columns; one row for each, or with `SOURCE`: the row of the batch
            that each new row was made of. Group and weight of an example go with it.
        tokenizer: The tokenizer that `encode` uses.
        *settings: Everything else that the result of `encode` depends on, the name of the task first; JSON values.
        features: Types of the new columns; needed if the first batch may be empty.
        with_rows: Whether `encode` also gets the row numbers.
    """
    key = cache_key(split, tokenizer, *settings)
    remembered = _REMEMBERED.get()
    # A tokenizer without a state to compare is told from others by its identity.
    own = key or fingerprint(split._fingerprint, id(tokenizer), settings)
    if remembered is not None and own in remembered:
        return remembered[own]
    if features is not None:
        features = type(features)({**features, **held_features(split)})
    tokenised = split.map(
        _carrying(encode, held(split)),
        batched=True,
        with_indices=with_rows,
        remove_columns=split.column_names,
        features=features,
        desc=f"Tokenising {name}",
        new_fingerprint=key,
    )
    if remembered is not None:
        remembered[own] = tokenised
    return tokenised


def _carrying(encode: Callable[..., dict[str, Any]], names: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Return `encode` with the values of some columns for every row that it makes."""

    def encoded(batch: dict[str, list[Any]], *rows: list[int]) -> dict[str, Any]:
        made = encode(batch, *rows)
        sources = made.pop(SOURCE, None)
        if sources is None:
            return {**made, **{name: batch[name] for name in names}}
        return {**made, **{name: [batch[name][source] for source in sources] for name in names}}

    return encoded


def with_rows(split: Dataset, tokenised: Dataset) -> Dataset:
    """Return a tokenised split with the row numbers of the raw split (column `ROW`) added, if it has them."""
    from hf_distill.models.target_model import ROW

    return tokenised.add_column(ROW, split[ROW][:]) if ROW in split.column_names else tokenised


def cache_key(split: Dataset, tokenizer: PreTrainedTokenizerBase, *settings: Any) -> str | None:
    """Return the cache key of a processed split; None to let `datasets` choose it.

    The key of `datasets` is a hash of the pickled function. It also depends on which equal strings are one object in
    this process, and on the last call of the tokenizer, so it can differ between equal runs.
    """
    known = tokenizer_state(tokenizer)
    return None if known is None else fingerprint(__version__, split._fingerprint, *known, settings)
