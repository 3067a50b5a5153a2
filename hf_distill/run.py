"""`distill(recipe)`: the whole story of a run, top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils.logging import disable_progress_bar

from hf_distill.assess import Judged, agreement, class_figures, environment, judge, latencies
from hf_distill.data import load_splits
from hf_distill.directory import RUNS, TEACHERS, RunDirectory
from hf_distill.errors import UserError
from hf_distill.fit import Fitted, Fitter
from hf_distill.launch import check_launch, use_all_cores, use_cpu_if_needed
from hf_distill.narrator import Narrator
from hf_distill.objectives import Labels, Objective
from hf_distill.pairing import open_pair
from hf_distill.precision import resolve_bf16
from hf_distill.reader import dump_recipe
from hf_distill.report import ModelResult, Report, SeedResult
from hf_distill.terminal import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from hf_distill.recipe import Recipe
    from hf_distill.tasks import Prepared
    from hf_distill.training_args import DistillationArguments

logger = logging.getLogger(__name__)

# Where a recipe says nothing. A run must be resumable and have curves to show; Transformers' own defaults would do
# neither before step 500.
TRAINING_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.02,
}
# A teacher's fine-tuning takes everything from the recipe's training but how it learns.
_LEARNING = ("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler", "warmup", "weight_decay", "label_smoothing")


def distill(recipe: Recipe, *, restart: bool = False) -> Report:
    """Run a recipe: teacher, student, baseline, report, push.

    The same call again resumes an interrupted run and ends with the same weights; a finished one is only measured
    and reported again.

    Args:
        recipe: From `load_recipe`, or built in Python.
        restart: Start over in a directory that holds another or a finished run.

    Returns:
        The report, also written to `training.output_dir`.

    Raises:
        UserError: The recipe, its data or the way it was launched is at fault.
    """
    check_launch()
    # The bars of loading and saving shards say nothing; those of training stay.
    disable_progress_bar()
    run = _open(recipe, restart)
    with run.stage("teacher"), recipe.locate("teacher"):
        teacher = recipe.teacher.load(run.prepared.head, run.fine_tune)
    students: list[Fitted] = []
    baselines: list[Fitted] = []
    for seed in run.seeds:
        students.append(run.train_student(teacher, seed))
        if recipe.report.baseline:
            baselines.append(run.train_student(teacher, seed, baseline=True))
    with run.stage("report"):
        report = run.assess(teacher, students, baselines)
        if run.is_main:
            report.save(run.directory.path)
            run.directory.tidy()
    if recipe.hub.push:
        with run.stage("push"):
            students[0].trainer.has_model_card = True
            students[0].trainer.push_to_hub(commit_message="Distilled with hf_distill")
    if run.is_main:
        show(report, page=run.directory.path / "report.html")
    students[0].trainer.accelerator.wait_for_everyone()
    return report


def _open(recipe: Recipe, restart: bool) -> _Run:
    """Check everything that can be checked before a weight is loaded, then claim the output directory."""
    threads = use_all_cores()
    training, precision = resolve_bf16(use_cpu_if_needed({**TRAINING_DEFAULTS, **recipe.training}))
    directory = RunDirectory(Path(training["output_dir"]).expanduser(), dump_recipe(recipe))
    args = _arguments(recipe, training)
    # Again: some faults of a launch only show once the processes should have found each other.
    check_launch()
    with recipe.locate("training"):
        directory.check(restart)
    narrator = Narrator(enabled=args.process_index == 0)
    for line in filter(None, (threads, precision)):
        narrator.say(line)
    hub = _claim_repository(recipe, directory.path) if recipe.hub.push else {}
    pair = open_pair(recipe)
    with args.main_process_first(desc="data"), recipe.locate("data"):
        splits = load_splits(recipe.data, recipe.task.roles)
        prepared = recipe.task.prepare(
            splits,
            tokenizer=pair.tokenizer,
            teacher=pair.teacher_head,
            student=pair.student_head,
            max_length=pair.max_length,
            label_names=recipe.data.labels,
            metrics=recipe.evaluation.metrics,
        )
    _check_objectives(recipe, prepared)
    if args.process_index == 0:
        with recipe.locate("training"):
            directory.claim(restart)
    return _Run(recipe, training, directory, prepared, Fitter(prepared, pair.tokenizer), narrator, hub, args)


def _arguments(recipe: Recipe, training: Mapping[str, Any]) -> DistillationArguments:
    """Build the arguments once, which checks values against each other and starts the processes' group."""
    from hf_distill.training_args import DistillationArguments

    try:
        return DistillationArguments(**training)
    except (ValueError, TypeError) as error:
        raise recipe.mistake("training", " ".join(str(error).split())) from error


