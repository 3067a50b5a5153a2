"""What ends a run from outside: Ctrl-C, SIGTERM of a scheduler, SIGUSR1 before a time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hf_distill import parallel
from hf_distill.errors import Stopped

# SLURM sends SIGUSR1 before a time limit if it is asked to (`--signal=USR1@120`). Windows does not have it.
BEFORE_LIMIT = getattr(signal, "SIGUSR1", None)
SIGNALS = tuple(one for one in (signal.SIGINT, signal.SIGTERM, BEFORE_LIMIT) if one is not None)

# Exit status after SIGUSR1: run the same command again. Unlike 128 + 10 it is not what a process has that could not
# handle the signal. HTCondor uses it for the same purpose.
AGAIN = 85

# A scheduler and a launcher may both send a signal for one and the same stop. What comes later is meant as a second.
SECONDS_OF_ONE_STOP = 5.0
SECONDS_OF_ONE_CTRL_C = 1.0


def status(number: int) -> int:
    """Return the exit status of a run that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 85 for SIGUSR1."""
    return AGAIN if number == BEFORE_LIMIT else 128 + number


class FirstSignal:
    """The signal that asked this process to stop, and whether one more means "at once".

    Attributes:
        number: Number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._process, self._parent = os.getpid(), os.getppid()
        self._since = 0.0

    def is_first(self, number: int) -> bool:
        """Note a signal; return whether it is the first in this process. Forked processes do not count."""
        if self.number is not None or os.getpid() != self._process:
            return False
        self.number, self._since = number, time.monotonic()
        return True

    def is_repeated(self, number: int) -> bool:
        """Return whether a further signal asks to stop at once: Ctrl-C, or the first one again, seconds later."""
        if self.number is None or os.getpid() != self._process:
            return False
        passed = time.monotonic() - self._since
        if number == signal.SIGINT:
            return passed >= SECONDS_OF_ONE_CTRL_C or not parallel.forwards_signals()
        # Once the launcher has ended, its processes get a SIGTERM for that.
        return number == self.number and passed >= SECONDS_OF_ONE_STOP and os.getppid() == self._parent


class _StopNow(FirstSignal):
    """Handler that raises `Stopped` for the first signal, and ends the process at once for a repeated one."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_first(number):
            raise Stopped(number)
        if self.is_repeated(number):
            os._exit(status(number))


def is_free(number: int) -> bool:
    """Return whether nobody but Python and this module handles a signal.

    A program may handle it itself, and a shell has its background jobs ignore Ctrl-C.
    """
    handler = signal.getsignal(number)
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, _StopNow)


@contextmanager
def stopping() -> Iterator[None]:
    """Context manager: within it, Ctrl-C, SIGTERM and SIGUSR1 raise `Stopped`; a repeated signal ends the process.

    During a training, `training.interrupt.StopOnInterrupt` handles them. Signals that the program handles itself are
    left alone, and so are all outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _StopNow()
    before = {number: signal.signal(number, handler) for number in SIGNALS if is_free(number)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _as_before() -> None:
    """Handle signals as Python does in a process that was forked off, such as one that reads data."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _StopNow):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_as_before)
