"""Trains one model in one directory: from the beginning, from its last checkpoint, or not at all if it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import entry
from hf_distill.data import by_length
from hf_distill.data.example_columns import GROUP
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.data.holdout import hold_out
from hf_distill.errors import Stopped, UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.ownership import TRAINING
from hf_distill.files.records import write_record
from hf_distill.metrics.table import AGREEMENT
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.target_model import as_source
from hf_distill.models.training_hooks import TrainingHooks
from hf_distill.objectives import Labels
from hf_distill.objectives.settled_groups import settle_group_weights
from hf_distill.run.checks import leaves_head
from hf_distill.run.found import Found, look
from hf_distill.run.trackers import EndWandbRun
from hf_distill.training.checkpoints import last_complete_checkpoint, remove_checkpoints
from hf_distill.training.class_weights import settle_class_weights
from hf_distill.training.deciding import deciding
from hf_distill.training.labelled import drawn_from

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from hf_distill.completions.section import Completions
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.base import View
    from hf_distill.tasks.evaluator import Predictions
    from hf_distill.trainer import DistillationTrainer


# Arguments of a trainer that only evaluates. No tracker hears of it: it would open a run of its own.
EVALUATES = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}


def print_nothing(_: str) -> None:
    """Ignore a line that a run would print."""


@dataclass(frozen=True)
class Fitted:
    """A trained model.

    Attributes:
        model: The model, in eval mode.
        trainer: The trainer that trained it (or would have), for a push.
        history: `log_history` of the training.
        seconds: Seconds of training, in all runs together.
        reused: Whether it was found finished, and not trained in this run.
        key: Fingerprint of everything that influences its weights (`Fitter.key`).
        layers: For each objective that compares layers, by name, the pairs `[student, teacher]`.
    """

    model: PreTrainedModel
    trainer: DistillationTrainer
    history: list[dict[str, Any]]
    seconds: float
    reused: bool
    key: str
    layers: dict[str, list[list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitter:
    """Trains and evaluates models on the same data.

    Attributes:
        prepared: The data.
        tokenizer: Saved with every model.
        teacher_tokenizer: The teacher's own tokenizer, if it has one.
        task: Settings of the task that differ from their defaults. Some, such as the share of masked tokens, change
            only the batches, not the data.
        arrival: Called with the share of a training that is done; returns when the run ends, or an empty text.
    """

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    arrival: Callable[[float], str] | None = None

    def for_teacher(self, view: View | None = None) -> Fitter:
        """Return the fitter for the teacher itself, whose data is in the tokens of the teacher's own tokenizer.

        Args:
            view: The data as it reads it, if it is one of several teachers with data of their own.
        """
        if view is not None:
            return Fitter(view.prepared, view.tokenizer, task=self.task, arrival=self.arrival)
        if self.prepared.for_teacher is None:
            return self
        own = self.teacher_tokenizer or self.tokenizer
        return Fitter(self.prepared.for_teacher, own, task=self.task, arrival=self.arrival)

    def on_labelled(self, rows: Callable[[int], Sequence[int]]) -> Fitter:
        """Return a fitter that trains on some of the rows with a label.

        Args:
            rows: Number of rows with a label -> those of them to train on, as indices.
        """
        return self.on(rows(len(self.rows((Labels(),)))), (Labels(),))

    def on(self, rows: Sequence[int], objectives: Sequence[Objective]) -> Fitter:
        """Return a fitter that trains on some rows.

        Args:
            rows: Those of them on which these objectives train, as indices.
            objectives: The objectives.
        """
        chosen = self.rows(objectives).select(rows)
        return replace(self, prepared=replace(self.prepared, train=chosen, transfer_rows=0))

    def holding_out(self, share: float) -> Fitter:
        """Return a fitter that evaluates on some of the rows with a label, and trains on the others.

        Args:
            share: Share of the rows with a label that are held out, or their number.

        Raises:
            UserError: Nothing would be left to train on, or to evaluate on.
        """
        labelled = self.rows((Labels(),))
        labels = "labels" if "labels" in labelled.column_names else None
        try:
            parts = hold_out(labelled, share, "input_ids", labels)
        except UserError as error:
            raise UserError(*error.mistakes, key="early_stopping.share") from error
        evaluator = self.prepared.evaluator.for_other_rows()
        data = replace(self.prepared, train=parts["train"], eval=by_length(parts["eval"]), evaluator=evaluator)
        return replace(self, prepared=data)

    def rows(self, objectives: Sequence[Objective]) -> Dataset:
        """Return the rows to train on: those with a label if the objectives learn from labels only, else all."""
        return drawn_from(self.prepared.train, objectives)

    def key(
        self,
        model: PreTrainedModel,
        teacher: nn.Module | None,
        objectives: Sequence[Objective],
        training: Mapping[str, Any],
        beside: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a fingerprint of everything that influences the trained weights: models, data, settings.

        Args:
            model: The model to train.
            teacher: Its teacher; None if there is none.
            objectives: The objectives.
            training: Training arguments.
            beside: Other settings that influence them, by name.
        """
        source = as_source(teacher)
        parts: dict[str, Any] = {
            "the weights of the model to train": model_fingerprint(model),
            "the targets or weights of the teacher": None if source is None else source.fingerprint(),
            "the rows of the data": [
                dataset_fingerprint(_own(split, objectives)) for split in (self.rows(objectives), self.prepared.eval)
            ],
            "the settings": [
                [entry(objective) for objective in objectives],
                deciding(training),
                *([dict(self.task)] if self.task else []),
                *([{"frozen": frozen}] if (frozen := _frozen(model)) else []),
                *([dict(beside)] if beside else []),
            ],
        }
        # On another machine a file of the same name may have other content.
        hashes = {name: fingerprint(part) for name, part in parts.items()}
        parallel.check_equal(hashes, "Give every machine the same files, or let them share a directory.")
        *first, settings = parts.values()
        return fingerprint(*first, *settings)

    def fit(
        self,
        model: PreTrainedModel,
        *,
        objectives: Sequence[Objective],
        training: Mapping[str, Any],
        directory: str | Path,
        teacher: nn.Module | None = None,
        say: Callable[[str], None] | None = None,
        claim: Callable[[Iterable[str]], None] | None = None,
        hooks: TrainingHooks | None = None,
        completions: Completions | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Fitted:
        """Return the trained model: trained in `directory`, or loaded from there if it was trained before.

        A finished training with the same models, data, objectives and settings is loaded. An interrupted one resumes
        from its last complete checkpoint, and ends with the same weights as without the interruption. A damaged one
        counts as interrupted.

        Args:
            model: The model to train.
            objectives: The objectives.
            training: Training arguments.
            directory: Directory of the training.
            teacher: The teacher, or another source of targets; None if there is none.
            say: Called with lines for the user: damage, and decisions before training such as which layers are paired.
            claim: Called with names in `directory` before they are written there.
            hooks: What happens around the training: adapters, masks, early stopping.
            completions: Who writes the completions; None if they are in the data.
            callbacks: Look at the student while it trains, unless its weights are divided among processes.

        Raises:
            UserError: The directory holds another training.
            Stopped: A signal ended the training; the same call resumes it from its checkpoint.
        """
        from transformers.trainer_utils import align_special_tokens

        from hf_distill.training.sharded import divides, saves_itself

        directory = Path(directory)
        hooks = hooks or TrainingHooks()
        writing = completions if completions is not None and completions.in_training else None
        beside = hooks.deciding() | ({} if writing is None else {"completions": writing.deciding()})
        key = self.key(model, teacher, objectives, training, beside)
        found = parallel.asked_once(lambda: look(directory, key, parallel.started()))
        say = say or print_nothing
        if found.finished:
            loaded = hooks.load(model, directory)
            # As in its training; stored adapters have no configuration that would tell.
            align_special_tokens(loaded, self.tokenizer)  # type: ignore[no-untyped-call]
            trainer = self.trainer(loaded, objectives, training, directory, teacher, trains=False)
            trainer.load_targets(directory)
            trainer.exported = directory
            if trainer.is_world_process_zero():
                remove_checkpoints(directory)
            record, layers = found.record, found.record.get("layers", {})
            return Fitted(
                finished_model(trainer),
                trainer,
                record["history"],
                record["seconds"],
                reused=True,
                key=key,
                layers=layers,
            )
        if found.damage is not None:
            again = f"from {found.checkpoint}" if found.checkpoint else "from the beginning"
            say(f"{directory} is damaged ({found.damage}): it is trained again {again}")
        whole = hooks.wrap(model)
        trainer = self.trainer(whole, objectives, training, directory, teacher, completions=writing)
        trainer.key, trainer.claim, trainer.stays_shared = key, claim, True
        if (refusal := hooks.sharded()) is not None and saves_itself(trainer):
            raise refusal
        for callback in (*hooks.callbacks(whole), *(() if divides(trainer) else callbacks), EndWandbRun()):
            trainer.add_callback(callback)
        if found.checkpoint is not None and found.damage is None:
            say(f"resuming from {found.checkpoint}")
        for text in (*hooks.in_words(whole), *self._left_out(objectives), *trainer.decisions):
            say(text)
        seconds = self._train(trainer, directory, found, hooks)
        layers = _layers(trainer)
        history = trainer.state.log_history
        return Fitted(finished_model(trainer), trainer, history, seconds, reused=False, key=key, layers=layers)

    def _left_out(self, objectives: Sequence[Objective]) -> list[str]:
        rows, every = len(self.rows(objectives)), len(self.prepared.train)
        return [] if rows == every else [f"on labels alone: batches from the {rows:,} of {every:,} rows with a label"]

    def _train(self, trainer: DistillationTrainer, directory: Path, found: Found, hooks: TrainingHooks) -> float:
        """Train or resume training, save the model, and return the seconds of training, including earlier runs."""
        from hf_distill.training.interrupt import StopOnInterrupt

        before = float(found.record.get("seconds", 0.0))
        # Without a record, no checkpoint here comes from an earlier version, which wrote none of the checksums.
        known = {"key": trainer.key, "sealed": not found.record or found.record.get("sealed", False)}
        _write_record(trainer, directory, {**known, "finished": False, "seconds": before, "history": []})
        if trainer.is_world_process_zero():
            remove_checkpoints(directory, keep=found.checkpoint)  # newer ones are incomplete or damaged
        interrupt = trainer.interrupt = StopOnInterrupt()
        trainer.add_callback(interrupt)
        started = time.perf_counter()
        with _naming_the_checkpoint(directory):
            with interrupt:
                trainer.train(resume_from_checkpoint=found.checkpoint)
            seconds = before + time.perf_counter() - started
            done = interrupt.agreed is None
            end: dict[str, Any] = {"finished": done, "seconds": seconds, "history": [], "layers": _layers(trainer)}
            if done:
                trainer.try_last()
                if hooks.wraps:
                    trainer.model = trainer.model_wrapped = hooks.unwrap(finished_model(trainer))
                    trainer.own_weights(trained_only=True)
                end |= {"history": trainer.state.log_history, "files": trainer.export(directory)}
        _write_record(trainer, directory, {**known, **end})
        if (stopped := interrupt.received) is not None:
            raise Stopped(stopped)
        if trainer.is_world_process_zero():
            remove_checkpoints(directory)
        return seconds

    def reopen(self, fitted: Fitted, hooks: TrainingHooks) -> PreTrainedModel:
        """Load a trained model from its directory for the next stage, and free the memory of its trainer.

        A run that finds the stage finished also loads the model from there, so that both continue from equal weights.
        """
        fitted.trainer.accelerator.free_memory()
        return hooks.load(fitted.model, Path(str(fitted.trainer.args.output_dir)))

    def predict(
        self,
        model: Any,
        training: Mapping[str, Any],
        teacher: nn.Module | None = None,
        whose: str = "",
    ) -> tuple[Predictions, float | None]:
        """Return a model's predictions on the eval split, and the share of rows where the teacher predicts the same.

        Args:
            model: The model; it is in eval mode afterwards.
            training: Training arguments, for batch size, precision and device.
            teacher: The teacher to compare with. Without one, and for regression, there is no agreement.
            whose: How messages call the model.

        Raises:
            NotFinite: A prediction is NaN or infinite.
        """
        from hf_distill.run.task_trainer import predictions_of

        quiet = {**training, **EVALUATES}
        trainer = self.trainer(model, (Labels(),), quiet, Path(training["output_dir"]), teacher, trains=False)
        trainer.whose = whose
        output = trainer.predict(self.prepared.eval)
        finished_model(trainer)
        found = replace(predictions_of(output), losses=trainer.eval_sums.examples("labels").numpy())
        return found, (output.metrics or {}).get(f"test_{AGREEMENT}")

    def sums(
        self,
        model: Any,
        rows: Dataset,
        objectives: Sequence[Objective],
        training: Mapping[str, Any],
        teacher: nn.Module | None,
        whose: str,
    ) -> dict[str, NDArray[np.float64]]:
        """Return, by objective, its sum over each row and the number of its unit there, `(rows, 2)`.

        Args:
            model: The model; it is in eval mode afterwards.
            rows: Tokenised rows.
            objectives: What to compute, each of another name.
            training: Training arguments, for batch size, precision and device.
            teacher: The teacher to compare with.
            whose: How messages call the model.

        Raises:
            NotFinite: A value is NaN or infinite.
        """
        quiet = {**training, **EVALUATES}
        trainer = self.trainer(model, objectives, quiet, Path(training["output_dir"]), teacher, trains=False)
        trainer.whose = whose
        trainer.args.prediction_loss_only = True
        trainer.predict(rows)
        finished_model(trainer)
        return {one.name: trainer.eval_sums.examples(one.name).numpy() for one in objectives}

    def trainer(
        self,
        model: PreTrainedModel,
        objectives: Sequence[Objective],
        training: Mapping[str, Any],
        directory: Path,
        teacher: nn.Module | None,
        *,
        trains: bool = True,
        completions: Completions | None = None,
    ) -> DistillationTrainer:
        """Return a trainer of a model on this data.

        Args:
            model: The model to train or evaluate.
            objectives: The objectives.
            training: Training arguments.
            directory: Its output directory, which it creates.
            teacher: The teacher; None if there is none.
            trains: Whether it has the train split; without it, only evaluations are possible.
            completions: Who writes the completions while the model trains; None if they are in the data.
        """
        from transformers import ProgressCallback

        from hf_distill.run.task_trainer import TaskTrainer
        from hf_distill.training.progress import ProgressBar
        from hf_distill.training_args import DistillationArguments

        rows = self.rows(objectives)
        trainer = TaskTrainer(
            self.prepared,
            model,
            DistillationArguments(**{**training, "output_dir": str(directory)}),
            teacher=teacher,
            objectives=settle_group_weights(
                settle_class_weights(objectives, self.prepared.layout, model, rows), self.prepared.train
            ),
            train_dataset=rows if trains else None,  # else objectives would choose layers by the data
            processing_class=self.tokenizer,
            completions=completions,
        )
        if trainer.pop_callback(ProgressCallback) is not None:  # None under disable_tqdm
            trainer.add_callback(ProgressBar(leaves_head(objectives, self.prepared.head.kind), self.arrival))
        return trainer


@contextmanager
def _naming_the_checkpoint(directory: Path) -> Iterator[None]:
    """Context manager: add to the message of a `NotFinite` from which checkpoint the training can resume."""
    from hf_distill.errors import NotFinite

    try:
        yield
    except NotFinite as error:
        checkpoint = last_complete_checkpoint(directory, hashed=False)  # by every process, at once
        rest = (
            f"The same command resumes from {checkpoint}, the last checkpoint, which is finite; run a changed recipe "
            "with --restart."
            if checkpoint
            else "Nothing was saved; run the changed recipe with --restart."
        )
        raise NotFinite(*(f"{line} {rest}" for line in error.mistakes), key=error.key) from None


def _frozen(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that are not trained."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def _own(split: Dataset, objectives: Sequence[Objective]) -> Dataset:
    """Return a split without the row of each example in a cache, and without groups unless an objective weighs them."""
    from hf_distill.models.target_model import ROW

    unread = (ROW,) if any(one.group_weights is not None for one in objectives) else (ROW, GROUP)
    return split.remove_columns([name for name in split.column_names if name in unread])


def _layers(trainer: DistillationTrainer) -> dict[str, list[list[int]]]:
    """Return, by name, the pairs of layers `[student, teacher]` of each objective that compares layers."""
    from hf_distill.objectives.feature_terms import FeatureTerm

    terms = zip(trainer.terms.names, trainer.terms, strict=True)
    return {name: [list(pair) for pair in term.pairs] for name, term in terms if isinstance(term, FeatureTerm)}


def finished_model(trainer: DistillationTrainer) -> PreTrainedModel:
    """Return the model as it was before the trainer, in eval mode, without what objectives learned."""
    from hf_distill.training.saving import detach
    from hf_distill.training.sharded import finished

    model: PreTrainedModel = finished(trainer)
    detach(model)
    model.train(False)
    return model


def _write_record(trainer: DistillationTrainer, directory: Path, record: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory / TRAINING, record)
    parallel.wait()
