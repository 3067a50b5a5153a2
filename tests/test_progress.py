"""The progress bar of a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hf_distill.progress import ProgressBar


def test_the_bar_shows_loss_and_speed() -> None:
    """A run of hours is watched by its bar: a speed that has dropped by half should be seen there."""
    shown: list[str] = []
    bar = ProgressBar()
    bar.training_bar = SimpleNamespace(set_postfix_str=lambda text, refresh: shown.append(text))
    state: Any = SimpleNamespace(is_world_process_zero=True)
    logs = {"loss": 0.51234, "objective/kl": 0.2, "learning_rate": 1e-4, "tokens_per_second": 5120.4, "epoch": 1.0}
    bar.on_log(None, state, None, logs)  # type: ignore[arg-type]
    bar.on_log(None, state, None, {"loss": 0.5})  # type: ignore[arg-type]
    assert shown == ["loss 0.5123  kl 0.2  5.1 K tokens/s", "loss 0.5"]
