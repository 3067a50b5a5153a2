"""Sources of targets that follow the student, such as an EMA teacher: checks, and the update after each step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_distill.errors import UserError
from hf_distill.training.sharded import saves_itself


def check_following(trainer: Any) -> None:
    """Refuse a training that does not work with a source of targets that follows the student.

    Raises:
        UserError: The student is made only when training starts, or is sharded over processes.
    """
    source = trainer.source
    if source is None or not (source.follows_student or source.learners):
        return
    if trainer.model_init is not None:
        raise UserError("a teacher that follows the student needs it from the start: pass `model`, not `model_init`.")
    if saves_itself(trainer):
        raise UserError(
            "a teacher that follows the student needs all of its weights in every process, and FSDP and DeepSpeed "
            "divide them. Use DDP."
        )


class AfterStep(TrainerCallback):
    """Callback that updates the source of targets with each step, except skipped ones (`on_nan`, a loss scale).

    Args:
        trainer: The trainer with the source.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._skipped = 0
        self._left_out = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue the count of skipped steps, which a checkpoint may have."""
        self._skipped = self._trainer.skipped

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Separate weights that the teacher has too, if they were frozen before and are trained now."""
        self._trainer.own_weights(trained_only=True)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the models that train beside the student take the same step, with the learning rate of this step."""
        trainer = self._trainer
        self._left_out = trainer.skipped != self._skipped or trainer.accelerator.optimizer_step_was_skipped
        self._skipped = trainer.skipped
        if trainer.learners is not None:
            trainer.learners.step(left_out=self._left_out)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the source with the student's weights."""
        trainer = self._trainer
        if trainer.source is not None and not self._left_out:
            trainer.source.after_step(trainer.model, state.global_step)
