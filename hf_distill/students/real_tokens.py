"""Run a model to measure what is inside it, and follow which tokens of a batch are not padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.inspection import LABELS, taken_by

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


# What is not needed to measure layers: logits of a vocabulary for every token, and a cache.
_SPARED = {"logits_to_keep": 1, "use_cache": False}


def run_body(model: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """Run a model on a batch for what is inside it: without a loss, and with as few logits as it can."""
    takes = taken_by(model)
    settings = {key: value for key, value in _SPARED.items() if key in takes}
    model(**{key: value for key, value in batch.items() if key not in LABELS}, **settings)


class RealTokens:
    """The tokens of the running forward pass that are not padding.

    Attributes:
        model: The model that runs.
        encoder: Which tokens count, bool `(texts, tokens)`; those of the only stack, for a model with one.
        decoder: The same for the decoder of an encoder-decoder model; None for other models.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.encoder: Tensor | None = None
        self.decoder: Tensor | None = None

    def of(self, states: Tensor, *, decoder: bool = False) -> Tensor:
        """Return which tokens of some states `(texts, tokens, ...)` count.

        Raises:
            UserError: The states have another shape, so it is not known which of them are padding.
        """
        mask = self.decoder if decoder else self.encoder
        if mask is None or states.shape[:2] != mask.shape:
            raise UserError(
                f"the layers of a {type(self.model).__name__} read {tuple(states.shape[:2])} tokens where it was given "
                f"{None if mask is None else tuple(mask.shape)}, so padding cannot be told apart. Choose layers "
                "yourself: student: {name: copy_layers, layers: ...}.",
                key="name",
            )
        return mask


@contextmanager
def real_tokens(model: PreTrainedModel) -> Iterator[RealTokens]:
    """Context manager: follow which tokens of a model's inputs are padding, from one forward pass to the next."""
    tokens = RealTokens(model)
    body: nn.Module = model.base_model
    signature = inspect.signature(body.forward)
    config = model.config

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        tokens.encoder = _mask(given.get("input_ids"), given.get("attention_mask"))
        if config.is_encoder_decoder:
            ids, mask = given.get("decoder_input_ids"), given.get("decoder_attention_mask")
            tokens.decoder = _until_padding(ids, config.pad_token_id) if mask is None else mask != 0

    hook = body.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield tokens
    finally:
        hook.remove()


def _mask(ids: Tensor | None, mask: Tensor | None) -> Tensor:
    import torch

    from hf_distill.models.sentence_encoder import sequences

    if mask is not None:
        return sequences(mask != 0)
    assert ids is not None
    return torch.ones_like(sequences(ids), dtype=torch.bool)


def _until_padding(ids: Any, pad: int | None) -> Tensor:
    """Return for a decoder's inputs which are not padding at the end; the first token always counts."""
    import torch

    if pad is None:
        return torch.ones_like(ids, dtype=torch.bool)
    later: Tensor = (ids != pad).flip(-1).cumsum(-1).flip(-1) > 0
    later[:, 0] = True
    return later
