"""A subclass with a `compute_loss` of its own: does the comparison with the teacher still take place?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.errors import UserError


class ComparesModels(TrainerCallback):
    """Stops a training before its first step if its loss was made without the objectives.

    Args:
        compared: Whether `DistillationTrainer.compute_loss` ran since the training began.
    """

    def __init__(self, compared: Callable[[], bool]) -> None:
        self._compared = compared
        self._asked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask anew in every training."""
        self._asked = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a first step that compared nothing.

        Raises:
            UserError: Says how to add a loss.
        """
        if not self._asked and not self._compared():
            raise UserError(
                "compute_loss was overridden and never calls DistillationTrainer.compute_loss: the model would be "
                "trained without its teacher. Write the loss as an objective (docs/extending.md), or add to ours: "
                "loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) + ..."
            )
        self._asked = True
