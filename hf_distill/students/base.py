"""The base class of students: recipe entries that make the model to train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from hf_distill.component import component
from hf_distill.errors import UserError, first_line
from hf_distill.models.training_hooks import TrainingHooks
from hf_distill.students.quantization_aware import RoundedTraining, Rounding, check_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.cut_tokenizer import Cut
    from hf_distill.models.loading import Head
    from hf_distill.models.token_counts import TokenCounts
    from hf_distill.students.cost import Cost


class Made(NamedTuple):
    """A model to train, and how it was made.

    Attributes:
        model: The model, in float32, with the task's head.
        facts: What report and model card say about it, by name, such as which layers were left out. Numbers, texts,
            lists, and mappings of them.
    """

    model: PreTrainedModel
    facts: Mapping[str, Any] = MappingProxyType({})


@component
class Student(ABC):
    """Where the student comes from.

    Attributes:
        freeze: Parts that are not trained: `embeddings`, `head`, `layers.0-3`, `encoder.layers.0-3`,
            `decoder.layers.0-1`, or module paths such as `bert.encoder.layer.0`. Weights shared with a frozen part are
            frozen too: in most language models `embeddings` includes the head. Default: none.
        qat: `int8`: train with linear layers that round their weights and inputs to int8 (by torchao), so that an
            export to int8 loses less. The student is saved unrounded. Default: no rounding.
    """

    name: ClassVar[str]

    freeze: list[str] = Field(default_factory=list)
    qat: Rounding | None = None

    @field_validator("qat")
    @classmethod
    def _alone_around_training(cls, qat: Rounding | None) -> Rounding | None:
        if qat is not None and cls.hooks is not Student.hooks:
            raise ValueError(
                f"{cls.name} has something of its own around the training, and weights that change there are not those "
                "that are rounded. Leave qat out"
            )
        return qat

    @property
    def source(self) -> str | None:
        """The model that the entry names; None if it names none."""
        return getattr(self, "model", None)

    @property
    def vocabulary(self) -> str | None:
        """The model whose tokenizer the student's weights were trained with; None if it uses the teacher's."""
        return self.source if self.own_config() is not None else None

    @property
    def copies_teacher(self) -> bool:
        """Whether its weights are copied from the teacher."""
        return False

    def apart_from_teacher(self, checkpoint: str) -> str:
        """Return what to write in the recipe so that nothing is copied from the teacher.

        Args:
            checkpoint: A model to copy from in its place.
        """
        return f"model: {checkpoint}"

    @property
    def not_pushed(self) -> str | None:
        """Why nobody else could load the finished student from the Hub; None if all can."""
        return None

    def every_entry(self) -> Iterator[Student]:
        """Yield this entry and the entries inside it."""
        yield self

    @property
    def not_teaching(self) -> str | None:
        """Why it cannot teach the next student of a chain, as it is saved; None if it can."""
        return None

    @property
    def cost(self) -> Cost | None:
        """What it may cost, if a run is to choose its shape by that; else None."""
        return None

    def shapes(self, teacher: PretrainedConfig) -> Iterator[Student]:
        """Yield the entries among which a run chooses by the cost, the cheapest first; by default none.

        Args:
            teacher: The teacher's configuration.
        """
        yield from ()

    @abstractmethod
    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the student's configuration, without loading weights.

        Raises:
            UserError: The entry does not fit the teacher (more layers than it has, ...).
        """

    @abstractmethod
    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Return the model to train, in float32, with the task's head.

        Random weights (a new head, a model from a configuration) are drawn with torch's random generator.
        """

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Return the model to train, and what the report says about how it was made.

        An entry overrides it (through `MeasuredStudent`) if it measures a model on rows of the train split first. The
        same call returns the same model: it is made anew for the baseline, and when a run is resumed.

        Args:
            teacher: The model that students copy from.
            head: The task's head.
            rows: Rows of the train split.
        """
        return Made(self.make(teacher, head))

    def cut(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, count: Callable[[], TokenCounts]
    ) -> Cut | None:
        """Return the part of a vocabulary that the student has; by default None, for all of it.

        It is called once the data has been read. The same data must give the same part: it decides what is trained.

        Args:
            tokenizer: The tokenizer that the student would use.
            config: The student's configuration with all tokens.
            count: Counts the tokens of the data; call it only if it is needed, since it tokenises the data.
        """
        return None

    def check_steps(self, steps: int) -> None:  # noqa: B027
        """Refuse a training, the first of several stages, that is too short for what is done in it; by default none.

        Args:
            steps: Number of optimiser steps.
        """

    def hooks(self, rows: CalibrationRows, stage: int = 1) -> TrainingHooks:
        """Return what happens around a training of the student and of the baseline; by default the rounding of `qat`.

        Args:
            rows: Rows of the train split.
            stage: Which of the recipe's stages is trained, from 1.
        """
        return TrainingHooks() if self.qat is None else RoundedTraining(self.qat)

    def described(self, model: PreTrainedModel, *, followed: bool) -> Sequence[str]:
        """Return `in_words`, and a line about `qat`.

        Args:
            model: As for `in_words`.
            followed: Whether the teacher changes with the student.

        Raises:
            UserError: The entry, or `qat`, cannot work for this model.
        """
        words = self.in_words(model)
        return words if self.qat is None else (*words, check_words(model, self.qat, followed=followed))

    def in_words(self, model: PreTrainedModel) -> Sequence[str]:
        """Return lines for `--check` about what becomes of the student; by default none.

        Args:
            model: A model of the student's configuration, without weights, and with nothing frozen.

        Raises:
            UserError: The entry cannot work for this model.
        """
        return ()

    def own_config(self) -> PretrainedConfig | None:
        """Return the configuration of the student's own checkpoint; None if it is derived from the teacher."""
        return None

    def without_adapters(self) -> Callable[[Head], PreTrainedModel] | None:
        """Return what loads the checkpoint that its adapters are added to; None for a student without adapters.

        Raises:
            UserError: It has adapters, but they are added to a model that is in no checkpoint.
        """
        return None


