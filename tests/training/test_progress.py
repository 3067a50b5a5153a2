"""The progress of a training, as a terminal and a log file show it: `hf_distill/training/progress.py`."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_distill.training.progress import ProgressBar

NAMES = ("kl", "labels", "hidden", "attention", "similarity_preserving")
LOGS = {"loss": 0.41234, **{f"objective/{name}": 0.2331 for name in NAMES}, "agreement": 0.912, "learning_rate": 1e-5}
EVALUATED = {
    "eval_loss": 0.51,
    **{f"eval_objective/{name}": 0.3 for name in NAMES},
    "eval_accuracy": 0.83,
    "epoch": 1.0,
}

Lines = Callable[..., list[str]]


def _lines(*logs: dict[str, float], read: Callable[[], str], leaves_head: bool = False) -> list[str]:
    """Let a bar at step 150 of 3000 show these logs; return the lines that are left."""
    state = TrainerState(max_steps=3000, global_step=150)
    nothing: Any = (TrainingArguments("out", use_cpu=True), state, TrainerControl())
    bar = ProgressBar(leaves_head)
    bar.on_train_begin(*nothing)
    for one in logs:
        bar.on_log(*nothing, logs=one)
    bar.training_bar.refresh()
    shown = [line.rpartition("\r")[2].rstrip() for line in read().replace("\r\n", "\n").rstrip().split("\n")]
    bar.training_bar.close()
    return shown


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Logs -> what a terminal of so many columns shows."""
    controller, device = pty.openpty()
    with os.fdopen(device, "w") as stream:

        def show(*logs: dict[str, float], columns: int, leaves_head: bool = False) -> list[str]:
            fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            monkeypatch.setattr(sys, "stderr", stream)

            def read() -> str:
                stream.write("\0")  # what is written arrives in pieces
                stream.flush()
                found = b""
                while not found.endswith(b"\0"):
                    found += os.read(controller, 1 << 16)
                return found[:-1].decode()

            return _lines(*logs, read=read, leaves_head=leaves_head)

        yield show
    os.close(controller)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (50, "loss 0.4123]"),
        (80, "loss 0.4123  kl 0.2331  +5 more]"),
        (100, "loss 0.4123  kl 0.2331  labels 0.2331  +4 more]"),
        (200, "similarity_preserving 0.2331  agreement 0.912]"),
    ],
)
def test_no_term_is_cut_in_a_terminal(terminal: Lines, columns: int, shown: str) -> None:
    """With four objectives the line ended in `hidd`, on the 80 columns that a terminal has by default: not one of the
    numbers after the loss could be read, and the bracket that ends the line was gone."""
    *_, line = terminal(LOGS, columns=columns)
    assert "150/3000" in line
    assert line.endswith(shown)
    assert len(line) <= columns


def test_few_terms_are_shown_as_they_were(terminal: Lines) -> None:
    """What fits is shown whole: `+0 more` would be noise."""
    *_, line = terminal({"loss": 0.41234, "objective/kl": 0.2331}, columns=80)
    assert line.endswith("loss 0.4123  kl 0.2331]")


def test_the_speed_is_shown(terminal: Lines) -> None:
    """A run of hours is watched by its bar: a speed that has dropped by half should be seen there."""
    *_, line = terminal({"loss": 0.51234, "objective/kl": 0.2, "tokens_per_second": 5120.4}, columns=120)
    assert line.endswith("loss 0.5123  kl 0.2  5.1 K tokens/s]")


def test_an_evaluation_breaks_between_its_figures(terminal: Lines) -> None:
    """A terminal breaks a long line anywhere, also within the name of a metric."""
    *lines, bar = terminal(EVALUATED, columns=80)
    assert "150/3000" in bar
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    start = "epoch 1.00  evaluation: "
    assert [line[: len(start)].strip() for line in lines] == [start.strip(), *[""] * (len(lines) - 1)]
    shown = [figure for line in lines for figure in line[len(start) :].split("  ")]
    assert shown == ["loss 0.51", *(f"{name} 0.3" for name in NAMES), "accuracy 0.83"]


def test_answers_of_a_head_that_is_not_trained_are_told_apart(terminal: Lines) -> None:
    """An accuracy of 0.53 after an epoch on hidden states says nothing about them: the head is as random as before."""
    trained, head, bar = terminal(EVALUATED, LOGS, columns=300, leaves_head=True)
    assert trained == "epoch 1.00  evaluation: loss 0.51  " + "  ".join(f"{name} 0.3" for name in NAMES)
    assert head == "            of a head that is not trained here: accuracy 0.83"
    assert bar.endswith("similarity_preserving 0.2331]"), "no agreement with the teacher"


def test_a_log_file_has_every_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a file may be as long as it has to be; it was cut at 120 columns, and what is cut is lost."""
    path = tmp_path / "log.txt"
    with path.open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)

        def read() -> str:
            stream.flush()
            return path.read_bytes().decode()

        shown = _lines(EVALUATED, LOGS, read=read)
    assert "\r" not in path.read_bytes().decode(), "what is written next would stand behind the bar, on its line"
    _, evaluated, *_, line = shown
    assert line.endswith("similarity_preserving 0.2331  agreement 0.912]")
    assert evaluated.endswith("similarity_preserving 0.3  accuracy 0.83")
