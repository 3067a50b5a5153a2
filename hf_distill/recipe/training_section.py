"""Check the `training:` section against names and types of `DistillationArguments`, without building one.

`TrainingArguments` itself accepts `learning_rate="fast"`, `fp16="no"` (a true value) and `seed=1.5`, and it refuses
`bf16=True` on a machine without it, where `--check` must still work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hf_distill.mistakes import attributes, explain, former_name, glued_key
from hf_distill.recipe.training_source import declarations

CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

# Arguments that cannot be set in a recipe -> where they are set, or why.
OWNED = {
    "push_to_hub": "publishing is the `hub:` section: hub: {push: true}.",
    "hub_model_id": "the repository is named in the `hub:` section: hub: {repo_id: user/name}.",
    "hub_private_repo": "visibility is set in the `hub:` section: hub: {private: true}.",
    "hub_strategy": "only the finished student is published, by the `hub:` section.",
    "hub_always_push": "only the finished student is published, by the `hub:` section.",
    "hub_revision": "only the finished student is published, by the `hub:` section, to the main branch.",
    "hub_token": "a token never goes in a recipe. Set the environment variable HF_TOKEN, or run `hf auth login`.",
    "resume_from_checkpoint": "the same command again resumes by itself; --restart starts over.",
    "remove_unused_columns": "the task decides which columns reach the models.",
    "label_names": "the task knows its labels; their column is named in data.columns.",
    "do_train": "a run always trains; --check does everything before that.",
    "do_eval": "a run always evaluates; when, during training, is eval_strategy.",
    "do_predict": "a run always evaluates on the eval split, data.splits.",
    "local_rank": "the launcher (accelerate launch, torchrun) sets it.",
    "parallelism_config": "it is a Python object. Use a configuration file of `accelerate launch`.",
}

# Arguments that a stage cannot set, since they hold for the whole run -> what to do.
SHARED = {
    "output_dir": "All stages of a run are stored under training.output_dir.",
    "seed": "All stages use training.seed; report.seeds counts up from it.",
    **dict.fromkeys(
        ("use_cpu", "bf16", "fp16", "tf32", "fsdp", "fsdp_config", "deepspeed", "ddp_backend", "accelerator_config"),
        "It is the same for all stages, under training.",
    ),
}
# Arguments that one student of a chain cannot set -> what to do.
OF_CHAIN = {
    **{key: "It is the same for the whole chain, under training." for key in SHARED if key != "seed"},
    "output_dir": "The last student is stored in training.output_dir, those before it in _chain inside it.",
}

# Argument -> the only value allowed, and why.
FIXED: dict[str, tuple[object, str]] = {
    "label_smoothing_factor": (0, "it would have no effect on the loss, which is the sum of `objectives`."),
    "average_tokens_across_devices": (True, "the loss would depend on the number of processes."),
    "logging_nan_inf_filter": (False, "it would hide a loss that is NaN in the log; see on_nan."),
    "prediction_loss_only": (False, "the report needs predictions."),
    "batch_eval_metrics": (False, "metrics are computed over the whole eval split."),
    "eval_do_concat_batches": (True, "metrics are computed over the whole eval split."),
}

# Arguments that Transformers has removed, or of other systems -> what to write instead.
RENAMED = {
    "evaluation_strategy": "It is called 'eval_strategy' now.",
    "warmup_ratio": "Use 'warmup_steps', which takes a fraction of all steps when it is below 1 (warmup_steps: 0.1).",
    "no_cuda": "It is called 'use_cpu' now.",
    "use_mps_device": "Remove it: the device is found by itself ('use_cpu: true' prevents that).",
    "group_by_length": "Use 'train_sampling_strategy: group_by_length'.",
    "per_gpu_train_batch_size": "It is called 'per_device_train_batch_size' now.",
    "per_gpu_eval_batch_size": "It is called 'per_device_eval_batch_size' now.",
    "overwrite_output_dir": "Remove it: the same command resumes, --restart starts over.",
    "logging_dir": "Set the environment variable TENSORBOARD_LOGGING_DIR.",
    "save_safetensors": "Remove it: models are always saved as safetensors.",
    "include_inputs_for_metrics": "Use 'include_for_metrics: [inputs]'.",
    "include_tokens_per_second": "Remove it: tokens per second are always logged.",
    "fp16_backend": "Remove it: 'fp16' and 'bf16' say all.",
    "half_precision_backend": "Remove it: 'fp16' and 'bf16' say all.",
    "fp16_opt_level": "Remove it: 'fp16' and 'bf16' say all.",
    "push_to_hub_token": "Set the environment variable HF_TOKEN, or run `hf auth login`.",
    "push_to_hub_model_id": "The repository is named in the `hub:` section: hub: {repo_id: user/name}.",
    "push_to_hub_organization": "The repository is named in the `hub:` section: hub: {repo_id: user/name}.",
    "dispatch_batches": "Use 'accelerator_config: {dispatch_batches: ...}'.",
    "split_batches": "Use 'accelerator_config: {split_batches: ...}'.",
    "torchdynamo": "Use 'torch_compile_backend'.",
    "adafactor": "Use 'optim: adafactor'.",
    "fsdp_min_num_params": "Use 'fsdp_config: {min_num_params: ...}'.",
    "fsdp_transformer_layer_cls_to_wrap": "Use 'fsdp_config: {transformer_layer_cls_to_wrap: [...]}'.",
    **dict.fromkeys(("jit_mode_eval", "use_ipex", "sharded_ddp", "mp_parameters", "ray_scope"), "Remove it."),
    **dict.fromkeys(("tpu_num_cores", "past_index", "use_legacy_prediction_loop", "tpu_metrics_debug"), "Remove it."),
}
FOREIGN = {
    **dict.fromkeys(("lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "max_epochs"), "num_train_epochs"),
    **dict.fromkeys(("batch_size", "train_batch_size", "micro_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("eval_batch_size",), "per_device_eval_batch_size"),
    **dict.fromkeys(("steps", "max_iters"), "max_steps"),
    **dict.fromkeys(("max_tokens", "tokens_per_batch", "max_tokens_per_device"), "max_tokens_per_batch"),
    **dict.fromkeys(("optimizer",), "optim"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "lr_scheduler_type"),
    **dict.fromkeys(("grad_accumulation", "accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("grad_clip", "clip_grad_norm", "gradient_clip_val"), "max_grad_norm"),
}
BELONGS = {
    **dict.fromkeys(("max_length", "max_seq_length"), "data.max_length"),
    **dict.fromkeys(("max_train_samples", "max_eval_samples"), "data.splits, as in {train: 'train[:2000]'}"),
    **dict.fromkeys(("metrics", "compute_metrics"), "evaluation.metrics"),
    **dict.fromkeys(("temperature", "alpha", "lambda", "lmbda", "beta", "weight"), "an entry of objectives"),
}

AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    "max_tokens_per_batch": 1,
    **dict.fromkeys(("learning_rate", "num_train_epochs", "warmup_steps", "weight_decay", "max_grad_norm"), 0),
    **dict.fromkeys(("seed", "data_seed", "dataloader_num_workers"), 0),
    "max_steps": -1,  # Transformers' "as many as the epochs have"
}

# Types that differ from the annotation: `bf16: auto` is decided at run time, `fsdp: true` is documented only.
WIDER: dict[str, Any] = {"bf16": bool | Literal["auto"], "fsdp": bool | str | None}
# Arguments that `DistillationArguments` adds.
OWN: dict[str, Any] = {
    "padding_free": bool | Literal["auto"],
    "compile_loss": bool | Literal["auto"],
    "on_nan": Literal["stop", "skip", "rollback"],
    "max_tokens_per_batch": int | None,
}
# Help texts to replace Transformers', which name another default.
HELP = {
    "train_sampling_strategy": "Order of the train examples: 'group_by_length' (default in all tasks but "
    "text-generation), 'random', 'sequential' or 'batch_rebalance'."
}


@dataclass(frozen=True)
class Argument:
    """One training argument.

    Attributes:
        type: Its type as annotated; a `Literal` if Transformers accepts only certain words.
        help: One line: ours for arguments of `DistillationArguments` and in `HELP`, else Transformers'.
    """

    type: Any
    help: str


@cache
def training_arguments() -> dict[str, Argument]:
    """Return every argument of `DistillationArguments`. The first call imports Transformers' trainer (seconds)."""
    from hf_distill.training_args import DistillationArguments

    hints = get_type_hints(DistillationArguments)
    ours = {**attributes(DistillationArguments), **HELP}
    arguments = {}
    for item in fields(DistillationArguments):
        text = " ".join(str(item.metadata.get("help", "")).replace("%%", "%").split())
        kind = _accepted(item.name, hints[item.name], item.metadata.get("choices"))
        arguments[item.name] = Argument(kind, ours.get(item.name, text))
    return arguments


