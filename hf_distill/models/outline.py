"""Read from a configuration which head a model has or could have, and build the model without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hf_distill.errors import UserError, first_line
from hf_distill.outside import may_run

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


# What a head predicts: named labels, places in a text, tokens of the vocabulary (its weights are often the embeddings),
# or nothing of its own: the vectors of a backbone.
HeadKind = Literal["labels", "spans", "tokens", "vectors"]


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """Return whether a checkpoint was saved with the head of `auto_class` (`...ForSequenceClassification`)."""
    own_code = auto_class in (getattr(config, "auto_map", None) or {})
    return own_code or any(is_of(name, auto_class) for name in config.architectures or [])


def head_kind(auto_class: str) -> HeadKind:
    """Return what the head that an Auto class gives predicts.

    >>> head_kind("AutoModelForSequenceClassification"), head_kind("AutoModelForCausalLM"), head_kind("AutoModel")
    ('labels', 'tokens', 'vectors')
    """
    if auto_class.endswith("Classification"):
        return "labels"
    if auto_class.endswith("QuestionAnswering"):
        return "spans"
    return "tokens" if auto_class.endswith("LM") else "vectors"


def is_of(model_class: str, auto_class: str) -> bool:
    """Return whether a model class, given by name, has the head of `auto_class`."""
    from transformers.models.auto import modeling_auto

    # From Transformers' table, since names do not always show it: GPT2LMHeadModel is a causal language model.
    table = getattr(modeling_auto, auto_class)._model_mapping._model_mapping
    known = {name for names in table.values() for name in ([names] if isinstance(names, str) else names)}
    return model_class in known or model_class.endswith(auto_class.removeprefix("AutoModel"))


def has_class(config: PretrainedConfig, auto_class: str) -> bool:
    """Return whether Transformers has a model class of this architecture with the head of `auto_class`."""
    import transformers

    own_code = auto_class in (getattr(config, "auto_map", None) or {})
    return own_code or type(config) in getattr(transformers, auto_class)._model_mapping


def outline(auto_class: Any, config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model that a configuration describes, on the meta device (no memory for weights).

    Args:
        auto_class: A Transformers Auto class, or its name.
        config: The configuration.
        trust_remote_code: Run model code from the checkpoint.

    Raises:
        UserError: The model class raises an error.
    """
    import torch

    with torch.device("meta"):
        return _from_config(auto_class, config, trust_remote_code)


def random_model(auto_class: str, config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """Return a model of this shape with random weights; torch's random generators stay as they were.

    Args:
        auto_class: Name of a Transformers Auto class.
        config: The configuration.
        trust_remote_code: Run model code from the checkpoint.

    Raises:
        UserError: The model class raises an error.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        return _from_config(auto_class, config, trust_remote_code)


def _from_config(auto_class: Any, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    import transformers

    whole = getattr(transformers, auto_class) if isinstance(auto_class, str) else auto_class
    try:
        model: PreTrainedModel = whole.from_config(config, trust_remote_code=trust_remote_code and may_run())
    except Exception as error:  # model code may raise any exception
        raise UserError(
            f"cannot build a model from its configuration ({type(error).__name__}: {first_line(error)})", key="model"
        ) from error
    return model
