"""A trainer that returns to its last checkpoint if a value is NaN or infinite (`on_nan: rollback`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from hf_distill import parallel
from hf_distill.errors import NotFinite
from hf_distill.files.records import read_record, write_record
from hf_distill.training.checkpoints import checkpoints, last_complete_checkpoint
from hf_distill.training.guarding import MOST_SKIPPED, GuardedTrainer

logger = logging.getLogger(__name__)

# Which steps are left out. With an underscore: a push leaves it out.
FILE = "_left_out.json"
# How often a training returns to the same checkpoint.
MOST_RETURNS = 3


@dataclass
class LeftOut:
    """The steps whose rows a training does not learn from, and how often it has returned to which checkpoint.

    Attributes:
        steps: Optimiser steps, from 1.
        returns: Step of a checkpoint -> how often the training has returned to it.
    """

    steps: set[int] = field(default_factory=set)
    returns: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> LeftOut:
        """Return what is recorded in the directory of a training; nothing is left out if there is no record."""
        record = read_record(directory / FILE) or {}
        return cls({*record.get("steps", ())}, {int(step): times for step, times in record.get("returns", {}).items()})

    def write(self, directory: Path) -> None:
        """Record it in the directory of a training."""
        write_record(directory / FILE, {"steps": sorted(self.steps), "returns": self.returns})

    def add(self, fault: int, checkpoint: int) -> set[int]:
        """Leave steps out after a fault; return those that are new.

        At first that is the step of the fault alone. If the training fails again after a return to the same checkpoint,
        the rows that spoil the weights come earlier: then it is all steps since the checkpoint.

        Args:
            fault: Step of the fault.
            checkpoint: Step of the checkpoint to which the training returns.
        """
        self.returns[checkpoint] = self.returns.get(checkpoint, 0) + 1
        first = fault if self.returns[checkpoint] == 1 else checkpoint + 1
        new = {*range(first, fault + 1)} - self.steps
        self.steps |= new
        return new


def _begun_with(directory: Path, *, resumes: bool) -> LeftOut:
    """Return what a training leaves out from the beginning; a new one forgets what is recorded of an earlier one."""
    if not resumes:
        (directory / FILE).unlink(missing_ok=True)
    return LeftOut.read(directory)


def lacking(args: TrainingArguments) -> str | None:
    """Return why a training could not return to a checkpoint with `on_nan: rollback`; None if it could, or never does.

    Args:
        args: Its arguments.
    """
    if getattr(args, "on_nan", "stop") != "rollback":
        return None
    none = "on_nan: rollback returns to the last checkpoint, and there would be none to continue from: "
    if args.save_strategy == SaveStrategy.NO:
        return f"{none}save_strategy is 'no'. Set it to steps or epoch."
    return f"{none}save_only_model leaves out the optimizer. Remove it." if args.save_only_model else None


class RollbackTrainer(GuardedTrainer):
    """`GuardedTrainer` that returns to the last checkpoint after a fault and leaves its rows out, if it is told to.

    The values of a step are checked as with `on_nan: stop`, so a step costs nothing more. After a fault the training
    resumes from its last complete checkpoint, and the step of the fault is passed over: neither weights nor moments of
    the optimizer change, and the schedule goes on. A resumed run passes over the same steps, and so ends with the same
    weights.

    Attributes:
        claim: Called with names in the output directory before they are written there.
        key: Fingerprint of the training; checkpoints of other trainings are not returned to.
    """

    claim: Callable[[Iterable[str]], None] | None
    key: str
    _left_out = LeftOut()
    # Names of the checkpoints of this training. The directory may hold those of an earlier one.
    _own: frozenset[str] = frozenset()

    @property
    def _rolls_back(self) -> bool:
        return getattr(self.args, "on_nan", "stop") == "rollback"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; with `on_nan: rollback`, return to the last checkpoint after a fault.

        Raises:
            NotFinite: There is no checkpoint, or the training fails again and again after the same one.
            ValueError: No checkpoint would be written from which it could continue.
        """
        self._left_out = LeftOut()
        if not self._rolls_back:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        if (why := lacking(self.args)) is not None:
            raise ValueError(why)
        directory = Path(str(self.args.output_dir))
        # Read in one process: a network file system may still show another machine what was there before.
        self._left_out = parallel.asked_once(lambda: _begun_with(directory, resumes=bool(resume_from_checkpoint)))
        newest = next(iter(checkpoints(directory)), None)  # which `Trainer` takes for True
        begun = newest if resume_from_checkpoint is True else resume_from_checkpoint
        self._own = frozenset({Path(begun).name} if begun else ())
        while True:
            self.fault = None
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except NotFinite as error:
                resume_from_checkpoint = self._return(directory, error)

    def _return(self, directory: Path, error: NotFinite) -> str:
        """Leave the rows of a fault out; return the checkpoint from which to continue.

        Args:
            directory: The directory of the training.
            error: What was found.

        Raises:
            NotFinite: There is none, or too much was left out already.
        """
        fault = self.fault
        if fault is None or fault.evaluation or (self._scales and fault.norm is not None):
            raise error
        key = self.key or None
        found = parallel.asked_once(
            lambda: last_complete_checkpoint(directory, key, sealed=key is not None, among=self._own)
        )
        if found is None:
            raise NotFinite(
                f"{error} on_nan: rollback found no checkpoint yet: save more often (save_steps)."
            ) from None
        begun = int(Path(found).name.rpartition("-")[2])
        new = self._left_out.add(fault.step, begun)
        before = self._left_out.returns[begun] - 1
        if not new or before >= MOST_RETURNS:
            raise NotFinite(
                f"{error} on_nan: rollback returned to {found} {before} times, and the training fails again."
            ) from None
        if len(self._left_out.steps) > MOST_SKIPPED * self.state.max_steps:
            raise NotFinite(
                f"{error} on_nan: rollback would leave out {len(self._left_out.steps)} of {self.state.max_steps} "
                f"steps, and gives up above {MOST_SKIPPED:.0%}."
            ) from None
        if self.args.should_save:
            if self.claim is not None:
                self.claim([FILE])
            self._left_out.write(directory)
        if self.is_world_process_zero():
            steps = f"step {fault.step}" if len(new) == 1 else f"steps {min(new)} to {fault.step}"
            logger.warning("%s Going back to %s; the rows of %s are left out (on_nan: rollback).", error, found, steps)
        parallel.wait()
        return found

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._own |= {f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"}

    # ---- Steps that are left out ----

    @property
    def _is_left_out(self) -> bool:
        """Whether the step that is being taken is left out."""
        return self.state.global_step + 1 in self._left_out.steps

    def _begin_step(self) -> None:
        """Store the running sums, if the step is left out; its values must not count as a fault."""
        if self._is_left_out:
            self.check_finite()
            self._before = [one.clone() for one in self._sums()]
        else:
            super()._begin_step()

    def _check_step(self, model: nn.Module) -> None:
        if self._is_left_out:
            self.watch.clear()
            self._leave_out(model)
        else:
            super()._check_step(model)