@cache
def argument_types() -> dict[str, Any]:
    """Return the type of every argument without importing Transformers; None if only an import can tell it."""
    declared = declarations()
    if not declared:
        return {name: argument.type for name, argument in training_arguments().items()}
    return {**{name: None if one is None else _accepted(name, *one) for name, one in declared.items()}, **OWN}


def _accepted(name: str, annotation: Any, choices: Iterable[str] | None) -> Any:
    """Return the type for checking a recipe's value; for an enumeration or for choices, a `Literal` of the words."""
    kind = {**WIDER, **OWN}.get(name, annotation)
    members = [enum for enum in get_args(kind) if isinstance(enum, type) and issubclass(enum, Enum)]
    words = [member.value for enum in members for member in enum] or choices
    if not words:
        return kind
    optional = (None,) if type(None) in get_args(kind) else ()
    return Literal.__getitem__((*words, *optional))


def belongs_in_training(key: str) -> bool:
    """Return whether a key that stands beside `training` is one of those inside it."""
    return key in argument_types() and key not in OWNED


def training_mistakes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key path and message of every mistake in a `training` mapping."""
    types = argument_types()
    for key, value in values.items():
        if key in OWNED:
            yield key, f"not set here: {OWNED[key]}"
        elif key not in types:
            yield key, _unknown(key, [name for name in types if name not in OWNED])
        else:
            yield from _value_mistakes(key, value, types[key] or training_arguments()[key].type)
    if values.get("fp16") is True and values.get("bf16") in (True, "auto"):
        yield "fp16", "fp16 and bf16 exclude each other. Keep one."
    if values.get("ignore_data_skip") is True:
        yield "ignore_data_skip", "shows a resumed run other examples than it would have seen. Leave it out."
    if values.get("train_sampling_strategy") == "batch_rebalance" and values.get("max_tokens_per_batch") is not None:
        yield "max_tokens_per_batch", "batch_rebalance chooses micro-batches by length too. Leave one of the two out."
    if values.get("padding_free") is True and values.get("torch_compile") is True:
        yield "padding_free", "true, but torch_compile would compile anew for every shape. Leave one of the two out."


def _unknown(key: str, known: list[str]) -> str:
    if told := former_name(key, known) or glued_key(key):
        return f"unknown key. {told}"
    if key in RENAMED:
        return f"unknown to Transformers 5. {RENAMED[key]}"
    if key in FOREIGN:
        return f"unknown key. It is called '{FOREIGN[key]}'."
    if key in BELONGS:
        return f"not set here: it belongs in {BELONGS[key]}."
    # Not `did_you_mean`, which would list more than a hundred names.
    close = get_close_matches(key, known, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "Names are those of transformers.TrainingArguments."
    return f"unknown key. {hint}"


def _value_mistakes(key: str, value: Any, kind: Any) -> Iterator[tuple[str, str]]:
    try:
        # As JSON, since pydantic's strict mode then takes a list for a tuple, but still no text for a number.
        TypeAdapter(kind, config=CONFIG).validate_json(json.dumps(value))
    except ValidationError as error:
        yield from explain(error, value, key)
        return
    if key in AT_LEAST and value is not None and value < AT_LEAST[key]:
        yield key, f"wanted a number of at least {AT_LEAST[key]}, found {value}."
    if key in FIXED and value != FIXED[key][0]:
        yield key, f"cannot be {json.dumps(value)}: {FIXED[key][1]} Remove the key."
