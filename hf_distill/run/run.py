"""The stages of a run that is open: teacher, its targets, student, baseline. `distill.py` puts them in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill import parallel
from hf_distill.data import by_length
from hf_distill.errors import UserError
from hf_distill.files.lock import FILE as LOCK
from hf_distill.files.lock import Lock
from hf_distill.files.ownership import RUNS, TEACHERS, TRAINING
from hf_distill.files.shared import check_shared
from hf_distill.formatting import count, counted
from hf_distill.models.calibration import CalibrationRows
from hf_distill.models.pair import Pair
from hf_distill.models.quantization import describe_weights, size, weights
from hf_distill.models.target_model import as_source
from hf_distill.objectives import Labels
from hf_distill.report import costs
from hf_distill.run.arrival import Arrival
from hf_distill.run.console import Narrator
from hf_distill.run.directory import RunDirectory
from hf_distill.run.fit import Fitted, Fitter
from hf_distill.run.held_out import sample_texts
from hf_distill.run.trackers import run_name
from hf_distill.run.training_defaults import fine_tuning, resolve_bf16
from hf_distill.students.freezing import freeze
from hf_distill.teachers.base import FineTune, FineTuning, StoredTargets, Storing
from hf_distill.teachers.row_choice import held_out
from hf_distill.training.labelled import label_objective, same_steps

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hf_distill.models.target_model import TargetSource
    from hf_distill.models.training_hooks import TrainingHooks
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.scored import Scored
    from hf_distill.run.sure_rows import SureRows
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.base import View
    from hf_distill.trainer import DistillationTrainer
    from hf_distill.training_args import DistillationArguments

logger = logging.getLogger(__name__)


class PlannedTeacher(NamedTuple):
    """With what a teacher is fine-tuned, and where it is stored; the folder is named by the key of the training."""

    fitter: Fitter
    objectives: tuple[Objective, ...]
    training: dict[str, Any]
    directory: Path


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        recipe: The recipe.
        training: Its training arguments, with defaults, precision and device.
        directory: The output directory.
        pair: Configurations and tokenizers of teacher and student.
        prepared: The data.
        fitter: Trains and evaluates models on the data.
        narrator: Prints what the run does.
        hub: Training arguments that let the student's trainer push.
        args: The training arguments as an object, built once.
        seconds: Duration of each stage and training, by name.
        histories: `log_history` of each training, by name.
        targets_repository: Repository to which the teacher's stored targets are published; empty if they are not.
        cache: The teacher's targets as they are stored; None if they are not.
        stored: For students that train from stored targets: the fitter whose batches hold the targets, and their
            source. Set from the start if the teacher is given as data.
        sure: The rows from which students learn, if `data.pseudo_labels` leaves some out; else None.
        layers: For each training and objective, by name, the pairs of layers that were compared.
        trained: What the report says about the trainings of teachers, by name.
        made: What the report says about how the saved student was made.
        scored: The saved student's predictions on the eval split, once it was evaluated.
        eval_rows: Fingerprint of the rows on which models are evaluated.
        of_data: For a baseline that learns from the completions of the data, while students learn from those of the
            teacher: its fitter; else None.
        completions: What the report says about completions that were written before the training.
        teachers: Directory of the teachers that are fine-tuned, and the training arguments that they share. Default: in
            the directory of this run, and its own.
        baselines: Directory of the baselines, with a folder for each that is different, if several runs share them.
            Default: those of this run, by name in its directory.
        arrival: Its parts, and when it ends.
    """

    recipe: Recipe
    training: dict[str, Any]
    directory: RunDirectory
    pair: Pair
    prepared: Prepared
    fitter: Fitter
    narrator: Narrator
    hub: dict[str, Any]
    args: DistillationArguments
    seconds: dict[str, float] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    targets_repository: str = ""
    cache: StoredTargets | None = None
    stored: tuple[Fitter, TargetSource] | None = None
    sure: SureRows | None = None
    layers: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    scored: Scored | None = None
    eval_rows: str = ""
    of_data: Fitter | None = None
    completions: dict[str, Any] = field(default_factory=dict)
    teachers: tuple[Path, Mapping[str, Any]] | None = None
    baselines: Path | None = None
    arrival: Arrival = field(default_factory=Arrival)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return parallel.is_first()

    @property
    def seeds(self) -> range:
        """Seeds of the students; the first is that of the saved student."""
        return range(self.args.seed, self.args.seed + self.recipe.report.seeds)

    @property
    def trains_teacher(self) -> bool:
        """Whether a teacher was trained, or found trained, on rows that are not private."""
        return any(name.partition(" ")[0] == "teacher" for name in self.histories)

    @contextmanager
    def stage(self, name: str, of: int = 1) -> Iterator[None]:
        """Context manager: print the heading of a stage, and measure its duration.

        Args:
            name: Such as `"report"`, or `"student stage 2"`.
            of: Number of stages of training.
        """
        self.narrator.stage(name, of)
        self.arrival.begin(name)
        if left := self.arrival.in_words():
            self.narrator.say(left)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def load_teacher(self, fine_tune: FineTune | None = None) -> TargetSource:
        """Return the teacher, loaded or fine-tuned first; if it is given as data, the source of its targets.

        Args:
            fine_tune: Fine-tunes it; default: `self.fine_tune`.
        """
        from transformers import set_seed

        if self.stored is not None:
            rows = len(self.prepared.train), len(self.prepared.eval)
            self.narrator.say(
                f"teacher: given as data, targets of {counted(rows[0], 'train row')} and {counted(rows[1], 'eval row')}"
            )
            return self.stored[1]
        with self.stage("teacher"), self.recipe.locate("teacher"):
            set_seed(
                self.args.seed
            )  # a new head must be the same each time, or a fine-tuned teacher is not found again
            teacher = as_source(
                self.recipe.teacher.load_on(self.prepared, self.recipe.student, fine_tune or self.fine_tune)
            )
        assert teacher is not None
        if teacher.config is None:
            teacher.config = self.pair.teacher
        with self.recipe.locate("teacher"):
            teacher.read_by(self.prepared.layout, self.pair.tokenizer)
            teacher.settle(self.fitter.for_teacher().prepared.layout, self._label_loss)
        parameters = size(teacher.model)[0]
        if not self.trains_teacher and parameters:
            name = self.recipe.teacher.source or self.recipe.teacher.name
            self.narrator.say(f"{name}: {count(parameters)} parameters")
        for name, model in teacher.models.items():
            if getattr(model, "is_quantized", False):
                self._say_quantized(name, model)
        return teacher

    def _say_quantized(self, name: str, model: Any) -> None:
        parameters, held = size(model)
        self.narrator.say(
            f"the {name}'s weights are {describe_weights(**weights(model))}: {held / 1e6:,.1f} MB instead of "
            f"{parameters * model.dtype.itemsize / 1e6:,.1f}. The report evaluates it with these weights"
        )

    def store_targets(self, teacher: TargetSource) -> None:
        """Run a `cached` teacher on all examples and store its targets, or find them stored; else do nothing."""
        if not self.recipe.teacher.caches:
            return
        from hf_distill.cache.hub import push

        with self.stage("cache"), self.recipe.locate("teacher"):
            self.cache = self.targets_of(teacher)
            self.cache.fill(self.args)
            if self.targets_repository and self.is_main:
                push(self.cache.path, self.targets_repository)
            prepared, source = self.cache.apply(self.prepared)
            self.stored = replace(self.fitter, prepared=prepared), source

    def targets_of(self, teacher: TargetSource) -> StoredTargets:
        """Return the targets of a `cached` teacher, which may not be stored yet."""
        storing = Storing(
            self.prepared.for_targets, self.recipe.task, self._objectives, self.pair, self.args, self.narrator.say
        )
        return self.recipe.teacher.cache_for(teacher.model, storing)

    def for_students(self, teacher: TargetSource) -> tuple[Fitter, TargetSource]:
        """Return the fitter and the source of targets with which students are trained and evaluated."""
        fitter, source = self.stored or (self.fitter, teacher)
        return fitter if self.sure is None else self.sure.of(fitter), source

    def for_teacher(self, teacher: TargetSource) -> tuple[Fitter, Any]:
        """Return the fitter and the model with which the teacher itself is evaluated.

        If its complete outputs are stored, they are read from there, and the teacher does not run again.
        """
        # Outputs for the tokens of a student with a smaller vocabulary are not those for the teacher's own.
        stored = None if self.prepared.in_teacher_ids is not None else self.stored
        if stored is None or not stored[1].gives_outputs:
            fitter = self.fitter.for_teacher()
            return fitter, teacher.predicting(fitter.prepared.layout)
        fitter, source = stored
        source, collator = source.for_objectives((), None, fitter.prepared.collator)
        return replace(fitter, prepared=replace(fitter.prepared, collator=collator)), source.predicting(
            fitter.prepared.layout
        )

    def fine_tune(self, model: PreTrainedModel, how: FineTuning) -> PreTrainedModel:
        """Return a teacher fine-tuned on the run's data, or found fine-tuned (this is a `teachers.base.FineTune`).

        Args:
            model: The teacher, with a new head.
            how: Training arguments, rows, and where to store the result.
        """
        fitter, objectives, settings, directory = self.plan_fine_tuning(model, how)
        name = f"teacher {how.which}" if how.which else "teacher"
        settings["run_name"] = run_name(self.training, name)
        if how.which:
            self.narrator.heading(f"Teacher {how.which}, on {counted(len(fitter.prepared.train), 'row')}")
            self.arrival.begin(name)
        with Lock(directory) as lock:
            if how.directory:  # other runs may use it at the same time
                _check_own(directory)
                check_shared(directory.parent, "output_dir")
                lock.wait(self.narrator.say, "trains this teacher")
            fitted = fitter.fit(
                model, objectives=objectives, training=settings, directory=directory, say=self.narrator.say, hooks=how
            )
        if how.private:
            self._say_cost(f"teacher on {len(fitter.prepared.train):,} private rows", fitted)
        else:
            self._remember(name, fitted)
            if facts := how.facts(fitted.history, fitted.trainer.args, len(fitter.prepared.eval)):
                self.trained[f"training of the {name}"] = facts
        fitted.model.name_or_path = str(directory)
        return fitted.model

    def plan_fine_tuning(self, model: PreTrainedModel, how: FineTuning) -> PlannedTeacher:
        """Return with what a teacher is fine-tuned, and where it is stored. Writes nothing.

        Args:
            model: The teacher, with a new head.
            how: Training arguments, rows, and where to store the result.
        """
        objectives = tuple(how.objectives) or (Labels(),)
        own, shared = self.teachers or (self.directory.path / TEACHERS, self.training)
        root = Path(how.directory).expanduser() if how.directory else own
        fitter = self.fitter.for_teacher(how.view)
        if how.rows is not None:
            fitter = fitter.on_labelled(how.rows)
        if how.early_stopping is not None:
            fitter = fitter.holding_out(how.early_stopping.share)
        settings, _ = resolve_bf16(fine_tuning(self.recipe, shared, how, fitter.prepared.evaluator.in_training))
        # One folder for each combination of settings: a change never overwrites a teacher that took hours.
        key = fitter.key(model, None, objectives, settings, how.deciding())
        return PlannedTeacher(fitter, objectives, settings, root / key)

    def _label_loss(self, model: nn.Module, view: View | None = None) -> float:
        """Return the mean label loss of a teacher on labelled rows of the train split.

        If the run trains a teacher, these are the rows that are held out for it; else all.

        Args:
            model: The teacher.
            view: The data as it reads it, if it is one of several with data of their own.

        Raises:
            UserError: There are no labels, or too few.
        """
        fitter = self.fitter.for_teacher(view)
        rows = held_out if self.recipe.teacher.fine_tuning else range
        if not self.prepared.labelled:
            raise UserError("the train split has no labels by which to weigh the teachers.", key="weights")
        split = fitter.on_labelled(rows).prepared.train
        evaluator = fitter.prepared.evaluator.for_other_rows()
        fitter = replace(fitter, prepared=replace(fitter.prepared, eval=by_length(split), evaluator=evaluator))
        predictions, _ = fitter.predict(model, self.training, whose="a teacher")
        sums, counts = predictions.losses[:, 0], predictions.losses[:, 1]
        return float(sums[counts > 0].sum() / counts.sum())

    def train_student(self, teacher: TargetSource, seed: int, *, baseline: bool = False) -> Fitted:
        """Make a student, and train it stage by stage.

        The baseline is the same student, from the same initial weights and through the same stages, but trained on
        labels alone: on the rows with a label, for as many optimiser steps.
        """
        first = seed == self.args.seed
        saved = first and not baseline
        name = ("baseline" if baseline else "student") + ("" if first else f" seed {seed}")
        plan = self.recipe.plan
        if not baseline:
            teacher = teacher.for_seed(seed)
        student: PreTrainedModel | None = None
        for number, stage in enumerate(plan, 1):
            last = number == len(plan)
            part = name if len(plan) == 1 else f"{name} stage {number}"
            with self.stage(part, of=len(plan)):
                if student is None:
                    student = self._new_student(teacher, seed, saved=saved)
                fitter, target = (
                    (self.of_data or self.fitter, None) if baseline else self.for_students(teacher.for_training())
                )
                training = {**self.training, **stage.training, "seed": seed, "run_name": run_name(self.training, part)}
                objectives: tuple[Objective, ...] = stage.objectives
                if baseline:
                    objectives = (label_objective([*stage.objectives, *self._objectives]),)
                    training |= self._same_steps(self.histories[part.replace("baseline", "student", 1)], training)
                hooks = self._hooks(number)
                place = self.directory.path
                if baseline and self.baselines is not None:
                    place = self.baselines / fitter.key(student, None, objectives, training, hooks.deciding())
                elif not (saved and last):
                    place = place / RUNS / (name if last else part).replace(" ", "-")
                fitted = fitter.fit(
                    student,
                    objectives=objectives,
                    training={**training, **(self.hub if saved and last else {})},
                    directory=place,
                    teacher=target,
                    say=self.narrator.say,
                    claim=self.directory.owned.take if saved and last else None,
                    hooks=hooks,
                    completions=None if baseline else self.recipe.completions_in(stage),
                    callbacks=sample_texts(self.recipe, self.prepared, self.pair) if first and not baseline else (),
                )
            self._remember(part, fitted)
            if saved and last:
                self.made |= hooks.outcome(fitted.model)
            if not last:
                teacher = teacher.next_stage(fitted.trainer.source or teacher)
                student = freeze(self.fitter.reopen(fitted, hooks), self.recipe.student.freeze)
        return fitted

    def first_trainer(
        self,
        teacher: TargetSource,
        student: PreTrainedModel,
        directory: Path,
        training: Mapping[str, Any],
        rows: Sequence[int] | None = None,
    ) -> DistillationTrainer:
        """Return a trainer as the first stage of the saved student begins with, for looking at a run before it starts.

        Args:
            teacher: From `load_teacher`.
            student: From `new_student`; it is wrapped as for a training.
            directory: The trainer's output directory, which it creates.
            training: Training arguments in place of the recipe's.
            rows: Those that it trains on, as indices of its train split; None for all.
        """
        stage = self.recipe.plan[0]
        fitter, target = self.for_students(teacher.for_seed(self.args.seed).for_training())
        if rows is not None:
            fitter = fitter.on(rows, stage.objectives)
        completions = self.recipe.completions_in(stage)
        return fitter.trainer(
            self._hooks(1).wrap(student),
            stage.objectives,
            {**self.training, **stage.training, "seed": self.args.seed, **training},
            directory,
            target,
            completions=completions if completions.in_training else None,
        )

    def _hooks(self, number: int) -> TrainingHooks:
        """Return what happens around the training of a student's stage, counted from 1."""
        hooks = self.recipe.student.hooks(self.calibration, number)
        return hooks if number == len(self.recipe.plan) else hooks.goes_on()

    @property
    def _objectives(self) -> list[Objective]:
        return [objective for stage in self.recipe.plan for objective in stage.objectives]

    def _same_steps(self, student: list[dict[str, Any]], training: dict[str, Any]) -> dict[str, Any]:
        """Return arguments that give a baseline on fewer rows as many steps as its student; nothing for equal rows."""
        if len((self.of_data or self.fitter).rows((Labels(),))) == len(self.prepared.train):
            return {}
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * parallel.processes()
        return same_steps(student, training, eval_rows=len(self.prepared.eval), batch=batch)

    @property
    def calibration(self) -> CalibrationRows:
        """Rows of the train split on which the student is measured, without private ones."""
        data = self.prepared
        if self.stored is not None and self.recipe.teacher.keeps_private:
            data = self.stored[0].prepared  # without the private rows, which the student must not depend on
        return CalibrationRows(
            data.train,
            data.collator,
            self.args.per_device_eval_batch_size,
            data.labelled,
            data.layout,
            self.pair.cut,
        )

    def new_student(self, teacher: TargetSource, seed: int) -> PreTrainedModel:
        """Return a student as its training begins.

        Args:
            teacher: The teacher, which it may be copied from.
            seed: Of random weights.
        """
        return self._new_student(teacher, seed, saved=False)

    def _new_student(self, teacher: TargetSource, seed: int, *, saved: bool) -> PreTrainedModel:
        from transformers import set_seed

        set_seed(seed)
        with self.recipe.locate("student"):
            made = self.recipe.student.made(teacher.copied, self.prepared.head, self.calibration)
            student = freeze(made.model, self.recipe.student.freeze)
        if saved:
            self.made = dict(made.facts)
            self._warn_if_larger(student, size(teacher.model)[0])
        return student

    def _warn_if_larger(self, student: PreTrainedModel, parameters: int) -> None:
        if student.num_parameters() > parameters > 0 and self.is_main:
            logger.warning(
                "the student (%s parameters) is larger than its teacher (%s): this run will not make anything smaller",
                f"{student.num_parameters():,}",
                f"{parameters:,}",
            )

    def _remember(self, name: str, fitted: Fitted) -> None:
        self.histories[name] = fitted.history
        self.seconds[f"{name} training"] = fitted.seconds
        if fitted.layers:
            self.layers[name] = fitted.layers
        self._say_cost(name, fitted)

    def _say_cost(self, name: str, fitted: Fitted) -> None:
        if fitted.reused:
            self.narrator.say(f"{name}: found finished, not trained again")
        elif cost := costs.cost_of(fitted.history):
            self.narrator.say(f"{name}: {costs.describe_cost(cost)}")


def _check_own(folder: Path) -> None:
    """Refuse a folder for a shared teacher that holds files which no run wrote."""
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if entries and not entries & {TRAINING, LOCK}:
        raise UserError(
            f"{folder} holds files that do not belong to a teacher of a run. Choose another directory.",
            key="output_dir",
        )
