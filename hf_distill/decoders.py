"""What configurations say about the decoder of an encoder-decoder model: how it begins, how far it reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
