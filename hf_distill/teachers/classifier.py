"""A model of another kind in the place of a classifier of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_distill.models.needs import Gives
from hf_distill.models.target_model import LiveModel

if TYPE_CHECKING:
    from hf_distill.models.loading import Head


class Classifier(nn.Module):
    """Base class of modules that turn the outputs of a model into logits of the task's classes.

    A subclass defines `forward`, which names each input as an argument and returns `{"logits": (batch, classes)}`.

    Args:
        model: The model.
        head: The classes, in the order of the logits.
        **settings: What else decides the logits, as plain values: a cache belongs to one combination of them.

    Attributes:
        config: Configuration with the names of the classes, the settings, and the model's configuration as a dict.
        is_quantized: Whether the model's weights are quantized.
    """

    def __init__(self, model: Any, head: Head, **settings: Any) -> None:
        from transformers import PretrainedConfig

        super().__init__()
        self.model = model
        # `Trainer` reads all of them, and writes those of the tokenizer there if they differ.
        special = {key: getattr(model.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        known: dict[str, Any] = {**special, **head.settings}
        known |= {"settings": settings, "model": model.config.to_dict()}
        self.config = PretrainedConfig(**known)
        if (quantization := getattr(model.config, "quantization_config", None)) is not None:
            self.config.quantization_config = quantization
        self.is_quantized = bool(getattr(model, "is_quantized", False))
        if (spread := getattr(model, "hf_device_map", None)) is not None:
            self.hf_device_map = spread
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype


class LiveClassifier(LiveModel):
    """A classifier that runs beside the student on inputs of its own, and gives logits only.

    Args:
        model: The classifier.
        whose: What messages call the teacher.
        facts: What the report and the model card say about it.
    """

    def __init__(self, model: nn.Module, whose: str, facts: Mapping[str, Any]) -> None:
        super().__init__(model)
        self._gives = Gives(whose, own_tokens=True)
        self._facts = facts

    def gives(self) -> Gives:
        """Return that it gives logits."""
        return self._gives

    def facts(self) -> Mapping[str, Any]:
        """Return what the entry says about itself."""
        return self._facts
