"""Read from a configuration how the decoder of an encoder-decoder model starts, and how long its input may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from transformers import PretrainedConfig


def decoder_start(config: PretrainedConfig) -> int | None:
    """Return the token with which a model's decoder starts, as `generate` chooses it; None if not configured."""
    for key in ("decoder_start_token_id", "bos_token_id"):
        token: int | None = getattr(config, key, None)
        if token is not None:
            return token
    return None


def decoder_positions(config: PretrainedConfig) -> int | None:
    """Return the number of positions of a model's decoder; None if it has no table of positions (T5)."""
    for key in ("max_decoder_position_embeddings", "max_position_embeddings"):
        positions: object = getattr(config, key, None)
        if isinstance(positions, int) and positions > 0:
            return positions
    return None


def check_ends(rows: pa.ChunkedArray, config: PretrainedConfig, split: str, tokenizer: Any = None) -> None:
    """Refuse texts with different numbers of end-of-text tokens, for classifiers that cannot batch them.

    An encoder-decoder classifier reads its decoder's state at the last end-of-text token, and raises an error if the
    texts of a batch have different numbers of them.

    Args:
        rows: Tokens of every text, a column of lists.
        config: Configuration of the classifier; other models are not checked.
        split: Name of the split, for the message.
        tokenizer: Gives the text of the token, for the message.

    Raises:
        UserError: A row has another number of these tokens than the others, or no row has any.
    """
    end = config.eos_token_id
    if not config.is_encoder_decoder or not isinstance(end, int):
        return
    found = [_count(chunk, end) for chunk in rows.chunks if len(chunk)]
    if not found:
        return
    counts = np.concatenate(found)
    name = f"the end-of-text token ({end if tokenizer is None else tokenizer.convert_ids_to_tokens(end)})"
    usual = int(np.bincount(counts).argmax())
    if not usual:
        raise UserError(
            f"the texts of the {split} split do not end with {name}, which a {config.model_type} classifier needs. "
            "Use the model's own tokenizer.",
            key="columns.text",
        )
    if len(odd := np.flatnonzero(counts != usual)):
        row, times = odd[0], counts[odd[0]]
        raise UserError(
            f"row {row} (counted from 0) of the {split} split contains {name} {times} times, others {usual}: "
            f"a {config.model_type} classifier would take it for the end of the text. Remove it from the text.",
            key="columns.text",
        )


def _count(rows: pa.Array, token: int) -> np.ndarray[Any, Any]:
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    places = pc.list_parent_indices(rows).filter(pc.equal(rows.flatten(), token))
    return np.bincount(places.to_numpy(), minlength=len(rows))
