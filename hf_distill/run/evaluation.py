"""Judging finished models side by side: predictions on the eval split, what agrees, what it costs to run them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.metrics.score import greater_is_better
from hf_distill.metrics.table import AGREEMENT
from hf_distill.models.tokenizers import tokenizer_name
from hf_distill.report.best import best_of
from hf_distill.report.costs import costs_of, skipped_of
from hf_distill.report.latency import Latency, measure_all
from hf_distill.report.predictions import Judged, chance_of, class_figures, gain_error, judged_before, labelled_rows
from hf_distill.report.report import Report
from hf_distill.report.results import ModelResult, SeedResult
from hf_distill.report.text import HEAD_IS_LEFT
from hf_distill.run.checks import leaves_head
from hf_distill.students.freezing import find_frozen
from hf_distill.training.labelled import labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.report.best import Best
    from hf_distill.run.fit import Fitted
    from hf_distill.run.run import Run
    from hf_distill.tasks import Prepared


def assess(run: Run, teacher: PreTrainedModel, students: Sequence[Fitted], baselines: Sequence[Fitted]) -> Report:
    """Judge all models on the eval split and put the report together.

    Args:
        run: The run they come from.
        teacher: Its teacher.
        students: One a seed, the saved one first.
        baselines: Likewise, or empty.
    """
    models = {"teacher": teacher, "student": students[0].model}
    if baselines:
        models["baseline"] = baselines[0].model
    judged = {name: judge(run, model, None if name == "teacher" else teacher, name) for name, model in models.items()}
    if not run.recipe.teacher.has_model:
        del models["teacher"]
    speeds = _latencies(run, models) if run.recipe.report.latency else {}
    results = {name: ModelResult.of(model, judged[name].metrics, speeds.get(name)) for name, model in models.items()}
    results.setdefault("teacher", ModelResult(judged["teacher"].metrics, None, None, weights=""))
    metric = (*run.prepared.metric_names, AGREEMENT)[0]
    greater = metric == AGREEMENT or greater_is_better(metric)
    return Report(
        task=run.recipe.task.name,
        metric=metric,
        greater_is_better=greater,
        teacher=results["teacher"],
        student=results["student"],
        baseline=results.get("baseline"),
        agreement=judged["student"].agreement,
        baseline_agreement=judged["baseline"].agreement if baselines else None,
        eval_rows=labelled_rows(run.prepared, judged["student"]),
        gain_error=gain_error(run.prepared, judged, metric),
        chance=chance_of(run.prepared, judged["teacher"], metric, greater),
        best=_best(run, "", metric, greater),
        seeds=_seeds(run, teacher, students, baselines, judged, metric, greater),
        history=run.histories,
        settings=_settings(run, students[0].model),
        recipe=run.directory.recipe,
        **class_figures(run.prepared, judged),
    )


def judge(run: Run, model: PreTrainedModel, teacher: PreTrainedModel | None, name: str = "student") -> Judged:
    """Predict the eval split.

    Args:
        run: Its data and precision.
        model: A student, or the teacher itself.
        teacher: Whose predictions to compare with; None if `model` is the teacher.
        name: What a message calls the model.
    """
    judged: Any = model
    if teacher is None and (known := getattr(model, "label_losses", None)) is not None:
        return judged_before(run.prepared, known)
    if teacher is None:
        (fitter, judged), target = run.answering(model), None
    else:
        fitter, target = run.targets(teacher)
    prepared = fitter.prepared
    output, losses = fitter.predict(judged, run.training, target, f"the {name}")
    figures = {key.removeprefix("test_"): value for key, value in (output.metrics or {}).items()}
    share = figures.get(AGREEMENT)
    if teacher is None and prepared.layout.has_classes:
        share = 1.0
    predictions: Any = output.predictions  # None where they are not kept, whatever the annotation says
    logits = None if predictions is None else np.asarray(predictions)
    columns = prepared.layout.teacher_columns
    if teacher is None and logits is not None and columns is not None:
        logits = logits[..., list(columns)]
    labels = None if output.label_ids is None else np.asarray(output.label_ids)
    metrics: Mapping[str, float] = {} if share is None else {AGREEMENT: share}
    if prepared.metric_names and prepared.summary is not None:
        metrics = prepared.summary(figures)
        if prepared.generate is not None:
            metrics = {**metrics, **prepared.generate(model, run.args.per_device_eval_batch_size)}
    elif prepared.metric_names and logits is not None and labels is not None:
        metrics = prepared.metrics(logits, labels)
    return Judged(metrics, share, logits, labels, losses)


def _seeds(
    run: Run,
    teacher: PreTrainedModel,
    students: Sequence[Fitted],
    baselines: Sequence[Fitted],
    judged: Mapping[str, Judged],
    metric: str,
    greater: bool,
) -> tuple[SeedResult, ...]:
    """Judge the models of the other seeds; the first seed's are judged already."""
    if len(students) < 2:
        return ()

    def metrics(name: str, trained: Sequence[Fitted]) -> list[Mapping[str, float]]:
        rest = [judge(run, one.model, teacher, name).metrics for one in trained[1:]]
        return [judged[name].metrics, *rest]

    without = metrics("baseline", baselines) if baselines else [None] * len(students)
    names = ["", *(f" seed {seed}" for seed in run.seeds[1:])]
    return tuple(
        SeedResult(seed, student, baseline, _best(run, name, metric, greater).get("baseline"))
        for seed, name, student, baseline in zip(run.seeds, names, metrics("student", students), without, strict=True)
    )


