"""A trainer whose model FSDP or DeepSpeed spreads over processes: what it calls, who saves, what is refused."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Trainer

from hf_distill import parallel


def is_divided(trainer: Trainer) -> bool:
    """Whether every process holds a part of each weight (FSDP)."""
    return bool(trainer.is_fsdp_enabled)


def saves_itself(trainer: Trainer) -> bool:
    """Whether FSDP or DeepSpeed saves and loads all weights, what objectives learned among them."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def is_wrapped(trainer: Trainer, model: nn.Module, student: nn.Module) -> bool:
    """Whether a forward pass of `model`, which is `student` or around it, does more than the student's own."""
    return model is not student or is_divided(trainer)  # FSDP2 wraps in place


def to_evaluate(trainer: Trainer) -> Any:
    """Return what to call for a forward pass of the student outside the training."""
    return trainer.model_wrapped if is_divided(trainer) else trainer.model


def finished(trainer: Trainer) -> Any:
    """Return the model as it was before the trainer, its forward pass no longer under autocast.

    accelerate leaves the wrapper on; whoever times the model in float32 would time bf16. It also remembers that it has
    prepared the model, and would not put it under autocast again to be evaluated, in the precision of its training.
    """
    wrapped: Any = trainer.model
    model = parallel.unwrapped(wrapped, autocast=False)
    if not is_divided(trainer):  # FSDP divides a model for good
        model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def deepspeed_stage(trainer: Trainer) -> int | None:
    """Return the ZeRO stage of DeepSpeed; None without DeepSpeed."""
    return int(trainer.accelerator.state.deepspeed_plugin.zero_stage) if trainer.is_deepspeed_enabled else None
