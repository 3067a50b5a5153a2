"""The progress of one training: a bar that carries the loss and its terms, a line for each evaluation."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.report_text import count

# Said once at the end of a run, or of no use to somebody who watches.
_QUIET = ("runtime", "per_second", "preparation_time", "epoch")


class ProgressBar(ProgressCallback):
    """Transformers' bar with the logs in it instead of a dictionary printed at every logging step."""

    training_bar: Any

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar. In a log file it moves every so often, not many times a second."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            often = 0.1 if sys.stderr.isatty() else 15
            width = {"dynamic_ncols": True} if sys.stderr.isatty() else {"ncols": 120}
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, mininterval=often, **width)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show the bar of an evaluation where somebody can watch it."""
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
        """Put training logs into the bar and print evaluations above it."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown = {key: logs[key] for key in logs if key in ("loss", "agreement") or key.startswith("objective/")}
            speed = [f"{count(logs['tokens_per_second'])} tokens/s"] if "tokens_per_second" in logs else []
            self.training_bar.set_postfix_str("  ".join([summary(shown), *speed]), refresh=False)
        elif any(key.startswith("eval_") for key in logs):
            self.training_bar.write(f"epoch {logs.get('epoch', 0):.2f}  evaluation: {summary(logs)}", file=sys.stderr)


def summary(logs: dict[str, Any]) -> str:
    """Return logs as `loss 0.412  kl 0.233  labels 0.591`.

    >>> summary({"eval_loss": 0.41234, "eval_objective/kl": 0.2, "eval_runtime": 3.0, "epoch": 1.0})
    'loss 0.4123  kl 0.2'
    """
    names = {key: key.removeprefix("eval_").removeprefix("objective/") for key in logs}
    return "  ".join(
        f"{names[key]} {value:.4g}"
        for key, value in logs.items()
        if not key.endswith(_QUIET) and isinstance(value, float)
    )