@component
class MeasuredStudent(Student):
    """Base class of students that are made from a model which is measured on rows of the train split."""

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Refuse: it is made with rows.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"{self.name} is made from rows of the train split: call made(teacher, head, rows).", key="name"
        )

    @abstractmethod
    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Return the model to train, and what the report says about how it was made."""


def with_head(config: PretrainedConfig, head: Head) -> PretrainedConfig:
    """Write the head's settings into `config` and return it."""
    # num_labels first, since setting it may replace the label names.
    for key in sorted(head.settings, key=lambda key: key != "num_labels"):
        setattr(config, key, head.settings[key])
    return config


# Parts of names of configuration values that may have an entry per layer: `layer_types`, `attention_window`, ...
_OF_LAYERS = ("layer", "block", "window", "intermediate_size", "num_key_value_heads", "num_attention_heads", "ffn")
# Lists of layer numbers, not one entry per layer.
NUMBERS_OF_LAYERS = ("mlp_only_layers", "moe_layers", "cross_attention_layers")


def is_per_layer(key: str, value: object, total: int | None) -> bool:
    """Return whether a value has an entry for each layer (`layer_types`, `num_attention_heads_per_layer`)."""
    # The name is checked too: `eos_token_id` may be a list that has as many entries as the model has layers.
    named = key not in NUMBERS_OF_LAYERS and any(word in key for word in _OF_LAYERS)
    return isinstance(value, list | tuple) and len(value) == total and named


def build(model_class: Any, config: PretrainedConfig, key: str) -> PreTrainedModel:
    """Return a float32 model with random weights, in eval mode.

    Args:
        model_class: A model class, or an Auto class.
        config: Its configuration.
        key: Recipe key for the error.

    Raises:
        UserError: No model can be built from the configuration.
    """
    import torch

    create = getattr(model_class, "from_config", None) or model_class._from_config
    try:
        model: PreTrainedModel = create(config, dtype=torch.float32).eval()
    # Model code raises many types of errors for sizes that do not fit: ValueError, AssertionError, ZeroDivisionError.
    except Exception as error:
        fault = f"cannot build a model from {type(config).__name__} with these values: {first_line(error)}"
        raise UserError(fault, key=key) from error
    return model
