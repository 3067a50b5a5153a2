"""Training arguments where a recipe says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

# A run must be resumable and have curves to show; Transformers' own defaults would do neither before step 500.
TRAINING_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.02,
}
# A teacher's fine-tuning takes everything from the recipe's training but how it learns.
_LEARNING = ("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler", "warmup", "weight_decay")
SAMPLING = "train_sampling_strategy"
GROUPED = "group_by_length"


def training_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the training arguments of a run that its recipe need not give.

    Batches hold examples of like length where the task says that they differ: a batch is as wide as its longest
    example. Not where objectives compare the examples of a batch with each other: which ones are compared should not
    follow from their lengths.
    """
    grouped = recipe.task.groups_by_length and not within_batch(recipe)
    return {**TRAINING_DEFAULTS, **({SAMPLING: GROUPED} if grouped else {})}


def fine_tuning(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a teacher is first trained with: the run's, but for how it learns, and its own."""
    return {**{key: value for key, value in shared.items() if not key.startswith(_LEARNING)}, **own}


def within_batch(recipe: Recipe) -> list[str]:
    """Return the names of the objectives that compare the examples of a batch with each other."""
    return list(dict.fromkeys(one.name for stage in recipe.plan for one in stage.objectives if one.within_batch))


def sampling_remark(recipe: Recipe) -> str | None:
    """Return what to say about the order of the examples; None where the recipe says it or nothing is to be said."""
    silent = any(SAMPLING not in {**recipe.training, **stage.training} for stage in recipe.plan)
    if not silent or not recipe.task.groups_by_length:
        return None
    if names := within_batch(recipe):
        return (
            f"batches hold examples of any length ({SAMPLING}: random, though {GROUPED} is the default in "
            f"{recipe.task.name}), so that {', '.join(names)} can compare them"
        )
    return f"batches hold examples of like length ({SAMPLING}: random mixes them)"
