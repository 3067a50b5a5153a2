"""Checkpoints of a training that has more to keep than its student."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.training.learned import FILE, check_learned, detached, load_learned, save_learned, split_state
from hf_distill.training.terms import Terms


class SavingTrainer(Trainer):
    """`Trainer` whose checkpoints hold what objectives learned, and whose exports hold the student alone.

    Attributes:
        terms: The objectives made ready, set by who inherits.
        has_model_card: Whether whoever wrote the card wants a push to keep it.
    """

    model: PreTrainedModel
    terms: Terms
    has_model_card = False

    @property
    def _sharded(self) -> bool:
        """Whether weights are saved and loaded by FSDP or DeepSpeed, what was learned among them."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as `Trainer` does; what is exported (not a checkpoint) holds no pickled arguments and no projections."""
        own, gathered = split_state(state_dict)
        with nullcontext() if self._sharded else detached(self.model):
            super()._save(output_dir, own)
        directory = Path(output_dir or self.args.output_dir or ".")
        if not self.args.should_save:
            return
        if not directory.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            (directory / "training_args.bin").unlink(missing_ok=True)
        elif self.terms.learned:
            save_learned(directory, gathered or self.terms.learned.state_dict())

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Compare with a checkpoint's, as `Trainer` does, intervals in steps: a checkpoint never has a share."""
        names = ("logging_steps", "eval_steps", "save_steps")
        shares = {name: value for name in names if 0 < (value := getattr(self.args, name) or 0) < 1}
        for name, share in shares.items():
            setattr(self.args, name, math.ceil(max_steps * share))
        try:
            begun: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            # Another training with these arguments may have another length.
            for name, share in shares.items():
                setattr(self.args, name, share)
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._learned_from(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with self._learned_from(str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    @contextmanager
    def _learned_from(self, checkpoint: str) -> Iterator[None]:
        """Load what was learned from a checkpoint too, after the student, in whose file it would be missed."""
        directory, learned = Path(checkpoint), self.terms.learned
        if not self._sharded or (directory / FILE).exists():
            check_learned(directory, learned)
        with nullcontext() if self._sharded else detached(self.model):
            yield
        if not self._sharded:
            load_learned(directory, learned)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Draft a card, unless the run has already written one."""
        if not self.has_model_card:
            super().create_model_card(*args, **kwargs)
