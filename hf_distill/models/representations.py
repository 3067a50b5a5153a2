"""Compute one vector per text, for objectives that compare texts with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hf_distill.errors import UserError
from hf_distill.models.target_rows import upcast

Pooling = Literal["mean", "first", "last", "embedding"]


def represent(output: Mapping[str, Any], tokens: Tensor, of: Pooling) -> Tensor:
    """Return one vector per sequence, `(sequences, width)`, float32 or better.

    Args:
        output: A model's output, with `hidden_states` (`encoder_hidden_states`).
        tokens: True for tokens that are not padding, `(sequences, tokens)`.
        of: From the last hidden states, the `mean` over tokens, the `first` or the `last` token; or `embedding`, the
            model's own `sentence_embedding`.

    Raises:
        UserError: The model does not return these states.
    """
    if of == "embedding":
        if output.get("sentence_embedding") is None:
            raise UserError(
                "only models of the task sentence-similarity return an 'embedding', not this one. Use mean.",
                key="of",
            )
        return _sequences(upcast(output["sentence_embedding"]))
    layers = output.get("hidden_states") or output.get("encoder_hidden_states")
    if not layers:
        raise UserError("the model returns no hidden states.", key="of")
    states: Tensor = layers[-1]
    if states.shape[:2] != tokens.shape:
        raise UserError(
            f"the model has hidden states of shape {tuple(states.shape[:2])} for tokens of {tuple(tokens.shape)}: "
            "which of them are padding is not known.",
            key="of",
        )
    # Values at padding, which may be NaN, are set to 0.
    states = upcast(states).masked_fill(~tokens.unsqueeze(-1), 0.0)
    if of == "mean":
        return states.sum(1) / tokens.sum(-1, keepdim=True).clamp(min=1)
    mask = tokens.int()
    # The count of tokens so far is largest from the last token on; argmax returns its first position.
    where = mask.argmax(-1) if of == "first" else mask.cumsum(-1).argmax(-1)
    return states[torch.arange(len(states), device=states.device), where]


def _sequences(values: Tensor) -> Tensor:
    """Return `(batch, texts, width)` as `(texts * batch, width)`, all first texts first, as `rows.fold` expects."""
    return values if values.dim() == 2 else values.transpose(0, 1).flatten(0, 1)
