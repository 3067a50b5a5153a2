"""Which training arguments influence the weights that a training ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# All others count, also those that a later Transformers adds: training twice is better than reusing the wrong model.
NEVER = frozenset(
    {
        # where a training writes, and what it logs
        *("output_dir", "run_name", "report_to", "project", "disable_tqdm", "log_level", "log_level_replica"),
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        # how it saves and evaluates
        *("save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint"),
        *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
        # where it is published
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
        # by which code the same numbers are computed
        "compile_loss",
    }
)
# Schedulers whose learning rate depends on the evaluations.
LISTENING = ("reduce_lr_on_plateau", "greedy")
_UNKNOWN = object()
# `DistillationArguments` has other defaults for these.
_OWN_DEFAULTS = ("greater_is_better", "use_cpu")
# They say when a training is evaluated and saved, which changes its weights only if evaluations influence them.
WHERE_EVALUATED = frozenset(
    {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps"}
)


def deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments that influence the final weights.

    The times of evaluation and saving are included with `load_best_model_at_end`, which chooses among the saved models
    by their evaluations, and with a learning rate that depends on evaluations (`reduce_lr_on_plateau`, `greedy`).
    An argument with its default value is left out: written or not, the training is the same.

    >>> deciding({"seed": 1, "eval_steps": 5, "output_dir": "out"})
    {'seed': 1}
    >>> deciding({"load_best_model_at_end": True, "eval_steps": 5, "output_dir": "out"})
    {'load_best_model_at_end': True, 'eval_steps': 5}
    >>> deciding({"seed": 42, "gradient_accumulation_steps": 1})
    {}
    """
    from transformers import TrainingArguments

    usual = {one.name: one.default for one in fields(TrainingArguments) if one.name not in _OWN_DEFAULTS}
    scheduler = str(getattr(training.get("lr_scheduler_type"), "value", training.get("lr_scheduler_type")))
    listens = bool(training.get("load_best_model_at_end")) or scheduler in LISTENING
    left_out = NEVER if listens else NEVER | WHERE_EVALUATED
    return {key: value for key, value in training.items() if key not in left_out and usual.get(key, _UNKNOWN) != value}
