"""What a training has added up since its last log, in its checkpoints, so that a resumed one logs the same means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill import parallel


def file(checkpoint: Path) -> Path:
    """Return where a checkpoint holds the sums of this process. With an underscore: a push leaves it out."""
    return checkpoint / f"_running_{parallel.rank()}.safetensors"


class Running:
    """The running sums of a trainer, in one process.

    Args:
        trainer: The trainer; `running_sums` returns what it has added up itself, and `continue_sums` takes it.

    Attributes:
        checkpoint: The checkpoint from which the training resumes; None if it starts from the beginning.
        is_whole: Whether `Trainer`'s total of the loss is that of all steps, also those before a resume.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.checkpoint: Path | None = None
        self.is_whole = False

    def save(self, checkpoint: Path) -> None:
        """Write the sums into a checkpoint. Every process calls this."""
        trainer = self._trainer
        own = {
            "loss": trainer._tr_loss,
            "total_loss": torch.tensor(trainer._total_loss_scalar, dtype=torch.float64),
            "last_logged": torch.tensor(trainer._globalstep_last_logged),
        }
        every: dict[str, Tensor] = {**own, **trainer.running_sums()}
        save_file({name: one.detach().cpu().clone() for name, one in every.items()}, file(checkpoint))

    def begin(self) -> None:
        """Continue with the sums of the checkpoint; begin with 0 without one, or if an earlier version wrote it."""
        trainer = self._trainer
        self.is_whole = self.checkpoint is None
        if self.checkpoint is None or not file(self.checkpoint).exists():
            return
        found = load_file(file(self.checkpoint))
        trainer._tr_loss += found.pop("loss").to(trainer._tr_loss)
        trainer._total_loss_scalar = found.pop("total_loss").item()
        trainer._globalstep_last_logged = int(found.pop("last_logged"))
        trainer.continue_sums(found)
        self.is_whole = True


class ContinueSums(TrainerCallback):
    """Callback that continues the sums when a training begins, once `Trainer` has set its own to 0."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue with the sums of the checkpoint from which the training resumes."""
        self._running.begin()
