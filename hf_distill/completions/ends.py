"""The tokens that end a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_distill.models.inspection import base_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a text that a model writes: those of its `generation_config`, `config` and tokenizer.

    An instruction model often has several: the end of its turn, and the end of text.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """
    inside: Any = base_model(model)
    sources = (getattr(inside, "generation_config", None), getattr(inside, "config", None), tokenizer)
    found: list[int] = []
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [] if ids is None else [int(ids)]
    return tuple(dict.fromkeys(found))
