"""The parts of a run, and how much each has to compute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.models.outline import outline
from hf_distill.models.parts import Parts
from hf_distill.objectives import Labels
from hf_distill.run.arrival import Part
from hf_distill.run.requirements import steps_of
from hf_distill.run.training_defaults import fine_tuning
from hf_distill.teachers.base import described
from hf_distill.training.labelled import on_labels_alone

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.run import Run

# Gradients cost about twice as much as the forward pass.
TRAINED = 3


def parts(run: Run) -> list[Part]:
    """Return the parts of a run, in their order. What it will find finished is among them."""
    recipe, cost = run.recipe, _Cost(run)
    found = [*cost.teachers()]
    if recipe.teacher.caches and run.stored is None:
        rows = len(run.prepared.for_targets.train) + len(run.prepared.for_targets.eval)
        found.append(Part("cache", cost.teacher * rows, rows=rows))
    for seed in run.seeds:
        found += cost.students(seed)
    models = len(run.seeds) * (1 + recipe.report.baseline)
    evaluated = len(run.prepared.eval)
    found.append(Part("report", evaluated * (cost.student * models + cost.teacher), rows=evaluated * (models + 1)))
    return found


def work_of_row(run: Run, *, live: bool) -> float:
    """Return how much a training of the student computes for a row; with `live`, the teacher runs beside it."""
    cost = _Cost(run)
    return TRAINED * cost.student + (cost.teacher if live else 0.0)


class _Cost:
    """How much the parts of a run compute."""

    def __init__(self, run: Run) -> None:
        recipe, self._run = run.recipe, run
        self.student = _passes(recipe, run.pair.student)
        self.each = [_passes(recipe, config) for config in described(recipe.teacher, run.pair.teacher)]
        self.teacher = sum(self.each)

    def teachers(self) -> Iterator[Part]:
        run = self._run
        labelled = len(run.fitter.for_teacher().rows((Labels(),))) if run.recipe.teacher.fine_tuning else 0
        for index, how in enumerate(run.recipe.teacher.fine_tuning.values()):
            rows = labelled if how.rows is None else len(how.rows(labelled))
            each = self.each[index] if len(self.each) == len(run.recipe.teacher.fine_tuning) else self.teacher
            name = f"teacher {how.which}" if how.which else "teacher"
            yield self._training(name, fine_tuning(run.recipe, run.training, how), rows, each, 0.0)

    def students(self, seed: int) -> Iterator[Part]:
        run = self._run
        plan, live = run.recipe.plan, 0.0 if run.recipe.teacher.caches or run.stored is not None else self.teacher
        for baseline in (False, True) if run.recipe.report.baseline else (False,):
            name = ("baseline" if baseline else "student") + ("" if seed == run.args.seed else f" seed {seed}")
            for number, stage in enumerate(plan, 1):
                alone = baseline or on_labels_alone(stage.objectives)
                # A baseline on fewer rows takes as many steps as the student.
                rows = len(run.fitter.rows(stage.objectives))
                training = {**run.training, **stage.training}
                part = name if len(plan) == 1 else f"{name} stage {number}"
                yield self._training(part, training, rows, self.student, 0.0 if alone else live)

    def _training(self, name: str, training: Mapping[str, Any], rows: int, own: float, beside: float) -> Part:
        processes = parallel.processes()
        steps = steps_of(training, rows, processes)
        size = int(training.get("per_device_train_batch_size", 8)) * processes
        size *= int(training.get("gradient_accumulation_steps", 1))
        evaluated = _evaluations(training, steps) * len(self._run.prepared.eval) * (own + beside)
        # The last step of an epoch may be smaller.
        seen = min(steps * size, math.ceil(float(training.get("num_train_epochs", 3.0)) * rows)) if rows else 0
        seen = seen if int(training.get("max_steps", -1)) <= 0 else steps * size
        return Part(name, seen * (TRAINED * own + beside) + evaluated, steps, size)


def _passes(recipe: Recipe, config: PretrainedConfig) -> float:
    """Return the work of a forward pass for a row: parameters, but tables of embeddings only if a head uses them."""
    parts = Parts.of(outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code))
    shared = parts.embeddings if recipe.task.auto_class.endswith("LM") and not parts.head else 0
    return float(parts.total - parts.embeddings + shared)


def _evaluations(training: Mapping[str, Any], steps: int) -> int:
    """Return how often a training evaluates."""
    strategy = str(getattr(training.get("eval_strategy"), "value", training.get("eval_strategy", "no")))
    if strategy == "epoch":
        return max(math.ceil(float(training.get("num_train_epochs", 3.0))), 1)
    if strategy != "steps":
        return 0
    every = float(training.get("eval_steps") or training.get("logging_steps") or 500)
    return int(steps / (math.ceil(every * steps) if every < 1 else every))