def _claim_repository(recipe: Recipe, directory: Path) -> dict[str, Any]:
    from hf_distill.hub import check_rights

    with recipe.locate("hub"):
        repository = check_rights(recipe.hub.repo_id, recipe.hub.private, str(directory))
    return {"push_to_hub": True, "hub_model_id": repository, "hub_private_repo": recipe.hub.private}


def _check_objectives(recipe: Recipe, prepared: Prepared) -> None:
    with recipe.locate(""):
        recipe.task.check(recipe.objectives, prepared)
    if recipe.report.baseline and not prepared.labelled:
        raise recipe.mistake(
            "report.baseline", "a baseline learns from labels, but the train split has none. Set it to false."
        )


@dataclass
class _Run:
    """What the stages of a run share.

    Attributes:
        recipe: What was asked for.
        training: Its training arguments with defaults, precision and device settled.
        directory: Where it writes.
        prepared: Its data.
        fitter: Trains models on it.
        narrator: Tells the user what is going on.
        hub: Arguments that let the student's trainer push.
        args: Built once, for what it knows about processes.
        seconds: Of each stage.
    """

    recipe: Recipe
    training: dict[str, Any]
    directory: RunDirectory
    prepared: Prepared
    fitter: Fitter
    narrator: Narrator
    hub: dict[str, Any]
    args: DistillationArguments
    seconds: dict[str, float] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        return self.args.process_index == 0

    @property
    def seeds(self) -> range:
        return range(self.args.seed, self.args.seed + self.recipe.report.seeds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a part of the run and take its time."""
        self.narrator.stage(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def fine_tune(
        self, model: PreTrainedModel, training: dict[str, Any], directory: str | None
    ) -> PreTrainedModel:
        """Train a teacher on the labels (see `teachers.base.FineTune`)."""
        if not self.prepared.labelled:
            raise UserError("the train split has no labels to fine-tune the teacher on. Name a fine-tuned model.")
        own = {key: value for key, value in self.training.items() if not key.startswith(_LEARNING)}
        settings = {**own, **training}
        root = Path(directory).expanduser() if directory else self.directory.path / TEACHERS
        # One folder for each combination: changing a setting never overwrites a teacher that took hours.
        key = self.fitter.key(model, None, (Labels(),), settings)
        fitted = self.fitter.fit(model, objectives=(Labels(),), training=settings, directory=root / key)
        self._remember("teacher", fitted)
        return fitted.model

    def train_student(self, teacher: PreTrainedModel, seed: int, *, baseline: bool = False) -> Fitted:
        """Make and train a student; the baseline is the same one, from the same start, on labels alone."""
        from transformers import set_seed

        first = seed == self.args.seed
        name = ("baseline" if baseline else "student") + ("" if first else f" seed {seed}")
        place = self.directory.path if first and not baseline else self.directory.path / RUNS / name.replace(" ", "-")
        with self.stage(name):
            set_seed(seed)
            with self.recipe.locate("student"):
                student = self.recipe.student.make(teacher, self.prepared.head)
            if first and not baseline:
                self._warn_if_larger(student, teacher)
            objectives: Sequence[Objective] = (Labels(),) if baseline else self.recipe.objectives
            fitted = self.fitter.fit(
                student,
                objectives=objectives,
                training={**self.training, "seed": seed, **(self.hub if first and not baseline else {})},
                directory=place,
                teacher=None if baseline else teacher,
            )
        self._remember(name, fitted)
        return fitted

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
        if fitted.reused:
            self.narrator.say(f"{name}: found finished, not trained again")

    def assess(self, teacher: PreTrainedModel, students: list[Fitted], baselines: list[Fitted]) -> Report:
        """Judge all models on the eval split and put the report together."""
        prepared = self.prepared
        columns = getattr(prepared.layout, "teacher_columns", None)
        judged = {"teacher": judge(self.fitter, teacher, self.training, columns)}
        models = {"teacher": teacher}
        for name, fitted in (("student", students), ("baseline", baselines)):
            if fitted:
                judged[name] = judge(self.fitter, fitted[0].model, self.training)
                models[name] = fitted[0].model
        agreements = {name: agreement(prepared, one, judged["teacher"]) for name, one in judged.items()}
        speeds = self._latencies(models) if self.recipe.report.latency else {}
        results = {
            name: ModelResult.of(model, self._metrics(judged[name], agreements[name]), speeds.get(name))
            for name, model in models.items()
        }
        seeds = self._seeds(students, baselines, judged["teacher"], results)
        metric = (*prepared.metric_names, "agreement")[0]
        return Report(
            task=self.recipe.task.name,
            metric=metric,
            greater_is_better=_greater_is_better(metric),
            teacher=results["teacher"],
            student=results["student"],
            baseline=results.get("baseline"),
            agreement=agreements["student"],
            baseline_agreement=agreements.get("baseline"),
            eval_rows=len(prepared.eval),
            gain_error=self._gain_error(judged, metric),
            seeds=seeds,
            history=self.histories,
            settings=self._settings(),
            recipe=self.directory.recipe,
            **class_figures(prepared, judged),
        )

    def _metrics(self, judged: Judged, agreement: float | None) -> dict[str, float]:
        """Return a model's metrics; where the eval split has no labels, agreement is all there is."""
        if self.prepared.metric_names or agreement is None:
            return judged.metrics
        return {"agreement": agreement}

    def _latencies(self, models: dict[str, PreTrainedModel]) -> dict[str, Any]:
        """Measure on the first process while the others wait, and tell them."""
        from accelerate.utils import broadcast_object_list

        measured: list[Any] = [None]
        if self.is_main:
            measured = [latencies(self.prepared, models, self.args.per_device_eval_batch_size)]
        if self.args.world_size > 1:
            broadcast_object_list(measured)
        found: dict[str, Any] = measured[0]
        return found

    def _seeds(
        self, students: list[Fitted], baselines: list[Fitted], teacher: Judged, results: Mapping[str, ModelResult]
    ) -> tuple[SeedResult, ...]:
        if len(students) < 2:
            return ()

        def metrics(fitted: Fitted, name: str, index: int) -> Mapping[str, float]:
            if index == 0:
                return results[name].metrics
            judged = judge(self.fitter, fitted.model, self.training)
            return self._metrics(judged, agreement(self.prepared, judged, teacher))

        return tuple(
            SeedResult(
                seed=seed,
                student=metrics(students[index], "student", index),
                baseline=metrics(baselines[index], "baseline", index) if baselines else None,
            )
            for index, seed in enumerate(self.seeds)
        )

    def _gain_error(self, judged: Mapping[str, Judged], metric: str) -> float | None:
        from hf_distill.figures import gain_error

        labels = judged["student"].labels
        if "baseline" not in judged or labels is None or metric == "agreement":
            return None
        logits = (judged["student"].logits, judged["baseline"].logits)
        return gain_error(self.prepared.metrics, metric, *logits, labels)

    def _settings(self) -> dict[str, Any]:
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        return {
            "versions": environment(),
            "device": str(self.args.device),
            "processes": self.args.world_size,
            "precision": f"{precision} (training and metrics); latency in each model's own dtype",
            "train_rows": len(self.prepared.train),
            "eval_rows": len(self.prepared.eval),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }


def _greater_is_better(metric: str) -> bool:
    from hf_distill.metrics import greater_is_better

    return metric == "agreement" or greater_is_better(metric)
