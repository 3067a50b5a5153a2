"""A trainer that holds frozen weights once, where student and teacher have the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_distill.models.adapters import WEIGHTS as ADAPTERS
from hf_distill.models.sharing import Shared, own, share_frozen
from hf_distill.training.saving import SavingTrainer
from hf_distill.training.sharded import saves_itself


class SharingTrainer(SavingTrainer):
    """`Trainer` that holds frozen weights of the student once, where the teacher has the same, while it trains.

    So a teacher that is the base of a student with adapters costs no memory of its own, nor do copied layers that are
    frozen. Nothing is written to these weights meanwhile: the optimizer changes no frozen ones, weights that are no
    longer frozen get a memory of their own before the next step, and so do all before a checkpoint with whole weights
    is loaded. At the end of the training they are two tensors again, so that whatever is done with one model afterwards
    leaves the other as it is.

    Attributes:
        shared: What is held once now.
        stays_shared: Whether they are still held once after the training, because nobody writes to them.
    """

    shared: Sequence[Shared] = ()
    stays_shared = False

    def share_weights(self) -> None:
        """Hold frozen weights once, if this trainer trains, its teacher does not change, and no weight is sharded."""
        source = self.source
        student: Any = self.model
        if student is None or source is None or source.follows_student or source.learners:
            return  # between the trials of a search for hyperparameters there is no student
        if self.train_dataset is not None and not saves_itself(self):
            self.shared = share_frozen(student, source.models.values())

    def own_weights(self, *, trained_only: bool = False) -> None:
        """Give the student's weights a memory of their own again.

        Args:
            trained_only: Only those that are no longer frozen.
        """
        own(one for one in self.shared if one.ours.requires_grad or not trained_only)
        self.shared = [one for one in self.shared if trained_only and not one.ours.requires_grad]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, with weights that are held once."""
        self.share_weights()
        try:
            return super().train(*args, **kwargs)
        finally:
            if not self.stays_shared:
                self.own_weights()

    @contextmanager
    def _learned_from(self, checkpoint: str) -> Iterator[None]:
        if not Path(checkpoint, ADAPTERS).exists():  # loading adapters writes to no frozen weight
            self.own_weights()
        with super()._learned_from(checkpoint):
            yield
        self.share_weights()