def _best(run: Run, seed: str, metric: str, greater: bool) -> dict[str, Best]:
    """Return the best evaluations of student and baseline while they were trained.

    Args:
        run: Its histories.
        seed: What ends the names of these trainings: nothing, or ` seed 43`.
        metric: The headline metric.
        greater: Whether more of it is better.
    """
    smoothed = any(getattr(one, "label_smoothing", 0) for stage in run.recipe.plan for one in stage.objectives)
    if run.prepared.summary is not None and smoothed:
        return {}  # the perplexity is that of the label, and their evaluations had the loss of smoothed ones
    found = {
        name: best_of(run.histories, name + seed, run.prepared, metric, greater_is_better=greater)
        for name in ("student", "baseline")
    }
    return {name: best for name, best in found.items() if best is not None}


def _latencies(run: Run, models: Mapping[str, PreTrainedModel]) -> dict[str, Latency]:
    """Measure on the first process while the others wait, and tell them."""
    from accelerate.utils import broadcast_object_list

    measured: list[Any] = [None]
    if run.is_main:
        measured = [latencies(run.prepared, models, run.args.per_device_eval_batch_size)]
    if run.args.world_size > 1:
        broadcast_object_list(measured)
    found: dict[str, Latency] = measured[0]
    return found


def latencies(prepared: Prepared, models: Mapping[str, PreTrainedModel], batch_size: int) -> dict[str, Latency]:
    """Time all models on the same two inputs: the example of median length, and the batch around it.

    They are the same texts in other tokens for a teacher with a tokenizer of its own.
    """
    middle = len(prepared.eval) // 2  # the split is sorted by length
    start = max(0, min(middle - batch_size // 2, len(prepared.eval) - batch_size))
    around = range(start, min(start + batch_size, len(prepared.eval)))

    def collate(data: Prepared) -> tuple[dict[str, Any], dict[str, Any]]:
        single, batch = (
            [{key: value for key, value in data.eval[row].items() if not key.endswith("length")} for row in rows]
            for rows in ([middle], around)
        )
        return dict(data.collator(single)), dict(data.collator(batch))

    own = {} if prepared.for_teacher is None else {"teacher": collate(prepared.for_teacher)}
    return measure_all(models, *collate(prepared), own=own)


def environment() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    import accelerate
    import datasets
    import transformers

    import hf_distill

    return {
        "hf_distill": hf_distill.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
    }


def _settings(run: Run, student: PreTrainedModel) -> dict[str, Any]:
    precision = "bf16" if run.args.bf16 else "fp16" if run.args.fp16 else "fp32"
    names = {"student": run.fitter.tokenizer, "teacher": run.fitter.teacher_tokenizer}
    two = (
        {"tokenizers": {side: tokenizer_name(one) for side, one in names.items() if one}} if all(names.values()) else {}
    )
    return {
        "versions": environment(),
        **two,
        "device": str(run.args.device),
        "processes": run.args.world_size,
        "precision": f"{precision} (training and metrics); latency in each model's own dtype",
        "train_rows": len(run.prepared.train),
        "eval_rows": len(run.prepared.eval),
        **labels_of(run.prepared),
        **_frozen(run, student),
        **_stages(run),
        **({} if run.cache is None else {"teacher's answers": f"cached: {run.cache.in_words()}"}),
        **({"layers": run.layers} if run.layers else {}),
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        **({"skipped_steps": skipped} if (skipped := skipped_of(run.histories)) else {}),
        **({"training_cost": costs} if (costs := costs_of(run.histories)) else {}),
    }


def _frozen(run: Run, student: PreTrainedModel) -> dict[str, str]:
    """Return how many parameters of student and baseline were trained, where it was not all of them."""
    parts = run.recipe.student.freeze
    if not parts:
        return {}
    frozen = find_frozen(student, parts)
    return {"trained_parameters": f"{frozen.trained:,} of {frozen.total:,}; frozen: {', '.join(parts)}"}


def _stages(run: Run) -> dict[str, Any]:
    """Return what each stage compared, and what the baseline did in its time."""
    stages = {
        f"stage {number}": ", ".join(objective.name for objective in stage.objectives)
        + (HEAD_IS_LEFT if leaves_head(stage.objectives, run.recipe.task.auto_class) else "")
        for number, stage in enumerate(run.recipe.stages, 1)
    }
    if stages and run.recipe.report.baseline:
        stages["baseline"] = "the same stages, with the same training arguments, on labels alone"
    return stages
