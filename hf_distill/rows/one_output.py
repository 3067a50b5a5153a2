"""What follows the one output of a head: where sentence-transformers writes that of a cross-encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# New versions, old ones.
_OWN = ("sentence_transformers", "sbert_ce_default_activation_function")


def activation(config: PretrainedConfig | None) -> str | None:
    """Return what sentence-transformers applies to the output of a cross-encoder; None where nothing says.

    >>> from transformers import BertConfig
    >>> activation(BertConfig(sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"}))
    'Sigmoid'
    """
    said = getattr(config, _OWN[0], None)
    path = said.get("activation_fn") if isinstance(said, dict) else getattr(config, _OWN[1], None)
    return path.rpartition(".")[2] if isinstance(path, str) else None


def kept_settings(config: PretrainedConfig | None) -> dict[str, Any]:
    """Return what a student must have in its configuration, so that its output is read as the teacher's is."""
    return {key: value for key in _OWN if (value := getattr(config, key, None)) is not None}
