"""Find and describe PEFT adapters, before they are merged into their base model."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.locations import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Prefix of PEFT for the names of a model's weights.
_PREFIX = "base_model.model."
# PEFT's name of a task -> the Auto class of its models.
TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
# Types of adapters that add a prompt instead of changing weights: they cannot be merged.
_OF_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a directory.

    Attributes:
        name: Its name in the recipe.
        directory: The directory.
        settings: Content of its `adapter_config.json`.
        base: The base model: an existing path, or a Hub id.
    """

    name: str
    directory: str
    settings: dict[str, Any]
    base: str

    @property
    def revision(self) -> str | None:
        """Git revision of the base on the Hub."""
        return self.settings.get("revision")

    @property
    def model_class(self) -> str | None:
        """Name of the model class or Auto class with which it was trained; None if its settings do not say."""
        own = (self.settings.get("auto_mapping") or {}).get("base_model_class")
        return TASKS.get(str(self.settings.get("task_type")), own)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in its file by name: its own ones, and weights of the model stored whole."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.path.join(self.directory, WEIGHTS), "pt") as file:
                names = list(file.keys())
                return {name.removeprefix(_PREFIX): tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot load '{self.name}': {WEIGHTS} is damaged or cut off ({first_reason(error)}). Fetch or save it "
                "again.",
                key="model",
            ) from error

    def describe_merge(self) -> str:
        """Return a line that says that the adapter is merged, and into which base."""
        return f"adapter '{self.name}' ({self.settings.get('peft_type')}) merged into its base '{self.base}'"


def find_adapter(model: str | None, key: str = "model") -> Adapter | None:
    """Return the adapter in a directory that a recipe names as a model; None if it is not an adapter.

    Raises:
        UserError: Its configuration is damaged, its base is not named or does not exist, or its weights are not
            safetensors.
    """
    if model is None:
        return None
    try:
        directory = resolve(model, key)
    except UserError:
        return None  # opening it reports the error; an entry from outside may use `model` for something else
    if not os.path.isfile(os.path.join(directory, CONFIG)):
        return None
    if os.path.isfile(os.path.join(directory, "config.json")) and any(Path(directory).glob("model*.safetensors")):
        raise UserError(
            f"'{model}' holds a whole model and an adapter. Remove {CONFIG} to use the model, or move the adapter to a "
            "directory of its own.",
            key=key,
        )
    try:
        settings = json.loads(Path(directory, CONFIG).read_text(encoding="utf-8"))
        named = settings.get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"cannot open '{model}': its {CONFIG} is broken ({first_reason(error)}).", key=key) from error
    if not isinstance(named, str) or not named:
        raise UserError(
            f"the adapter '{model}' does not name its base. Write it into its {CONFIG}: base_model_name_or_path.",
            key=key,
        )
    _check_files(model, directory, key)
    return Adapter(model, directory, settings, _base(model, directory, named, key))


def _check_files(model: str, directory: str, key: str) -> None:
    if os.path.isfile(os.path.join(directory, WEIGHTS)):
        return
    reason = f"the adapter has no {WEIGHTS}."
    if any(Path(directory).glob("*.bin")):
        reason = (
            "its weights are pickled (.bin), and loading a pickle runs any code in it; only safetensors are read. If "
            "you trust the file, load it once with PeftModel.from_pretrained and write it with save_pretrained."
        )
    raise UserError(f"cannot load '{model}': {reason}", key=key)


def _base(model: str, directory: str, named: str, key: str) -> str:
    beside = os.path.join(directory, named)
    try:
        base = beside if os.path.exists(beside) else resolve(named, key)
    except UserError as error:
        raise UserError(
            f"the base of the adapter '{model}' does not exist: its {CONFIG} names '{named}'. Correct the path there: "
            "base_model_name_or_path.",
            key=key,
        ) from error
    if os.path.exists(base) and os.path.samefile(base, directory):
        raise UserError(f"the adapter '{model}' names itself as its base. Correct its {CONFIG}.", key=key)
    return base


