"""Do the objectives of a training and its arguments go together?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.inspection import wrapper_of
from hf_distill.models.needs import Needs

if TYPE_CHECKING:
    from hf_distill.training.terms import Terms


def check_with_arguments(needs: Needs, training: Mapping[str, Any]) -> None:
    """Refuse an objective that the training arguments of a recipe do not go with.

    Args:
        needs: Of the objective.
        training: The arguments that the recipe gives.

    Raises:
        UserError: Says what to change.
    """
    if needs.unit == "pair" and training.get("per_device_train_batch_size") == 1:
        raise UserError(
            f"'{needs.name}' compares the examples of a micro-batch with each other, and "
            "training.per_device_train_batch_size is 1: it would be 0 at every step. Raise that, or leave it out."
        )
    if needs.looks_inside and training.get("padding_free") is True:
        raise UserError(
            f"'{needs.name}' looks into the models, and training.padding_free: true runs their layers without "
            "padding. Set that to auto, or leave one of the two out."
        )


def check_terms(terms: Terms, trainer: Any) -> None:
    """Refuse what objectives that learn, look into the models or differentiate do not go with.

    Raises:
        ValueError: Says what to leave out, or to pass instead.
    """
    from hf_distill.training.sharded import is_divided  # which takes Trainer with it, and --check needs none

    args = trainer.args
    given: tuple[Any, ...] = (trainer.model_init, trainer.optimizer)
    if terms.learned and any(one is not None for one in given):
        raise ValueError(
            "an objective here has parts of its own to learn, which the trainer must create together with the "
            "student and its optimizer. Pass `model`, not `model_init`, and no `optimizers`."
        )
    if args.torch_compile and (terms.learned or terms.watch or terms.differentiates):
        raise UserError(
            "torch_compile does not work with objectives that learn projections, look into the models or "
            "differentiate. Leave one out."
        )
    looks = terms.watch or terms.differentiates
    if looks and trainer.teacher is not None and (wrapper := wrapper_of(trainer.teacher)) is not None:
        raise ValueError(
            f"an objective here looks into the models, and the teacher is inside a {wrapper}. Pass the model itself."
        )
    checkpointing: Any = (args.gradient_checkpointing and args.gradient_checkpointing_kwargs) or {}
    if terms.watch and checkpointing.get("use_reentrant"):
        raise UserError(
            "re-entrant gradient checkpointing computes the layers without gradient, and objectives that look into "
            "the models would train nothing. Set use_reentrant: false in activation_checkpointing_kwargs (before "
            "Transformers 5.23 gradient_checkpointing_kwargs)."
        )
    if is_divided(trainer) and terms.differentiates:
        raise ValueError("FSDP does not work with objectives that differentiate. Use DDP, or leave them out.")
