"""The progress bar of one training: it shows the loss and its terms, and a line for each evaluation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Set
from typing import Any, TextIO

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.formatting import count, readable

# Ends of keys that are not shown: they are printed at the end of a run, or are of no use while it runs.
_QUIET = ("runtime", "per_second", "preparation_time", "epoch")
# Columns of the bar itself if there is little room; also a reserve for longer times and rates.
_BAR = 6
# tqdm cuts a line at its number of columns, but a line in a file may have any length.
_FILE = {"ncols": 10_000, "bar_format": "{l_bar}{bar:40}{r_bar}"}


# Of texts that the student writes: whether they lengthen, and how far it is from the teacher on them.
WRITTEN = ("own_reverse_kl", "completion_length")


class ProgressBar(ProgressCallback):
    """Transformers' progress bar with the logs inside, in place of a dictionary printed at every logging step.

    In a log file it is a line every 15 seconds.

    Args:
        leaves_head: Whether the head is not trained. The metrics of its predictions are then shown apart.
        arrival: Called with the share of the training that is done; returns when the whole run ends, or an empty text.
    """

    training_bar: Any

    def __init__(self, leaves_head: bool = False, arrival: Callable[[float], str] | None = None) -> None:
        super().__init__()
        self.leaves_head = leaves_head
        self.arrival = arrival

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar. In a log file it is updated every 15 seconds, in a terminal ten times a second."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            if self.training_bar is not None:  # of a training that has failed, and begins again at a checkpoint
                self.training_bar.close()
            often = 0.1 if sys.stderr.isatty() else 15
            width: dict[str, Any] = {"dynamic_ncols": True}
            if not sys.stderr.isatty():
                width = {**_FILE, "file": Lines(sys.stderr)}
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, mininterval=often, **width)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show the bar of an evaluation, in a terminal only."""
        if sys.stderr.isatty():
            super().on_prediction_step(*args, **kwargs)  # type: ignore[no-untyped-call]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show training logs in the bar, and print evaluations above it."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            known = ("loss",) if self.leaves_head else ("loss", "agreement")
            wanted = (*known, *WRITTEN)
            shown = {key: logs[key] for key in logs if key in wanted or key.startswith("objective/")}
            speed = [f"{count(logs['tokens_per_second'])} tokens/s"] if "tokens_per_second" in logs else []
            end = [self.arrival(state.global_step / max(state.max_steps, 1))] if self.arrival is not None else []
            parts = [*figures(shown), *filter(None, end), *speed]
            self.training_bar.set_postfix_str(fitting(parts, self._room()), refresh=False)
        elif any(key.startswith("eval_") for key in logs):
            minimised = {key for key in logs if key == "eval_loss" or key.startswith("eval_objective/")}
            said = minimised if self.leaves_head else {*logs}
            self._write(f"epoch {logs.get('epoch', 0):.2f}  evaluation: ", logs, said)
            self._write("            of a head that is not trained here: ", logs, logs.keys() - said)

    def _write(self, start: str, logs: dict[str, Any], keys: Set[str]) -> None:
        """Print the logs with these keys above the bar; nothing if there are none."""
        if parts := figures({key: value for key, value in logs.items() if key in keys}):
            self.training_bar.write(wrapped(start, parts, self._columns()), file=sys.stderr)

    def _columns(self) -> int | None:
        """Return the width of the terminal in columns; None without a terminal."""
        columns: int | None = self.training_bar.format_dict["ncols"] if sys.stderr.isatty() else None
        return columns

    def _room(self) -> int | None:
        """Return how many columns are left for the figures; None without a terminal."""
        columns = self._columns()
        if columns is None:
            return None
        without = {**self.training_bar.format_dict, "postfix": None, "bar_format": "{l_bar}{r_bar}"}
        return columns - len(self.training_bar.format_meter(**without)) - len(", ") - _BAR


class Lines:
    """A stream for a log file that writes each state of a progress bar as a line of its own.

    Args:
        stream: The log file.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None)

    def write(self, text: str) -> None:
        """Write a state of the bar as a line; ignore text that only moves the cursor."""
        if line := text.strip():
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the log file."""
        self._stream.flush()


def figures(logs: dict[str, Any]) -> list[str]:
    """Return the figures in logs that are worth showing, each with its name.

    >>> figures({"eval_loss": 0.41234, "eval_objective/kl": 0.2, "eval_runtime": 3.0, "epoch": 1.0})
    ['loss 0.4123', 'kl 0.2']
    """
    names = {key: readable(key.removeprefix("eval_").removeprefix("objective/"), limit=40) for key in logs}
    return [
        f"{names[key]} {f'{value:.4g}' if math.isfinite(value) else '-'}"
        for key, value in logs.items()
        if not key.endswith(_QUIET) and isinstance(value, float)
    ]


def fitting(parts: list[str], room: int | None) -> str:
    """Return as many figures as fit into `room` columns, at least the first, and how many are left out.

    >>> fitting(["loss 0.412", "kl 0.233", "labels 0.591"], 30), fitting(["loss 0.412", "kl 0.233"], None)
    ('loss 0.412  kl 0.233  +1 more', 'loss 0.412  kl 0.233')
    """
    for shown in range(len(parts), 0, -1):
        rest = [f"+{len(parts) - shown} more"] if shown < len(parts) else []
        text = "  ".join([*parts[:shown], *rest])
        if room is None or len(text) <= room:
            return text
    return "".join(parts[:1])


def wrapped(start: str, parts: list[str], columns: int | None) -> str:
    """Return figures in lines of fewer than `columns` columns, the later lines indented to the end of `start`.

    >>> print(wrapped("epoch 1: ", ["loss 0.412", "kl 0.233", "labels 0.591"], 30))
    epoch 1: loss 0.412  kl 0.233
             labels 0.591
    """
    lines = [start]
    for number, part in enumerate(parts):
        separator = "  " if number else ""
        if number and columns is not None and len(lines[-1] + separator + part) >= columns:
            lines.append(" " * len(start) + part)
        else:
            lines[-1] += separator + part
    return "\n".join(lines)