def check_task(model: str | None, auto_class: str) -> None:
    """Refuse an adapter that was trained for another task.

    Args:
        model: The model that the recipe names.
        auto_class: The Auto class of the recipe's task.

    Raises:
        UserError: It is an adapter for another task.
    """
    from hf_distill.models.outline import is_of

    adapter = find_adapter(model)
    own = None if adapter is None else adapter.model_class
    if adapter is None or own is None or own == auto_class:
        return
    if own not in TASKS.values() and is_of(own, auto_class):
        return
    wanted = next((name for name, one in TASKS.items() if one == auto_class), auto_class.removeprefix("AutoModel"))
    raise UserError(
        f"'{model}' is an adapter for another task: {adapter.settings.get('task_type') or own} (wanted {wanted}). Name "
        "one that was trained for this task, or a whole model.",
        key="model",
    )


def check_not_quantized(model: str) -> None:
    """Refuse an adapter as a model to quantize.

    Raises:
        UserError: The model is an adapter.
    """
    if find_adapter(model) is not None:
        raise UserError(
            f"'{model}' is an adapter and cannot be merged into quantized weights. Save the merged model and name that "
            "one, or leave this out.",
            key="quantization",
        )


def describe(adapter: Adapter, base: PretrainedConfig, *, trust_remote_code: bool) -> PretrainedConfig:
    """Return the configuration of the merged model.

    If the adapter has a head of its own, `num_labels` is that head's number of outputs, and the label names of the
    base, which belong to another head, are replaced by numbers. A `config.json` beside the adapter may name them.

    Args:
        adapter: The adapter.
        base: Configuration of its base, or the one beside the adapter; changed in place.
        trust_remote_code: Run model code from the base.

    Raises:
        UserError: The adapter is of a type that cannot be merged, or its file is damaged.
    """
    import transformers

    from hf_distill.models.outline import outline

    if adapter.settings.get("peft_type") in _OF_PROMPTS:
        raise of_another_kind(adapter)
    name = adapter.model_class
    if name is None or not hasattr(transformers, name):
        return base
    made_by: Any = getattr(transformers, name)
    if not name.startswith("Auto"):
        made_by = _Direct(made_by)
    held = adapter.shapes
    several = []
    for count in (3, 5):  # the shapes that differ between the two depend on the number of labels
        config = copy.deepcopy(base)
        config.num_labels = count
        several.append(outline(made_by, config, trust_remote_code=trust_remote_code))
    first, second = (dict(one.named_parameters()) for one in several)
    inside = f"{several[0].base_model_prefix}."
    head = [one for one in first if several[0].base_model is not several[0] and not one.startswith(inside)]
    outputs = [one for one in first if first[one].shape != second[one].shape and one in held]
    # Other layers of a head may be the base's: ModernBERT's language model and classifier have one in common.
    there = held.keys() | _names(base, trust_remote_code)
    if any(one in held for one in head) and all(one in there for one in head):
        base.architectures = [type(several[0]).__name__]
    if outputs:
        beside = os.path.isfile(os.path.join(adapter.directory, "config.json"))
        labels = held[outputs[0]][0]
        if not beside or base.num_labels != labels:
            base.id2label = {index: f"LABEL_{index}" for index in range(labels)}
            base.label2id = {text: index for index, text in base.id2label.items()}
            base.problem_type = None
    return base


def _names(config: PretrainedConfig, trust_remote_code: bool) -> set[str]:
    """Return the names of the weights in the checkpoint of a base, from its model class."""
    import transformers

    from hf_distill.models.outline import outline

    made_by = getattr(transformers, next(iter(config.architectures or []), ""), None)
    if made_by is None:
        return set()
    return set(outline(_Direct(made_by), config, trust_remote_code=trust_remote_code).state_dict())


class _Direct:
    """Gives a model class the `from_config` of an Auto class."""

    def __init__(self, made_by: Any) -> None:
        self._made_by = made_by

    def from_config(self, config: PretrainedConfig, **_: Any) -> PreTrainedModel:
        model: PreTrainedModel = self._made_by(config)
        return model


def of_another_kind(adapter: Adapter) -> UserError:
    """Return the error for an adapter that does not change weights and so cannot be merged."""
    return UserError(
        f"'{adapter.name}' is an adapter of a type that cannot be merged ({adapter.settings.get('peft_type')}). Name a "
        "whole model, or another type of adapter, such as LoRA.",
        key="model",
    )


def first_reason(error: Exception) -> str:
    """Return the first informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of torch's error only says that there are errors.
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0])[:200]
