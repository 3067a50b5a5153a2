"""A student of any size, with random weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError, did_you_mean
from hf_distill.models.loading import Head, open_config
from hf_distill.students.base import Student, build, is_per_layer, with_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Keys that a recipe cannot override: the task sets the labels, the student is always float32, and the others are not
# properties of an architecture.
NOT_HERE = {
    *("num_labels", "id2label", "label2id", "problem_type"),
    *("dtype", "torch_dtype", "quantization_config"),
    *("architectures", "transformers_version", "model_type", "name_or_path"),
}


@component
class FromConfig(Student):
    """A new model with random weights, from a configuration with changes.

    The weights follow torch's seed. `copy_layers` starts from the teacher's weights, which usually learns faster; this
    student can be narrower than the teacher, or of another architecture.

    Attributes:
        overrides: What to change, in the names of the configuration class: `{num_hidden_layers: 4, hidden_size: 128,
            num_attention_heads: 4}`. Everything else stays (such as `intermediate_size`), except values that follow
            from these: `head_dim`, `num_key_value_heads` if every head has its own, and lists with an entry for each
            layer.
        model: Model whose configuration to start from: Hub id, local directory or `package:NAME/PATH`. Vocabulary and
            special tokens stay the teacher's. Default: the teacher.
    """

    name: ClassVar[str] = "from_config"

    overrides: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration with the overrides and what follows from them.

        Raises:
            UserError: An override is unknown or not allowed, or the values do not fit together.
        """
        import torch
        from transformers import AutoModel

        base = teacher if self.model is None else open_config(self.model)
        given = self._given(base)
        kept = {key: value for key, value in base.to_dict().items() if key not in _outdated(base, given)}
        values = {**kept, **_vocabulary_of(teacher, base), **_consequences(base, given), **given}
        try:
            config = type(base).from_dict(values)
        # Configuration classes raise many types of errors: their own, ValueError, ZeroDivisionError ...
        except Exception as error:
            raise UserError(f"{type(base).__name__} refuses them: {_reason(error)}", key="overrides") from error
        _check_heads(config)
        with torch.device("meta"):  # shapes only, without memory and random numbers
            build(AutoModel, config, key="overrides")
        return config

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Build the model with random weights."""
        import transformers

        from hf_distill.models.sentence_encoder import without_dense

        model_class: Any = (
            without_dense(type(teacher)) if self.model is None else getattr(transformers, head.auto_class)
        )
        config = with_head(self.config(teacher.config), head)
        student = build(model_class, config, key="model" if self.model else "overrides")
        student = student if head.adapt is None else head.adapt(student)
        if self.model is None and student.can_generate():
            # The teacher's settings of generation (length, repetition, start token) do not depend on the sizes.
            student.generation_config = copy.deepcopy(teacher.generation_config)
        return student

    def _given(self, base: PretrainedConfig) -> dict[str, Any]:
        """Return the overrides with the names of the configuration class (`num_hidden_layers` -> `n_layer`)."""
        known = {key for key in {*vars(base), *base.attribute_map} if not key.startswith("_")} - NOT_HERE
        for key in self.overrides:
            if key in NOT_HERE:
                raise UserError("cannot be set in a recipe; the task decides.", key=f"overrides.{key}")
            if key not in known:
                hint = did_you_mean(key, sorted(known))
                raise UserError(f"{type(base).__name__} has no such key.{hint}", key=f"overrides.{key}")
        return {base.attribute_map.get(key, key): value for key, value in self.overrides.items()}


def _vocabulary_of(theirs: PretrainedConfig, base: PretrainedConfig) -> dict[str, Any]:
    """Return the teacher's values for the keys that depend on the tokenizer: sizes and special tokens."""
    keys = [key for key in vars(base) if key.endswith("_token_id") or key in ("vocab_size", "type_vocab_size")]
    # The configuration of a teacher without segments (DistilBERT) has no number of them.
    return {key: getattr(theirs, key, None) for key in keys if hasattr(theirs, key) or key.endswith("_token_id")}


def _outdated(base: PretrainedConfig, given: dict[str, Any]) -> set[str]:
    """Return the keys that the configuration class must set again: about weights, and patterns over layers."""
    outdated = {"quantization_config", "dtype", "_name_or_path"}
    layers = getattr(base, "num_hidden_layers", None)
    if given.get(base.attribute_map.get("num_hidden_layers", "num_hidden_layers"), layers) != layers:
        outdated |= {key for key, value in vars(base).items() if is_per_layer(key, value, layers)}
    return outdated


def _consequences(base: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return new values for keys that depend on the overridden ones."""

    def new(name: str) -> Any:
        stored = base.attribute_map.get(name, name)
        return given.get(stored, getattr(base, stored, None))

    follows: dict[str, Any] = {}
    heads, size = getattr(base, "num_attention_heads", None), getattr(base, "hidden_size", None)
    if isinstance(new("num_attention_heads"), int) and isinstance(new("hidden_size"), int) and heads and size:
        if getattr(base, "num_key_value_heads", None) == heads:
            follows["num_key_value_heads"] = new("num_attention_heads")
        if isinstance(getattr(base, "head_dim", None), int) and base.head_dim * heads == size:
            follows["head_dim"] = new("hidden_size") // max(new("num_attention_heads"), 1)
    return {key: value for key, value in follows.items() if key in vars(base)}


def _check_heads(config: PretrainedConfig) -> None:
    """Refuse sizes with which a model can be built but cannot run, or that make no sense."""
    layers, size = getattr(config, "num_hidden_layers", 1), getattr(config, "hidden_size", None)
    heads, groups = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if isinstance(layers, int) and layers < 1:
        raise UserError(f"num_hidden_layers is {layers}; want at least 1.", key="overrides")
    if not isinstance(heads, int) or not isinstance(size, int):
        return
    if heads < 1 or (size % heads and not getattr(config, "head_dim", None)):
        raise UserError(f"hidden_size {size} cannot be divided by num_attention_heads {heads}.", key="overrides")
    if isinstance(groups, int) and (groups < 1 or heads % groups):
        raise UserError(
            f"num_attention_heads {heads} cannot be divided by num_key_value_heads {groups}.", key="overrides"
        )


def _reason(error: Exception) -> str:
    # huggingface_hub's strict dataclasses put the cause on a separate line.
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
