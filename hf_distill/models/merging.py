"""Merging a PEFT adapter into its base model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.adapters import Adapter, first_reason, of_another_kind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Merged and unmerged answers differ by rounding; what went wrong differs by far more.
_CLOSE = 0.05


def merge(adapter: Adapter, model: PreTrainedModel) -> PreTrainedModel:
    """Return a base model, in place, with the adapter's changes in its weights; all of it can be trained.

    Raises:
        UserError: The adapter does not fit the model, is of a kind that cannot be merged, or answers otherwise merged.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # among its own and Transformers' developers
            wrapped = peft.PeftModel.from_pretrained(model, adapter.directory)
            found = wrapped.load_adapter(adapter.directory, "default")
    # Every kind of adapter checks what it is put into in its own way.
    except Exception as error:
        raise _unfit(adapter, first_reason(error)) from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise of_another_kind(adapter)
    lost = [*found.unexpected_keys, *found.missing_keys]
    if lost:
        raise _unfit(adapter, f"{len(lost)} of its tensors have no place there, or are missing ({lost[0]}, ...)")
    wrapped.eval()
    try:
        before = _answers(wrapped, model)
        merged: Any = wrapped.merge_and_unload(safe_merge=True)
        after = _answers(merged, merged)
    except Exception as error:
        raise UserError(f"cannot merge '{adapter.name}' into its base: {first_reason(error)}", key="model") from error
    merged.__dict__.pop("peft_config", None)
    merged.requires_grad_(True)  # PEFT froze the base
    if not bool((after - before).norm() <= _CLOSE * before.norm()):
        raise UserError(
            f"'{adapter.name}' cannot be merged into its base: merged it answers otherwise than before. It changes "
            "weights that the base shares, such as embeddings that are the head too. Save a merged model yourself.",
            key="model",
        )
    result: PreTrainedModel = merged
    return result


def _unfit(adapter: Adapter, reason: str) -> UserError:
    return UserError(f"the adapter '{adapter.name}' does not fit its base '{adapter.base}': {reason}", key="model")


def _answers(model: Any, inner: PreTrainedModel) -> Tensor:
    """Return what a model answers to a few tokens, float32."""
    import torch

    config = inner.config
    ids = torch.arange(8, device=inner.device).unsqueeze(0) % config.get_text_config().vocab_size
    end = config.eos_token_id
    if config.is_encoder_decoder and isinstance(end, int):
        ids[0, -1] = end  # where its classifiers read
    decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    with torch.no_grad():
        answers: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)[0]
    return answers.float()
