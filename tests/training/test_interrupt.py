"""Signals during a training: `hf_distill/training/interrupt.py`. In a run: `test_run.py`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_distill.training.interrupt import StopOnInterrupt


def _send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # the handler runs between two steps of the interpreter


def _asked(stop: StopOnInterrupt) -> TrainerControl:
    nothing: Any = (TrainingArguments("out", use_cpu=True), TrainerState())
    control = TrainerControl(should_evaluate=True)
    stop.on_step_end(*nothing, control)
    return control


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM,) * 2])
def test_a_signal_asks_for_a_checkpoint_and_the_end(numbers: tuple[int, ...]) -> None:
    """A scheduler may send SIGTERM to launcher and run alike, and the end of the launcher sends one more: the second
    must not stop the checkpoint that is being saved."""
    with StopOnInterrupt() as stop:
        assert not _asked(stop).should_training_stop
        _send(*numbers)
        control = _asked(stop)
    assert stop.signal == numbers[0]
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)


def test_the_end_of_a_launcher_does_not_stop_what_ctrl_c_began() -> None:
    """Ctrl-C ends `accelerate launch` at once, which tells the run to end while it saves its checkpoint."""
    with StopOnInterrupt() as stop:
        _send(signal.SIGINT, signal.SIGTERM)
    assert stop.signal == signal.SIGINT


def test_a_second_ctrl_c_stops_at_once() -> None:
    """Whoever presses it twice does not want to wait for a step of minutes."""
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), StopOnInterrupt():
            _send(first, signal.SIGINT)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None])
def test_signals_are_given_back(handler: Any) -> None:
    """A program that handles SIGTERM itself, or trains in the middle of other work, must find all as it was."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with StopOnInterrupt():
            assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is not signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    """A shell ignores it for what it runs in the background: Ctrl-C, meant for the script in front, stopped a training
    that was to go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopOnInterrupt() as stop:
        _send(signal.SIGINT)
        assert not stop.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_processes_that_read_data_go_on() -> None:
    """Ctrl-C reaches the workers of a data loader too: each said that it saves a checkpoint."""
    with StopOnInterrupt() as stop:
        child = os.fork()
        if child == 0:
            _send(signal.SIGINT)
            os._exit(int(stop.interrupted))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_several_processes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stops a step before the others leaves them waiting for it for half an hour."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KeyboardInterrupt), StopOnInterrupt():
        _send(signal.SIGINT)
