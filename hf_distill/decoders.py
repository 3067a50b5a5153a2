"""What configurations say about the decoder of an encoder-decoder model: how it begins, how far it reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.errors import UserError

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


def check_starts(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse two decoders that begin with different tokens: one batch feeds both.

    Raises:
        UserError: They do.
    """
    ours, theirs = decoder_start(student), decoder_start(teacher)
    if ours != theirs:
        raise UserError(
            f"its decoder begins with token {ours}, the teacher's with {theirs}, so one batch cannot feed both. Choose "
            "a student of the teacher's family, or student: {name: copy_layers, ...}.",
            key="model",
        )
