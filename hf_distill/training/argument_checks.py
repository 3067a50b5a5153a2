"""Checks that the objectives of a training work with its training arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.inspection import wrapper_of
from hf_distill.models.needs import Needs

if TYPE_CHECKING:
    from hf_distill.training.terms import Terms


def check_with_arguments(needs: Needs, training: Mapping[str, Any]) -> None:
    """Refuse an objective that does not work with the training arguments of a recipe.

    Args:
        needs: What the objective needs.
        training: The training arguments that the recipe gives.

    Raises:
        UserError: They do not work together; the message says what to change.
    """
    if needs.unit == "pair" and training.get("per_device_train_batch_size") == 1:
        raise UserError(
            f"'{needs.name}' compares the examples of a micro-batch with each other, and "
            "training.per_device_train_batch_size is 1: the loss would be 0 at every step. Use a larger batch size, "
            "or remove the objective."
        )
    if needs.looks_inside and training.get("padding_free") is True:
        raise UserError(
            f"'{needs.name}' looks into the models, and training.padding_free: true runs their layers without "
            "padding. Set padding_free to auto, or remove one of the two."
        )
    if needs.within_batch and training.get("max_tokens_per_batch") is not None:
        raise UserError(
            f"'{needs.name}' compares the examples of a micro-batch with each other, and with max_tokens_per_batch "
            "their lengths would decide which. Remove one of the two."
        )


def check_terms(terms: Terms, trainer: Any) -> None:
    """Refuse arguments that do not work with objectives that learn, look into the models or differentiate.

    Raises:
        ValueError: They do not work together; the message says what to leave out, or what to pass instead.
    """
    from hf_distill.training.sharded import deepspeed_stage, divides  # imports Trainer, which --check does not need

    args = trainer.args
    if terms.learned and trainer.optimizer is not None:
        raise ValueError(
            "an objective has parameters of its own to learn, and the trainer must create the optimizer together with "
            "them. Pass no `optimizers`."
        )
    if args.torch_compile and (terms.learned or terms.watch or terms.differentiates):
        raise UserError(
            "torch_compile does not work with objectives that learn projections, look into the models or "
            "differentiate. Leave one out."
        )
    looks = terms.watch or terms.differentiates
    if looks and trainer.teacher is not None and (wrapper := wrapper_of(trainer.teacher)) is not None:
        raise ValueError(
            f"an objective looks into the models, and the teacher is inside a {wrapper}. Pass the model itself."
        )
    checkpointing: Any = (args.gradient_checkpointing and args.gradient_checkpointing_kwargs) or {}
    if terms.watch and checkpointing.get("use_reentrant"):
        raise UserError(
            "re-entrant gradient checkpointing computes the layers without gradient, and objectives that look into "
            "the models would train nothing. Set use_reentrant: false in activation_checkpointing_kwargs (before "
            "Transformers 5.23 gradient_checkpointing_kwargs)."
        )
    if divides(trainer) and terms.differentiates:
        how = "DeepSpeed ZeRO-3" if deepspeed_stage(trainer) == 3 else "FSDP"
        raise ValueError(f"{how} does not work with objectives that differentiate. Use DDP, or leave them out.")
