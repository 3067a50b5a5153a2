"""Merge a PEFT adapter into its base model, and check the result."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.adapters import Adapter, first_reason, of_another_kind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Largest relative difference of outputs before and after merging: rounding is far below it, a wrong merge far above.
_CLOSE = 0.05


def merge(adapter: Adapter, model: PreTrainedModel) -> PreTrainedModel:
    """Merge an adapter into the weights of its base model, in place, and return the model with all weights trainable.

    Raises:
        UserError: The adapter does not fit the model, is of a type that cannot be merged, or gives other outputs when
            merged.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # meant for developers of PEFT and Transformers
            wrapped = peft.PeftModel.from_pretrained(model, adapter.directory)
            found = wrapped.load_adapter(adapter.directory, "default")
    # Each type of adapter checks its base model in its own way.
    except Exception as error:
        raise _unfit(adapter, first_reason(error)) from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise of_another_kind(adapter)
    lost = [*found.unexpected_keys, *found.missing_keys]
    if lost:
        raise _unfit(adapter, f"{len(lost)} of its tensors have no place there, or are missing ({lost[0]}, ...)")
    wrapped.eval()
    try:
        before = _outputs(wrapped, model)
        merged: Any = wrapped.merge_and_unload(safe_merge=True)
        after = _outputs(merged, merged)
    except Exception as error:
        raise UserError(f"cannot merge '{adapter.name}' into its base: {first_reason(error)}", key="model") from error
    merged.__dict__.pop("peft_config", None)
    merged.requires_grad_(True)  # PEFT froze the base
    if not bool((after - before).norm() <= _CLOSE * before.norm()):
        raise UserError(
            f"'{adapter.name}' cannot be merged into its base: its outputs change when merged, since it changes "
            "weights that the base shares, such as tied embeddings and head. Save a merged model yourself.",
            key="model",
        )
    result: PreTrainedModel = merged
    return result


def _unfit(adapter: Adapter, reason: str) -> UserError:
    return UserError(f"the adapter '{adapter.name}' does not fit its base '{adapter.base}': {reason}", key="model")


def _outputs(model: Any, inner: PreTrainedModel) -> Tensor:
    """Return a model's outputs for a few tokens, float32."""
    import torch

    config = inner.config
    ids = torch.arange(8, device=inner.device).unsqueeze(0) % config.get_text_config().vocab_size
    end = config.eos_token_id
    if config.is_encoder_decoder and isinstance(end, int):
        ids[0, -1] = end  # encoder-decoder classifiers need an end-of-text token
    decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    with torch.no_grad():
        answers: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)[0]
    return answers.float()
