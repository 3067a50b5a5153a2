"""On Ctrl-C or SIGTERM during training: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill import parallel

# Message for each signal. Schedulers of clusters and containers send SIGTERM some time before SIGKILL.
_SAID = {
    signal.SIGINT: "\nSaving a checkpoint ... (Ctrl-C again to stop at once)",
    signal.SIGTERM: "\nTerminated (SIGTERM). Saving a checkpoint ...",
}


class StopOnInterrupt(TrainerCallback):
    """Callback that saves a checkpoint and ends the training on Ctrl-C or SIGTERM; a second Ctrl-C stops at once.

    With several processes it does nothing: they would get the signal at different steps and wait for each other.

    Attributes:
        signal: Number of the signal that was received; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def interrupted(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    def __enter__(self) -> StopOnInterrupt:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread() and parallel.started() == 1:
            # Leave alone what the program itself has set for SIGTERM, and the ignored Ctrl-C of a shell's background
            # job.
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
        # Data loader workers inherit this handler and also get Ctrl-C. They continue until their work is done.
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
        """Skip logging, saving and evaluation: the epoch was interrupted, it did not end.

        The history then has the same entries as that of a run without an interruption.
        """
        if self.interrupted:
            control.should_save = control.should_evaluate = control.should_log = False
