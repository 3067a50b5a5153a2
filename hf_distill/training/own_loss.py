"""Stops a training whose overridden `compute_loss` never compares student and teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.errors import UserError


class ComparesModels(TrainerCallback):
    """Callback that stops a training before its first step if its loss was computed without the objectives.

    Args:
        compared: Returns whether `DistillationTrainer.compute_loss` was called since the training began.
    """

    def __init__(self, compared: Callable[[], bool]) -> None:
        self._compared = compared
        self._asked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check again in every training."""
        self._asked = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a first step without a call of `DistillationTrainer.compute_loss`.

        Raises:
            UserError: There was none; the message says how to add a loss.
        """
        if not self._asked and not self._compared():
            raise UserError(
                "compute_loss was overridden and never calls DistillationTrainer.compute_loss: the model would be "
                "trained without its teacher. Write the loss as an objective (docs/extending.md), or add to ours: "
                "loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) + ..."
            )
        self._asked = True
