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
    if trainer.source is None or not trainer.source.follows_student:
        return
    if trainer.model_init is not None:
        raise UserError("a teacher that follows the student needs it from the start: pass `model`, not `model_init`.")
    if saves_itself(trainer):
        raise UserError(
            "a teacher that follows the student needs all of its weights in every process, and FSDP and DeepSpeed "
            "divide them. Use DDP."
        )


class AfterStep(TrainerCallback):
    """Callback that updates the source of targets after each step, except skipped ones (`on_nan`, a loss scale).

    Args:
        trainer: The trainer with the source.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._skipped = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the source with the student's weights."""
        trainer = self._trainer
        left_out = trainer.skipped != self._skipped or trainer.accelerator.optimizer_step_was_skipped
        self._skipped = trainer.skipped
        if trainer.source is not None and not left_out:
            trainer.source.after_step(trainer.model, state.global_step)
