"""One vector for a text: what objectives that compare examples with each other look at."""

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
        output: A model's, with `hidden_states` (`encoder_hidden_states`).
        tokens: Which tokens are no padding, `(sequences, tokens)`.
        of: Mean of the last hidden states of the tokens, that of the first or of the last token; or the model's own
            `sentence_embedding`.

    Raises:
        UserError: The model returns nothing of the kind.
    """
    if of == "embedding":
        if output.get("sentence_embedding") is None:
            raise UserError(
                "'embedding' is what models of the task sentence-similarity return, this one has none. Use mean.",
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
    # Whatever a model computes for padding, NaN included, is gone.
    states = upcast(states).masked_fill(~tokens.unsqueeze(-1), 0.0)
    if of == "mean":
        return states.sum(1) / tokens.sum(-1, keepdim=True).clamp(min=1)
    mask = tokens.int()
    # argmax takes the first of equal values; the running number of a token is the largest from the last one on.
    where = mask.argmax(-1) if of == "first" else mask.cumsum(-1).argmax(-1)
    return states[torch.arange(len(states), device=states.device), where]


def _sequences(values: Tensor) -> Tensor:
    """Return `(batch, texts, width)` as `(texts * batch, width)`, all first texts first, as `rows.fold` wants them."""
    return values if values.dim() == 2 else values.transpose(0, 1).flatten(0, 1)
