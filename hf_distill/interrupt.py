"""Ctrl-C during training: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnInterrupt(TrainerCallback):
    """Turns the first Ctrl-C into a checkpoint and an orderly end of the training; the second one stops at once.

    With several processes it does nothing: they would get the signal at different steps and wait for each other.

    Attributes:
        interrupted: Whether there was a Ctrl-C.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def __enter__(self) -> None:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            self._previous = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._release()
        print("\nSaving a checkpoint ... (Ctrl-C again to stop at once)", file=sys.stderr, flush=True)

    def _release(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end."""
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The epoch did not end, it was left: no evaluation, and nothing in the history that a whole run has not."""
        if self.interrupted:
            control.should_save = control.should_evaluate = control.should_log = False
