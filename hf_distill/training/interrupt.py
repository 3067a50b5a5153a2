"""On Ctrl-C, SIGTERM or SIGUSR1 during training: finish the step, save a checkpoint, stop, on all processes alike."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill import parallel
from hf_distill.errors import Stopped
from hf_distill.signals import SIGNALS, FirstSignal, is_free

# Message for each signal. Schedulers of clusters and containers send SIGTERM some time before SIGKILL.
_SAID = {
    "SIGINT": "\nSaving a checkpoint ... (Ctrl-C again to stop at once)",
    "SIGTERM": "\nTerminated (SIGTERM). Saving a checkpoint ...",
    "SIGUSR1": "\nTime is almost up (SIGUSR1). Saving a checkpoint ...",
}


class StopOnInterrupt(TrainerCallback):
    """Callback that saves a checkpoint and ends the training on a signal; a second one stops at once.

    Of several processes, one or all may get the signal, at different steps. Each step, `flags` are added to the counts
    that the processes sum anyway, and the sum is given to `agree`: all stop at the end of the same step.

    Attributes:
        agreed: Number of the signal for which all processes stop; None if there was none.
    """

    def __init__(self) -> None:
        self.agreed: int | None = None
        self._first = FirstSignal()
        self._previous: dict[int, Any] = {}
        self._sum: parallel.ReadLater | None = None
        self._said = False

    @property
    def signal(self) -> int | None:
        """Number of the signal that this process received; None if there was none."""
        return self._first.number

    @property
    def received(self) -> int | None:
        """Number of a signal that any process received, for which the training may not have stopped; else None.

        All processes must ask for it, after the training.
        """
        return next((one for one in parallel.from_all(self.signal) if one is not None), self.agreed)

    def __enter__(self) -> StopOnInterrupt:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            taken = filter(is_free, SIGNALS)
            self._previous = {number: signal.signal(number, self._note) for number in taken}
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Data loader workers inherit this handler and also get Ctrl-C. They continue until their work is done.
        if self._first.is_first(number):
            if parallel.started() == 1 or parallel.is_first():
                self._say(number)
        elif self._first.is_repeated(number):
            raise Stopped(number)

    def _say(self, number: int) -> None:
        if not self._said:
            with suppress(RuntimeError):  # the signal came while a line was being printed: Python refuses another
                print(_SAID[signal.Signals(number).name], file=sys.stderr, flush=True)
        self._said = True

    # ---- On which all processes agree ----

    def flags(self, like: Tensor) -> Tensor:
        """Return for each signal whether this process received it, `(signals,)`, as numbers of a tensor's type."""
        flags = like.new_zeros(len(SIGNALS))  # made there: a copy to the device would wait for all that it has to do
        if self.signal is not None:
            flags[SIGNALS.index(self.signal)] = 1
        return flags

    def agree(self, flags: Tensor) -> None:
        """Note the sum of the flags of all processes, which is read at the end of the step."""
        self._sum = parallel.ReadLater(flags)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end."""
        if self._sum is None:  # no processes that must agree
            self.agreed = self.signal
        else:
            flags = zip(SIGNALS, self._sum.read(), strict=True)
            self.agreed = next((number for number, told in flags if told), None)
        if self.agreed is None:
            return
        if parallel.is_first():
            self._say(self.agreed)
        control.should_save = True
        control.should_training_stop = True
        control.should_evaluate = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip logging, saving and evaluation: the epoch was interrupted, it did not end.

        The history then has the same entries as that of a run without an interruption.
        """
        if self.agreed is not None:
            control.should_save = control.should_evaluate = control.should_log = False
