"""What configurations say about the decoder of an encoder-decoder model: how it begins, how far it reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from transformers import PretrainedConfig


def decoder_start(config: PretrainedConfig) -> int | None:
    """Return the token a model's decoder begins with, as generation would choose it; None where nothing says."""
    for key in ("decoder_start_token_id", "bos_token_id"):
        token: int | None = getattr(config, key, None)
        if token is not None:
            return token
    return None


def decoder_positions(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model's decoder has positions for; None where it has no table of them (T5)."""
    for key in ("max_decoder_position_embeddings", "max_position_embeddings"):
        positions: object = getattr(config, key, None)
        if isinstance(positions, int) and positions > 0:
            return positions
    return None


def check_ends(rows: pa.ChunkedArray, config: PretrainedConfig, split: str, tokenizer: Any = None) -> None:
    """Refuse texts that an encoder-decoder classifier finds another number of ends in than in others.

    It classifies a text by what its decoder says at the last end-of-text token, and takes no batch of texts that have
    different numbers of them.

    Args:
        rows: Tokens of every text, a column of lists.
        config: Of the classifier; others find the end of a text by its mask.
        split: Name of the split.
        tokenizer: Spells the token, where there is one.

    Raises:
        UserError: The first such row, or all of them: no text has an end.
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
            f"the texts of the {split} split do not end with {name}, by which a {config.model_type} model classifies "
            "them. Use the model's own tokenizer.",
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
