"""Ctrl-C during training, or a signal to end: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill import parallel

# What is said of each signal. SIGTERM comes from schedulers of clusters and containers, some time before SIGKILL.
_SAID = {
    signal.SIGINT: "\nSaving a checkpoint ... (Ctrl-C again to stop at once)",
    signal.SIGTERM: "\nTold to end (SIGTERM). Saving a checkpoint ...",
}


class StopOnInterrupt(TrainerCallback):
    """Turns Ctrl-C, or SIGTERM, into a checkpoint and an orderly end of the training; a second Ctrl-C stops at once.

    With several processes it does nothing: they would get the signal at different steps and wait for each other.

    Attributes:
        signal: Number of the signal that came; None while there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def interrupted(self) -> bool:
        """Whether there was a signal."""
        return self.signal is not None

    def __enter__(self) -> StopOnInterrupt:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread() and parallel.started() == 1:
            # A program that ignores or handles SIGTERM itself decided otherwise, and so did the shell that starts one
            # in the background, where Ctrl-C is meant for another.
            taken = []
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                taken.append(signal.SIGINT)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                taken.append(signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._note) for number in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number in [*self._previous]:
            self._release(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Processes that read data inherit this, and Ctrl-C reaches them too. They go on until their work is done.
        if self.interrupted or os.getpid() != self._process:
            return
        self.signal = number
        self._release(signal.SIGINT)
        print(_SAID[signal.Signals(number)], file=sys.stderr, flush=True)

    def _release(self, number: int) -> None:
        if number in self._previous:
            signal.signal(number, self._previous.pop(number))

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
