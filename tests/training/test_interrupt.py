"""Signals during a training: `hf_distill/training/interrupt.py`. In a run: `test_run.py`."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_distill import signals
from hf_distill.signals import stopping
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


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGUSR1,), (signal.SIGTERM,) * 2])
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
        assert stop.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_processes_that_read_data_go_on() -> None:
    """Ctrl-C reaches the workers of a data loader too: each said that it saves a checkpoint."""
    with StopOnInterrupt() as stop:
        child = os.fork()
        if child == 0:
            _send(signal.SIGINT)
            os._exit(int(stop.signal is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_processes_that_forward_signals_count_as_one_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends Ctrl-C to `torchrun` and to its processes, and `torchrun` sends it once more: the second stopped
    the checkpoint that the first had asked for."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with StopOnInterrupt() as stop:
        _send(signal.SIGINT, signal.SIGINT)
    assert stop.signal == signal.SIGINT


def test_the_same_signal_seconds_later_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever types `kill` twice means it."""
    monkeypatch.setattr("hf_distill.signals.SECONDS_OF_ONE_STOP", 0.0)
    with pytest.raises(KeyboardInterrupt), StopOnInterrupt():
        _send(signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 85)])
def test_signals_between_trainings(number: int, status: int) -> None:
    """SIGTERM ended a run without a word while it evaluated, and SIGUSR1, which SLURM sends before a time limit, at any
    time."""
    with pytest.raises(KeyboardInterrupt) as stopped, stopping():
        _send(number, number)  # the second belongs to the first
    assert signals.status(stopped.value.signal) == status  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_processes_that_are_forked_off_handle_signals_as_usual() -> None:
    """A pool that prepares data ends its workers by SIGTERM: each would have raised an error, with a traceback."""
    with stopping():
        child = os.fork()
        if child == 0:
            _send(signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_signal_while_a_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a pipe that nobody reads at the moment, such as `tee` on a full disk: Python refuses to print in the handler
    then, and the error of that ended the training in place of a checkpoint."""
    source, sink = os.pipe()

    def signal_then_read() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        while os.read(source, 2**20):
            pass

    with open(sink, "w") as errors, StopOnInterrupt() as stop:
        monkeypatch.setattr("sys.stderr", errors)
        reader = threading.Thread(target=signal_then_read)
        reader.start()
        print("x" * 2**19, file=errors, flush=True)
        errors.close()
    reader.join()
    os.close(source)
    assert stop.signal == signal.SIGTERM
