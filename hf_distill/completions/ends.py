"""The tokens that end a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_distill.models.inspection import base_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a text that a model writes, as its `generation_config` says, else its tokenizer's.

    An instruction model often has several: the end of its turn, and the end of text.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """
    config: Any = getattr(base_model(model), "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)
