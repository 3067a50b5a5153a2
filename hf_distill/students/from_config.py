"""A student of any size and architecture, with random weights or with those of the teacher that fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError, did_you_mean
from hf_distill.models.loading import Head, open_config
from hf_distill.students.base import Made, build, with_head
from hf_distill.students.configurations import (
    check_heads,
    check_start,
    consequences,
    default_config,
    like_teacher,
    outdated_keys,
    proportional,
    reason,
    vocabulary_of,
)
from hf_distill.students.size_matched import copy_size_matched
from hf_distill.students.sized import SizedStudent

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows

# Keys that a recipe cannot override: the task sets the labels, the student is always float32, and the others are not
# properties of an architecture.
NOT_HERE = {
    *("num_labels", "id2label", "label2id", "problem_type"),
    *("dtype", "torch_dtype", "quantization_config"),
    *("architectures", "transformers_version", "model_type", "name_or_path"),
}


@component
class FromConfig(SizedStudent):
    """A new model, from a configuration with changes: narrower than the teacher, or of another architecture.

    The weights are random and follow torch's seed, unless `start: teacher` copies those that fit. `copy_layers` starts
    from the teacher's layers whole, which usually learns faster.

    Attributes:
        overrides: What to change, in the names of the configuration class: `{num_hidden_layers: 4, hidden_size: 128,
            num_attention_heads: 4}`. Everything else stays (such as `intermediate_size`), except values that follow
            from these: `head_dim`, `num_key_value_heads` if every head has its own, lists with an entry for each layer,
            and what the class computes. With a cost, it decides layers and widths, at the teacher's proportions, unless
            they are given here.
        model: Model whose configuration to start from: Hub id, local directory or `package:NAME/PATH`. Vocabulary and
            special tokens stay the teacher's. Default: the teacher.
        model_type: Another architecture, such as `modernbert` or `mamba`, in place of `model`: Transformers' defaults
            for it, with the teacher's sizes (layers, widths, heads, positions) where it has the same ones. Default:
            none.
        start: `random`, or `teacher`: copy from the teacher whatever has the same task and the same size in both models
            (embeddings, matrices of evenly spaced layers, a head of the same labels). The report says how much that
            was. A baseline starts from the same weights.
    """

    name: ClassVar[str] = "from_config"

    overrides: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    model_type: str | None = None
    start: Literal["random", "teacher"] = "random"

    def __post_init__(self) -> None:
        """Refuse two configurations to start from."""
        super().__post_init__()
        if self.model is not None and self.model_type is not None:
            raise UserError("given together with model, which says the type. Keep one of the two.", key="model_type")

    @property
    def copies_teacher(self) -> bool:
        """Whether weights are copied from the teacher."""
        return self.start == "teacher"

    def apart_from_teacher(self, checkpoint: str) -> str:
        """Return the start without the teacher's weights; another `model` would only be another configuration."""
        return "start: random"

    def shapes(self, teacher: PretrainedConfig) -> Iterator[FromConfig]:
        """Yield students of the teacher's proportions, from one attention head to all of them."""
        base = self._base(teacher)
        own = set(self._given(base))
        scaled = [
            {key: value for key, value in one.items() if base.attribute_map.get(key, key) not in own}
            for one in proportional(base)
        ]
        shapes = [self.with_shape(overrides={**sizes, **self.overrides}) for sizes in scaled]
        possible = [one for one in shapes if not own or one.is_possible(teacher)]
        if not possible:
            shapes[-1].plain_config(teacher)  # says why
        yield from possible

    def is_possible(self, teacher: PretrainedConfig) -> bool:
        """Return whether heads and widths fit together."""
        try:
            self.plain_config(teacher)
        except UserError:
            return False
        return True

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration with the overrides and what follows from them.

        Raises:
            UserError: An override is unknown or not allowed, or the values do not fit together.
        """
        import torch
        from transformers import AutoModel

        self.check_shaped()
        config = self.plain_config(teacher)
        with torch.device("meta"):  # shapes only, without memory and random numbers
            student = build(AutoModel, config, key="overrides")
            if self.start == "teacher":
                copy_size_matched(student, build(AutoModel, teacher, key="start"), chosen_for=self._chosen_for)
        return config

    def plain_config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration without trying whether a model can be built from it.

        Raises:
            UserError: An override is unknown or not allowed, or the values do not fit together.
        """
        base = self._base(teacher)
        given = self._given(base)
        kept = {key: value for key, value in base.to_dict().items() if key not in outdated_keys(base, given)}
        values = {**kept, **vocabulary_of(teacher, base), **consequences(base, given), **given}
        try:
            config = type(base).from_dict(values)
        # Configuration classes raise many types of errors: their own, ValueError, ZeroDivisionError ...
        except Exception as error:
            raise UserError(f"{type(base).__name__} refuses them: {reason(error)}", key="overrides") from error
        check_heads(config)
        check_start(config, teacher)
        return config

    def _base(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration to start from."""
        if self.model_type is not None:
            base = default_config(self.model_type)
            return like_teacher(base, teacher, self._given(base))
        return teacher if self.model is None else open_config(self.model)

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Build the model, with random weights or those of the teacher that fit."""
        return self._made(teacher, head).model

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Build the model, and say how much of it was copied from the teacher."""
        return self._made(teacher, head)

    def _made(self, teacher: PreTrainedModel, head: Head) -> Made:
        import transformers

        from hf_distill.models.sentence_encoder import without_dense

        of_teacher = self.model is None and self.model_type is None
        model_class: Any = without_dense(type(teacher)) if of_teacher else getattr(transformers, head.auto_class)
        config = with_head(self.config(teacher.config), head)
        student = build(model_class, config, key="model" if self.model else "overrides")
        student = student if head.adapt is None else head.adapt(student)
        if of_teacher and student.can_generate():
            # The teacher's settings of generation (length, repetition, start token) do not depend on the sizes.
            student.generation_config = copy.deepcopy(teacher.generation_config)
        if self.start == "random":
            return Made(student)
        return Made(student, copy_size_matched(student, teacher, chosen_for=self._chosen_for).facts())

    @property
    def _chosen_for(self) -> str:
        return " ".join(f"{kind} {value}" for kind, value in self.chosen_for.items())

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
