"""Questions about a trainer whose model is sharded by FSDP or DeepSpeed: is it, what to call, who saves."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_distill import parallel


def engine(trainer: Trainer) -> str | None:
    """Return what shards the model, as `parallel.launched_engine` calls it; None for DDP, or one process."""
    if trainer.is_fsdp_enabled:
        return "FSDP"
    return "DeepSpeed" if trainer.is_deepspeed_enabled else None


def choose_wrapped_layers(trainer: Trainer) -> None:
    """Choose which layers FSDP2 shards one by one, where the policy is TRANSFORMER_BASED_WRAP and the user names none.

    These are the layers that Transformers does not split over devices (`_no_split_modules`), also of models inside the
    student. accelerate would take all of these classes; among them are BERT's embeddings, whose table it shards a
    second time on its own, and fails.
    """
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.transformer_cls_names_to_wrap is not None:
        return
    student: Any = trainer.model
    named = {name for one in student.modules() for name in getattr(type(one), "_no_split_modules", None) or ()}
    tables = {_embeddings(one) for one in student.modules() if isinstance(one, PreTrainedModel)} - {None}
    layers = {type(one).__name__ for one in student.modules() if type(one).__name__ in named}
    holders = {type(one).__name__ for one in student.modules() if tables & set(one.modules())}
    plugin.transformer_cls_names_to_wrap = sorted(layers - holders)


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # a model without a table, such as one of images
        return None


def is_divided(trainer: Trainer) -> bool:
    """Return whether every process holds a part of each weight (FSDP)."""
    return bool(trainer.is_fsdp_enabled)


def saves_itself(trainer: Trainer) -> bool:
    """Return whether FSDP or DeepSpeed saves and loads all weights, including what objectives learned."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def is_wrapped(trainer: Trainer, model: nn.Module, student: nn.Module) -> bool:
    """Return whether `model` wraps `student`, so that its forward pass does more than the student's own."""
    return model is not student or is_divided(trainer)  # FSDP2 wraps in place


def to_evaluate(trainer: Trainer) -> Any:
    """Return the module to call for a forward pass of the student outside of training."""
    return trainer.model_wrapped if is_divided(trainer) else trainer.model


def finished(trainer: Trainer) -> Any:
    """Return the trainer's model without accelerate's changes: its forward pass no longer runs under autocast.

    accelerate leaves its autocast wrapper on the model, so that a measurement in float32 would measure bf16. It also
    marks the model as prepared, and would then not wrap it again for an evaluation in the precision of its training.
    """
    wrapped: Any = trainer.model
    model = parallel.unwrapped(wrapped, autocast=False)
    if not is_divided(trainer):  # FSDP's sharding cannot be undone
        model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def deepspeed_stage(trainer: Trainer) -> int | None:
    """Return DeepSpeed's ZeRO stage; None without DeepSpeed."""
    return int(trainer.accelerator.state.deepspeed_plugin.zero_stage) if trainer.is_deepspeed_enabled else None


def deferring_sync(trainer: Trainer, model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context manager for a micro-batch after which gradients are not exchanged yet, as `Trainer` has it.

    DeepSpeed's engine knows by itself, from the flag that accelerate passes to its backward pass.
    """
    if trainer.is_deepspeed_enabled or trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False):
        return nullcontext()
    found: AbstractContextManager[Any] = trainer.accelerator.no_sync(model=model)
    return found


def has_loss_scale(trainer: Trainer) -> bool:
    """Return whether the loss is scaled (float16), by `fp16: true`, an own accelerator or `accelerate launch`."""
    return "fp16" in (trainer.args.mixed_precision, trainer.accelerator.mixed_precision)
