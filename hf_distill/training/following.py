"""A source of targets that follows the student: told of every optimizer step that was taken."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_distill.errors import UserError
from hf_distill.training.sharded import saves_itself


def check_following(trainer: Any) -> None:
    """Refuse what a source that follows the student does not go with.

    Raises:
        UserError: The student is made later, or is spread over processes.
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
    """Tells the source of targets of every step; not of those that were left out (`on_nan`, a loss scale).

    Args:
        trainer: Whose source it is.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._skipped = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow the student."""
        trainer = self._trainer
        left_out = trainer.skipped != self._skipped or trainer.accelerator.optimizer_step_was_skipped
        self._skipped = trainer.skipped
        if trainer.source is not None and not left_out:
            trainer.source.after_step(trainer.model, state.global_step)
