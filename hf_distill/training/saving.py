"""Saving and loading of checkpoints that hold what objectives learned, and of exports that hold the student alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.files.durable import checksums, move_into, sync_tree
from hf_distill.files.ownership import EXPORT
from hf_distill.files.records import read_record, write_record
from hf_distill.models import sharding
from hf_distill.models.sentence_encoder import load_dense
from hf_distill.models.sentence_files import at
from hf_distill.models.target_model import TargetSource
from hf_distill.training.checkpoints import damaged, seal, weights_fault
from hf_distill.training.learners import Learners
from hf_distill.training.rollouts import Rollouts
from hf_distill.training.running import Running
from hf_distill.training.sharded import (
    finished,
    gathered_state,
    is_held,
    loads_student,
    preparing,
    saves_itself,
    writes_shards,
)
from hf_distill.training.terms import Terms
from hf_distill.training.unpickling import only_values
from hf_distill.training.weighing import Weighing


class SavingTrainer(Trainer):
    """`Trainer` whose checkpoints hold what objectives learned, and whose exports hold the student alone.

    Attributes:
        terms: The loss terms. Subclasses set them.
        source: Gives the targets; None if there is no teacher. Subclasses set it.
        weighing: The weights of examples and groups. Subclasses set it.
        learners: Trains models of the source beside the student; None where none trains. Subclasses set it.
        running: What the training has added up since its last log. Subclasses set it.
        rollouts: Writes completions; None where they are in the data. Subclasses set it.
        has_model_card: Whether there is a model card that a push must not overwrite.
        key: Fingerprint of all that the training computes, stored in its checkpoints.
        claim: Called with names in the output directory before they are written; may raise an error.
        exported: Directory of the finished student, which a push does not write again.
    """

    model: PreTrainedModel
    terms: Terms
    source: TargetSource | None
    weighing: Weighing
    learners: Learners | None = None
    running: Running
    rollouts: Rollouts | None = None
    _rollouts_state: Mapping[str, Any] = {}
    has_model_card = False
    key = ""
    claim: Callable[[Iterable[str]], None] | None = None
    exported: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as `Trainer` does, but write no pickled arguments and no projections outside of checkpoints."""
        own, gathered = split_state(state_dict)
        with detached(self.model) if own is None else nullcontext():
            super()._save(output_dir, own)
        directory = Path(output_dir or self.args.output_dir or ".")
        if not self.args.should_save:
            return
        if directory.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            self._save_beside(directory, gathered or self.terms.learned.state_dict())
        else:
            (directory / "training_args.bin").unlink(missing_ok=True)

    def _save_beside(self, directory: Path, learned: Mapping[str, Tensor]) -> None:
        """Write into a checkpoint what a resumed training needs besides the student and its optimizer.

        Args:
            directory: The checkpoint.
            learned: What objectives learned; empty for nothing, or if it is stored with the student.
        """
        if learned:
            save_learned(directory, learned)
        self._save_targets(directory)
        self.weighing.save(directory)
        if self._rollouts_state:
            write_record(directory / ROLLOUTS, self._rollouts_state)
        if self.learners is not None and not self.args.save_only_model:
            self.learners.save(directory)

    def _save_targets(self, directory: Path) -> None:
        """Write the state of the source of targets (such as an EMA teacher's weights) into a checkpoint, if any."""
        state = {} if self.source is None else self.source.saved_state()
        if state:
            save_file({name: value.detach().cpu().clone() for name, value in state.items()}, directory / TARGETS)

    def load_targets(self, directory: Path) -> None:
        """Load the state of the source of targets from a checkpoint or a finished training, if it has any.

        Raises:
            UserError: The file is missing: the source would silently start again from the beginning.
        """
        if self.source is None or not self.source.saved_state():
            return
        if not (directory / TARGETS).exists():
            raise UserError(f"{directory} has no {TARGETS} with the state of the teacher. Start over.")
        self.source.load_saved_state(load_file(directory / TARGETS))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as `Trainer` does, and remove older checkpoints only once this one is on disk, with its checksums."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save and self.claim is not None:
            self.claim([folder.name])
        self._rollouts_state = {} if self.rollouts is None else self.rollouts.state()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if not self.args.save_only_model:
            self.running.save(folder)
        parallel.wait()
        if parallel.is_first_of_machine() and folder.is_dir():  # no machine can flush what another has written
            sync_tree(folder)
        parallel.wait()
        if self.args.should_save:
            seal(folder, self.key, parallel.processes())
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best)

    def export(self, directory: Path) -> dict[str, list[int | str]]:
        """Save the finished student and its tokenizer in a directory; no file there is ever incomplete.

        Returns:
            Size in bytes and sha256 of every file by name, in the process that writes; empty in the others.
        """
        if is_held(self):
            finished(self)
        staging, sums = directory / EXPORT, {}
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        parallel.wait()
        self.save_model(str(staging), _internal_call=True)
        parallel.wait()
        if self.args.should_save:
            (staging / "README.md").unlink(missing_ok=True)  # PEFT's: the model card is written with the report
            self._save_targets(staging)
            self._export_beside(staging)
            sync_tree(staging)
            sums = checksums(staging)
            names = sorted(entry.name for entry in staging.iterdir())
            if self.claim is not None:
                self.claim(names)
            move_into(directory, staging, names)
        self.exported = directory
        return sums

    def _export_beside(self, directory: Path) -> None:
        """Save the models that the source of targets exports, each with the tokenizer in a folder of its own."""
        for folder, model in ({} if self.source is None else self.source.exported).items():
            saved: Any = sharding.unwrapped(model, autocast=False)
            saved.save_pretrained(str(directory / folder))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(directory / folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does; write nothing for a push of an exported student.

        A process killed while writing the same files again would leave them incomplete.
        """
        if output_dir is None and self.exported is not None:
            return
        if not saves_itself(self):
            super().save_model(output_dir, _internal_call)
            return
        directory = Path(output_dir or self.args.output_dir or ".")
        if _internal_call and writes_shards(self) and directory.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            if self.args.should_save:
                directory.mkdir(parents=True, exist_ok=True)
                self._save_beside(directory, {})
            return
        # `Trainer` would write tied weights twice, and with SHARDED_STATE_DICT nothing.
        self._save(str(directory), gathered_state(self) if is_held(self) else None)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Return how many epochs, and steps of the next one, are done.

        Intervals given as shares of the training are converted to steps, since `Trainer` compares them with those of a
        checkpoint, which are in steps. After the last step of `max_steps` no epoch is left: `Trainer` would take one
        more step of the present epoch.
        """
        self.running.checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        names = ("logging_steps", "eval_steps", "save_steps")
        shares = {name: value for name in names if 0 < (value := getattr(self.args, name) or 0) < 1}
        for name, share in shares.items():
            setattr(self.args, name, math.ceil(max_steps * share))
        try:
            begun: tuple[int, int] = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        finally:
            # Restored: another training with these arguments may have another number of steps.
            for name, share in shares.items():
                setattr(self.args, name, share)
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else begun

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepare: Any = super()._prepare_for_training
        # The optimizer's state is loaded there; with FSDP and DeepSpeed the weights too.
        values = nullcontext() if resume_from_checkpoint is None else only_values(resume_from_checkpoint)
        with preparing(self), values:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with only_values(checkpoint):
                super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._learned_from(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_beside(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load as `Trainer` does; under DeepSpeed, which loads the student itself, also what is stored beside it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and loads_student(self):
            with self._learned_from(checkpoint):
                self._load_beside(Path(checkpoint))

    def _load_beside(self, checkpoint: Path) -> None:
        """Load the state of all that a checkpoint holds beside the student."""
        self.weighing.load(checkpoint)
        if self.rollouts is not None:
            self.rollouts.load_state(read_record(checkpoint / ROLLOUTS) or {})
        if self.learners is not None:
            self.learners.load(checkpoint)

    def _load_best_model(self) -> None:
        # In a hyperparameter search, every trial has a directory of its own.
        folder = Path(self._get_output_dir(getattr(self, "_trial", None)))
        best = folder / Path(str(self.state.best_model_checkpoint)).name
        # One process hashes it for all. `Trainer` would warn, and use the last model.
        if damage := parallel.asked_once(lambda: weights_fault(best) or damaged(best)):
            raise UserError(f"the best model of this training, {best}, cannot be loaded ({damage}). Start over.")
        self.state.best_model_checkpoint = str(best)  # the directory may have moved
        with self._learned_from(str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    @contextmanager
    def _learned_from(self, checkpoint: str) -> Iterator[None]:
        """Context manager around loading a student: also load what objectives learned, from its own file."""
        directory, learned = Path(checkpoint), self.terms.learned
        if not saves_itself(self) or (directory / FILE).exists():
            check_learned(directory, learned)
        with only_values(checkpoint), nullcontext() if saves_itself(self) else detached(self.model):
            yield
        self.load_targets(directory)
        if not saves_itself(self):
            load_learned(directory, learned)
            load_dense(self.model, at(checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `Trainer`'s model card, unless the run has already written one."""
        if not self.has_model_card:
            super().create_model_card(*args, **kwargs)


# Name of the student's submodule that holds what objectives learn, during training: the optimiser, DDP and FSDP must
# see these parameters.
ATTRIBUTE = "distillation"
FILE = "distillation.safetensors"
# State of the source of targets. With an underscore: a push leaves it out.
TARGETS = "_targets.safetensors"
# Completions that are used for several steps.
ROLLOUTS = "_rollouts.json"


def attach(student: nn.Module, learned: nn.ModuleDict) -> None:
    """Add `learned` to the student as a submodule, in place of an earlier one; `save_pretrained` does not save it."""
    detach(student)
    if learned:
        student.add_module(ATTRIBUTE, learned)
        hidden = {f"{ATTRIBUTE}.{name}" for name in learned.state_dict()}
        _ignore_on_save(student, lambda names: names | hidden)


def detach(student: nn.Module) -> None:
    """Remove what objectives learned from the student."""
    inner = getattr(student, "get_base_model", None)  # PEFT may have wrapped it after an earlier training
    for model in (student, inner() if inner else student):
        if ATTRIBUTE in model._modules:
            del model._modules[ATTRIBUTE]
            _ignore_on_save(model, lambda names: {name for name in names if not name.startswith(f"{ATTRIBUTE}.")})


@contextmanager
def detached(student: nn.Module) -> Iterator[None]:
    """Context manager: remove what objectives learned from the student, and add it again at the end of the block."""
    learned: Any = student._modules.get(ATTRIBUTE)
    detach(student)
    try:
        yield
    finally:
        if learned is not None:
            attach(student, learned)


def place(learned: nn.ModuleDict, student: nn.Module, device: torch.device) -> nn.ModuleDict:
    """Move what objectives learn to a device, in the student's dtype, since FSDP shards both together; return it."""
    # A quantized student also has parameters of integers.
    dtype = next((one.dtype for one in student.parameters() if one.is_floating_point()), torch.float32)
    return learned.to(device, dtype)


def _ignore_on_save(student: Any, change: Callable[[set[str]], set[str]]) -> None:
    student._keys_to_ignore_on_save = change(set(getattr(student, "_keys_to_ignore_on_save", None) or ()))


def split_state(state: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Split a state dict, gathered from several processes, into the student's own and what objectives learned."""
    if state is None:
        return None, {}
    prefix = f"{ATTRIBUTE}."
    own = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return own, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def save_learned(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what objectives learned into a checkpoint."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, checkpoint / FILE)


def check_learned(checkpoint: Path, learned: nn.ModuleDict) -> None:
    """Refuse a checkpoint of other objectives.

    Raises:
        UserError: Names or shapes of what they learned differ. Projections would silently start again in the middle of
            the training, or be lost.
    """
    file = checkpoint / FILE
    found = {name: value.shape for name, value in load_file(file).items()} if file.exists() else {}
    wanted = {name: sharding.shape(value) for name, value in learned.state_dict(keep_vars=True).items()}
    if found != wanted:
        raise UserError(
            f"{checkpoint} was made with other objectives: they learned {_names(found)}, and those of this training "
            f"learn {_names(wanted)}. Start over, or resume with the same objectives."
        )


def _names(tensors: Mapping[str, Any]) -> str:
    shown = [f"{name} {tuple(getattr(value, 'shape', value))}" for name, value in tensors.items()]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "") if shown else "nothing"


def load_learned(checkpoint: Path, learned: nn.ModuleDict) -> None:
    """Load what objectives learned from a checkpoint."""
    if learned:
        learned.load_state_dict(load_file(checkpoint / FILE))
