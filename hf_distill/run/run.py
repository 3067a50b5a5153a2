"""The stages of a run that is open: teacher, its answers, student, baseline. `distill.py` puts them in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.cache.cache import default_root
from hf_distill.cache.hub import fetch
from hf_distill.component import entry
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.lock import FILE as LOCK
from hf_distill.files.lock import Lock
from hf_distill.files.ownership import RUNS, TEACHERS, TRAINING
from hf_distill.models.pair import Pair
from hf_distill.models.quantization import in_words, size, weights
from hf_distill.models.tokenizers import tokenizer_state
from hf_distill.objectives import Labels
from hf_distill.report import costs
from hf_distill.report.text import count
from hf_distill.run.console import Narrator
from hf_distill.run.directory import RunDirectory
from hf_distill.run.fit import Fitted, Fitter
from hf_distill.run.training_defaults import fine_tuning, resolve_bf16
from hf_distill.students.freezing import freeze
from hf_distill.teachers import CachedTeacher
from hf_distill.training.labelled import as_long_as, label_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.cache.cache import Cache
    from hf_distill.cache.replay import Replay
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared
    from hf_distill.training_args import DistillationArguments

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        recipe: What was asked for.
        training: Its training arguments with defaults, precision and device settled.
        directory: Where it writes.
        pair: Its models before their weights.
        prepared: Its data.
        fitter: Trains models on it.
        narrator: Tells the user what is going on.
        hub: Arguments that let the student's trainer push.
        args: Built once, for what it knows about processes.
        seconds: Of each stage and training.
        histories: Name of a training -> its `log_history`.
        answers_repository: Where its answers are published.
        cache: Its answers, where they are kept.
        replayed: What students are then trained with; from the beginning where the teacher is given as data.
        layers: Name of a training -> objective -> the pairs of layers it compared.
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
    answers_repository: str = ""
    cache: Cache | None = None
    replayed: tuple[Fitter, Replay] | None = None
    layers: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.args.process_index == 0)

    @property
    def seeds(self) -> range:
        """Seeds of the students, the saved one's first."""
        return range(self.args.seed, self.args.seed + self.recipe.report.seeds)

    @contextmanager
    def stage(self, name: str, of: int = 1) -> Iterator[None]:
        """Announce a part of the run and take its time.

        Args:
            name: Such as `"report"`, or `"student stage 2"`.
            of: How many stages there are.
        """
        self.narrator.stage(name, of)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def load_teacher(self) -> PreTrainedModel:
        """Load the teacher, or train it first; of one that is given as data, return what replays its targets."""
        from transformers import set_seed

        if not self.recipe.teacher.has_model:
            assert self.replayed is not None
            given: Any = self.replayed[1]
            rows = len(self.prepared.train), len(self.prepared.eval)
            self.narrator.say(f"teacher: given as data, targets of {rows[0]:,} train rows and {rows[1]:,} eval rows")
            return given  # type: ignore[no-any-return]
        with self.stage("teacher"), self.recipe.locate("teacher"):
            set_seed(self.args.seed)  # for a new head: with another one a fine-tuned teacher would not be found again
            teacher = self.recipe.teacher.load(self.fitter.for_teacher().prepared.head, self.fine_tune)
        if "teacher training" not in self.seconds:
            name = self.recipe.teacher.source or self.recipe.teacher.name
            self.narrator.say(f"{name}: {count(size(teacher)[0])} parameters")
        if getattr(teacher, "is_quantized", False):
            parameters, held = size(teacher)
            self.narrator.say(
                f"the teacher's weights are {in_words(**weights(teacher))}: {held / 1e6:,.1f} MB instead of "
                f"{parameters * teacher.dtype.itemsize / 1e6:,.1f}. What is reported of it is measured so"
            )
        return teacher

    def cache_answers(self, teacher: PreTrainedModel) -> None:
        """Have a teacher that is to be cached answer all examples, or find its answers."""
        own = self.recipe.teacher
        if not isinstance(own, CachedTeacher):
            return
        from hf_distill.cache.hub import push

        with self.stage("cache"), self.recipe.locate("teacher"):
            self.cache = cache_of(self, teacher, own)
            self.cache.fill(self.args)
            if own.push and self.is_main:
                push(self.cache.path, self.answers_repository)
            prepared, replay = self.cache.apply(self.prepared)
            self.replayed = replace(self.fitter, prepared=prepared), replay

    def targets(self, teacher: PreTrainedModel) -> tuple[Fitter, Any]:
        """Return what trains and judges students against a teacher, and the teacher: itself, or what is kept of it."""
        return self.replayed or (self.fitter, teacher)

    def answering(self, teacher: PreTrainedModel) -> tuple[Fitter, Any]:
        """Return what judges the teacher, and the teacher: itself, or its answers on the eval split, if kept whole."""
        if self.replayed is None or not self.replayed[1].gives_outputs:
            return self.fitter.for_teacher(), teacher
        fitter, source = self.replayed
        source, collator = source.for_objectives((), None, fitter.prepared.collator)
        return replace(fitter, prepared=replace(fitter.prepared, collator=collator)), source

    def fine_tune(self, model: PreTrainedModel, training: dict[str, Any], directory: str | None) -> PreTrainedModel:
        """Train a teacher on the labels (see `teachers.base.FineTune`)."""
        if not self.prepared.labelled:
            raise UserError("the train split has no labels to fine-tune the teacher on. Name a fine-tuned model.")
        settings, _ = resolve_bf16(fine_tuning(self.training, training))
        root = Path(directory).expanduser() if directory else self.directory.path / TEACHERS
        # One folder for each combination: changing a setting never overwrites a teacher that took hours.
        fitter = self.fitter.for_teacher()
        key = fitter.key(model, None, (Labels(),), settings)
        with Lock(root / key) as lock:
            if directory:  # others may share it
                _check_own(root / key)
                lock.wait(self.narrator.say, "trains this teacher")
            fitted = fitter.fit(
                model, objectives=(Labels(),), training=settings, directory=root / key, say=self.narrator.say
            )
        self._remember("teacher", fitted)
        fitted.model.name_or_path = str(root / key)
        return fitted.model

    def train_student(self, teacher: PreTrainedModel, seed: int, *, baseline: bool = False) -> Fitted:
        """Make and train a student, stage by stage.

        The baseline is the same one, from the same start, through the same stages, on labels alone: on the rows that
        have one, for as many optimiser steps.
        """
        first = seed == self.args.seed
        saved = first and not baseline
        name = ("baseline" if baseline else "student") + ("" if first else f" seed {seed}")
        plan = self.recipe.plan
        student: PreTrainedModel | None = None
        for number, stage in enumerate(plan, 1):
            last = number == len(plan)
            part = name if len(plan) == 1 else f"{name} stage {number}"
            with self.stage(part, of=len(plan)):
                if student is None:
                    student = self._new_student(teacher, seed, warn=saved)
                fitter, target = (self.fitter, None) if baseline else self.targets(teacher)
                training = {**self.training, **stage.training, "seed": seed}
                objectives: tuple[Objective, ...] = stage.objectives
                if baseline:
                    objectives = (label_objective([*stage.objectives, *self._objectives]),)
                    training |= self._same_steps(self.histories[part.replace("baseline", "student", 1)], training)
                fitted = fitter.fit(
                    student,
                    objectives=objectives,
                    training={**training, **(self.hub if saved and last else {})},
                    directory=self.directory.path
                    if saved and last
                    else self.directory.path / RUNS / (name if last else part).replace(" ", "-"),
                    teacher=target,
                    say=self.narrator.say,
                    claim=self.directory.owned.take if saved and last else None,
                )
            self._remember(part, fitted)
            if not last:
                student = freeze(self.fitter.reopen(fitted), self.recipe.student.freeze)
        return fitted

    @property
    def _objectives(self) -> list[Objective]:
        return [objective for stage in self.recipe.plan for objective in stage.objectives]

    def _same_steps(self, student: list[dict[str, Any]], training: dict[str, Any]) -> dict[str, Any]:
        """Return what gives a baseline on fewer rows as many steps as its student; nothing where rows are the same."""
        if len(self.fitter.rows((Labels(),))) == len(self.prepared.train):
            return {}
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return as_long_as(student, training, judged=len(self.prepared.eval), batch=batch)

    def _new_student(self, teacher: PreTrainedModel, seed: int, *, warn: bool) -> PreTrainedModel:
        from transformers import set_seed

        set_seed(seed)
        with self.recipe.locate("student"):
            student = freeze(self.recipe.student.make(teacher, self.prepared.head), self.recipe.student.freeze)
        if warn and self.recipe.teacher.has_model:
            self._warn_if_larger(student, teacher)
        return student

    def _warn_if_larger(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        if student.num_parameters() > teacher.num_parameters() and self.is_main:
            logger.warning(
                "the student (%s parameters) is larger than its teacher (%s): this run will not make anything smaller",
                f"{student.num_parameters():,}",
                f"{teacher.num_parameters():,}",
            )

    def _remember(self, name: str, fitted: Fitted) -> None:
        self.histories[name] = fitted.history
        self.seconds[f"{name} training"] = fitted.seconds
        if fitted.layers:
            self.layers[name] = fitted.layers
        if fitted.reused:
            self.narrator.say(f"{name}: found finished, not trained again")
        elif cost := costs.cost_of(fitted.history):
            self.narrator.say(f"{name}: {costs.in_words(cost)}")


def _check_own(folder: Path) -> None:
    """Refuse a shared teacher's folder with files in it that no run wrote."""
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if entries and not entries & {TRAINING, LOCK}:
        raise UserError(
            f"{folder} holds files that are no teacher of a run. Choose another directory.", key="output_dir"
        )


def reading(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """Return what decides how the teacher reads an example, by the words of a refusal."""
    tokenizer = pair.teacher_tokenizer or pair.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer": fingerprint(tokenizer_state(tokenizer) or type(tokenizer).__name__),
        "chat template": None if template is None else fingerprint(template),
        "max_length": pair.max_length,
        "task": fingerprint(entry(recipe.task)),
        **({"tokens left out": fingerprint(pair.left_out)} if pair.left_out else {}),
    }


def cache_of(run: Run, teacher: PreTrainedModel, own: CachedTeacher) -> Cache:
    """Return the cache that belongs to a run, be it there or not.

    Args:
        run: Its data, objectives and processes.
        teacher: The model.
        own: The recipe's entry.
    """
    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept

    data = run.prepared.for_teacher or run.prepared
    every = [objective for stage in run.recipe.plan for objective in stage.objectives]
    kept = Kept.of(
        teacher,
        data.layout,
        top=own.top,
        tail=own.tail,
        temperature=own.temperature(every),
        precision=own.precision,
        states=own.states(every, run.pair),
        hidden_precision=own.hidden_precision,
    )
    reads = reading(run.recipe, run.pair)
    if own.repo_id is not None and not own.push:
        with run.args.main_process_first(desc="cache"):
            path = fetch(own.repo_id)
        return Cache(data, teacher, kept, reads, path, say=run.narrator.say, complete=True)
    path = default_root() if own.path is None else Path(own.path).expanduser()
    return Cache(data, teacher, kept, reads, path, own.path is not None, run.narrator.say)
