"""Evaluates finished models side by side: their predictions on the eval split, their agreement, their speed."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_distill import parallel
from hf_distill.data.example_columns import inputs_of
from hf_distill.metrics.table import AGREEMENT, Undefined
from hf_distill.models.inspection import writes
from hf_distill.models.lora import has_adapters
from hf_distill.models.parts import Parts
from hf_distill.models.quantization import size
from hf_distill.models.tokenizers import tokenizer_name
from hf_distill.report.best import best_of
from hf_distill.report.costs import costs_of, skipped_of
from hf_distill.report.latency import measure_all
from hf_distill.report.partitions import by_partition, for_whom
from hf_distill.report.predictions import Evaluated, class_figures
from hf_distill.report.report import Report
from hf_distill.report.results import ModelResult, SeedResult
from hf_distill.report.text import HEAD_IS_LEFT
from hf_distill.report.timing import Latency
from hf_distill.run.ancestry import lineage_of
from hf_distill.run.beside import mean_of
from hf_distill.run.checks import leaves_head
from hf_distill.run.own_samples import own_samples
from hf_distill.run.scored import Scored
from hf_distill.students.freezing import find_frozen
from hf_distill.tasks.evaluator import PERPLEXITY, Predictions
from hf_distill.training.labelled import labels_of
from hf_distill.training.samples import without_samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.models.target_model import TargetSource
    from hf_distill.report.best import Best
    from hf_distill.report.comparison import ByGroup
    from hf_distill.run.beside import Beside
    from hf_distill.run.fit import Fitted
    from hf_distill.run.run import Run
    from hf_distill.tasks import Prepared


def report_on(
    run: Run, teacher: TargetSource, students: Sequence[Fitted], baselines: Sequence[Fitted], beside: Beside
) -> Report:
    """Evaluate all models on the eval split and put the report together.

    Args:
        run: The run.
        teacher: Its teacher.
        students: One student per seed, the saved one first.
        baselines: One baseline per seed in the same order, or none.
        beside: What other runs of a chain hand on.
    """
    members = _members(run, teacher)
    models: dict[str, Any] = {"teacher": teacher, "student": students[0].model}
    if baselines:
        models["baseline"] = baselines[0].model
    found = {name: evaluate(run, model, None if name == "teacher" else teacher, name) for name, model in models.items()}
    models["teacher"] = teacher.measured
    models = {name: model for name, model in models.items() if model is not None}
    speeds: dict[str, Latency] = {}
    if run.recipe.report.latency:  # on the first process, while the others wait
        run.narrator.say("timing all models")
        batch = run.args.per_device_eval_batch_size
        speeds = parallel.asked_once(lambda: latencies(run.prepared, models, batch))
    seeds = _seeds(run, teacher, students, baselines, found)
    figures, results = compared(run.prepared, found), measured(models, found, speeds)
    lineage = lineage_of(run, figures["metric"], results)
    run.scored = Scored(run.prepared, found["student"].predictions)
    return Report(
        task=run.recipe.task.name,
        **figures,
        **results,
        lineage=lineage,
        direct=beside.direct,
        direct_error=run.scored.error_of_difference(beside.alone),
        together=mean_of(run, beside.together),
        best=_best(run, ""),
        seeds=seeds,
        for_whom=for_whom(run.prepared, found, _group_column(run), seeds),
        **own_samples(run, teacher, students, baselines),
        history=without_samples(run.histories),
        settings={
            **_settings(run, {**_facts(run, teacher), **members}, models),
            **about_teacher(teacher, students[0].model, private=run.recipe.teacher.keeps_private),
        },
        recipe=run.directory.recipe,
    )


def compared(prepared: Prepared, found: Mapping[str, Evaluated]) -> dict[str, Any]:
    """Return the report's fields that come from predictions: headline metric, agreement, noise, chance, classes.

    Args:
        prepared: The data.
        found: The evaluated models: `teacher`, `student` and, if there is one, `baseline`.
    """
    evaluator, baseline = prepared.evaluator, found.get("baseline")
    student, theirs = found["student"].predictions, _of_teacher(prepared).evaluator
    same = theirs.headline == evaluator.headline  # else its level of chance is that of another metric
    return {
        "metric": evaluator.headline,
        "greater_is_better": evaluator.greater_is_better,
        "agreement": found["student"].agreement,
        "baseline_agreement": None if baseline is None else baseline.agreement,
        "eval_rows": evaluator.count(student),
        "gain_error": None if baseline is None else evaluator.gain_error(student, baseline.predictions),
        "resampled": evaluator.resampled(student),
        "conditions": evaluator.conditions(prepared.eval),
        "chance": theirs.chance(found["teacher"].predictions) if same else None,
        **class_figures(prepared, found),
    }


def measured(
    models: Mapping[str, PreTrainedModel], found: Mapping[str, Evaluated], speeds: Mapping[str, Latency]
) -> dict[str, Any]:
    """Return the report's fields with metrics, size and speed of each model.

    A teacher that is given as data has metrics only.
    """
    results = {name: ModelResult.of(model, found[name].metrics, speeds.get(name)) for name, model in models.items()}
    results.setdefault("teacher", ModelResult(found["teacher"].metrics, None, None, weights=""))
    return results


def evaluate(run: Run, model: Any, teacher: TargetSource | None, name: str = "student") -> Evaluated:
    """Return a model's predictions on the eval split with their metrics.

    Args:
        run: The run, with data and precision.
        model: A student, or the teacher as a source of targets.
        teacher: The teacher to compare with; None if `model` is the teacher.
        name: How messages call the model.
    """
    predictions, agreement = _predict(run, model, name) if teacher is None else _compare(run, model, teacher, name)
    return evaluated(run.prepared if teacher else _of_teacher(run.prepared), predictions, agreement)


def _of_teacher(prepared: Prepared) -> Prepared:
    """Return the data in the teacher's own tokens, in which it is evaluated."""
    return prepared.for_teacher or prepared


def evaluated(prepared: Prepared, predictions: Predictions, agreement: float | None) -> Evaluated:
    """Return predictions with their metrics; without labels, the only metric is the agreement with the teacher."""
    evaluator = prepared.evaluator
    metrics = evaluator.evaluate(predictions)
    for name in evaluator.names:
        if evaluator.generates(name):
            metrics.setdefault(name, Undefined("it is not a model that writes texts"))
    if not metrics and agreement is not None:
        metrics = {AGREEMENT: agreement}
    return Evaluated(metrics, agreement, predictions)


def _compare(run: Run, model: PreTrainedModel, teacher: TargetSource, name: str) -> tuple[Predictions, float | None]:
    """Return a student's predictions, and the share of rows on which the teacher predicts the same class."""
    fitter, target = run.for_students(teacher)
    predictions, agreement = fitter.predict(model, run.training, target, f"the {name}")
    return replace(predictions, texts=_generate(run, run.prepared, model)), agreement


def _predict(run: Run, teacher: TargetSource, name: str) -> tuple[Predictions, float | None]:
    """Return the teacher's predictions with classes in the student's order, and its agreement with itself."""
    agreement = 1.0 if run.prepared.layout.has_classes else None
    if (losses := teacher.losses_of(run.prepared.eval, run.prepared.collator)) is not None:
        return Predictions(losses=losses), agreement
    fitter, predicting = run.for_teacher(teacher)
    predictions, _ = fitter.predict(predicting, run.training, whose=f"the {name}")
    predictions = in_students_order(predictions, fitter.prepared)
    if not writes(teacher.model):
        return predictions, agreement
    return replace(predictions, texts=_generate(run, _of_teacher(run.prepared), teacher.model)), agreement


def in_students_order(predictions: Predictions, prepared: Prepared) -> Predictions:
    """Return a teacher's predictions with classes in the student's order."""
    columns = prepared.layout.teacher_columns
    if predictions.logits is None or columns is None:
        return predictions
    return replace(predictions, logits=predictions.logits[..., list(columns)])


def _generate(run: Run, prepared: Prepared, model: PreTrainedModel) -> Sequence[str | None]:
    return prepared.evaluator.generate(model, run.args.per_device_eval_batch_size)


def _seeds(
    run: Run,
    teacher: TargetSource,
    students: Sequence[Fitted],
    baselines: Sequence[Fitted],
    found: Mapping[str, Evaluated],
) -> tuple[SeedResult, ...]:
    """Return the results of each seed, evaluating the models of all but the first seed; nothing for a single seed."""
    if len(students) < 2:
        return ()

    def by_seed(name: str, trained: Sequence[Fitted]) -> list[_OfSeed]:
        rest = (evaluate(run, one.model, teacher, name) for one in trained[1:])
        return [_OfSeed.of(run, name, one) for one in (found[name], *rest)]

    own = by_seed("student", students)
    without = by_seed("baseline", baselines) if baselines else [None] * len(students)
    names = ["", *(f" seed {seed}" for seed in run.seeds[1:])]
    return tuple(
        SeedResult(
            seed,
            student.metrics,
            None if baseline is None else baseline.metrics,
            _best(run, name).get("baseline"),
            {by: {**parts, **({} if baseline is None else baseline.parts[by])} for by, parts in student.parts.items()},
        )
        for seed, name, student, baseline in zip(run.seeds, names, own, without, strict=True)
    )


@dataclass(frozen=True)
class _OfSeed:
    """What is kept of a model of one seed, without its predictions: metrics, on the whole split and on its parts."""

    metrics: Mapping[str, float]
    parts: Mapping[str, ByGroup]

    @classmethod
    def of(cls, run: Run, name: str, one: Evaluated) -> _OfSeed:
        return cls(one.metrics, by_partition(run.prepared, {name: one}, _group_column(run)))


def _group_column(run: Run) -> str:
    """Return how the report calls the column of groups."""
    return str(run.recipe.data.columns.get("group", "group"))


def _best(run: Run, seed: str) -> dict[str, Best]:
    """Return the best evaluations of student and baseline during their training.

    Args:
        run: The run, with the histories of its trainings.
        seed: End of the names of these trainings: empty, or ` seed 43`.
    """
    smoothed = any(getattr(one, "label_smoothing", 0) for stage in run.recipe.plan for one in stage.objectives)
    evaluator = run.prepared.evaluator
    if evaluator.headline == PERPLEXITY and smoothed:
        return {}  # perplexity is computed from labels, and these evaluations have the loss of smoothed labels
    found = {name: best_of(run.histories, name + seed, evaluator) for name in ("student", "baseline")}
    return {name: best for name, best in found.items() if best is not None}


def latencies(
    prepared: Prepared, models: Mapping[str, PreTrainedModel], batch_size: int, seconds: float | None = None
) -> dict[str, Latency]:
    """Return the latency of all models on the same two inputs: the example of median length, and the batch around it.

    A teacher with its own tokenizer gets the same texts in its own tokens.

    Args:
        prepared: The data.
        models: Name -> model.
        batch_size: Examples of the batch.
        seconds: Time to spend on each model. Default: that of `measure_all`.
    """
    theirs = prepared.for_teacher
    own = {} if theirs is None else {"teacher": timed_inputs(theirs, batch_size)}
    how: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    return measure_all(models, *timed_inputs(prepared, batch_size), own=own, **how)


def timed_inputs(prepared: Prepared, batch_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs on which models are timed: the eval row of median length, and the batch around it.

    Args:
        prepared: The data.
        batch_size: Examples of the batch.
    """
    rows = len(prepared.eval)  # another tokenizer may cut a long text into another number of windows
    middle = rows // 2  # the split is sorted by length
    start = max(0, min(middle - batch_size // 2, rows - batch_size))
    around = range(start, min(start + batch_size, rows))
    single, batch = ([inputs_of(prepared.eval[row]) for row in chosen] for chosen in ([middle], around))
    return dict(prepared.collator(single)), dict(prepared.collator(batch))


def environment() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the measurements depend on."""
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


def _members(run: Run, teacher: TargetSource) -> dict[str, Any]:
    """Return the headline metric of each model of a teacher that is several, for the report; empty for one model."""
    fitter = run.fitter.for_teacher()
    parts = teacher.parts(fitter.prepared.layout)
    # The targets of several teachers that are given as data, or were stored one by one, are in batches of their own.
    if run.stored is not None and (stored := run.stored[1].parts(run.prepared.layout)):
        fitter, parts = run.stored[0], stored
    evaluator, scores = fitter.prepared.evaluator, {}
    for name, model in parts.items():
        predictions, _ = fitter.predict(model, run.training, whose=name)
        metrics = evaluator.evaluate(in_students_order(predictions, fitter.prepared))
        if evaluator.headline in metrics:
            scores[name] = metrics[evaluator.headline]
    return {"members": scores} if scores else {}


def _facts(run: Run, teacher: TargetSource) -> dict[str, Any]:
    return {**run.trained, **teacher.facts(), **({} if run.stored is None else run.stored[1].facts())}


def about_teacher(teacher: TargetSource, student: PreTrainedModel, *, private: bool = False) -> dict[str, Any]:
    """Return who the teacher of a report is, and what is not compared with it; nothing for a model of its own.

    Args:
        teacher: The source, as the training of the student has left it.
        student: The finished student.
        private: Whether the rows with a label are private, so that nothing is trained on them but the teacher.
    """
    left: dict[str, str] = {}
    models = teacher.models.values()
    if teacher.follows_student and models and all(size(one)[0] == size(student)[0] for one in models):
        left["size and speed"] = "the teacher is of the student's own kind"
    if private:
        left["training without the teacher"] = "the rows with a label are private"
    who = teacher.who()
    return {**({"teacher_column": who} if who else {}), **({"not_compared": left} if left else {})}


def _settings(run: Run, facts: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run for the report.

    Args:
        run: The run.
        facts: What is said about the teacher.
        models: The measured models: `student`, and `teacher` if there is one.
    """
    precision = "bf16" if run.args.bf16 else "fp16" if run.args.fp16 else "fp32"
    names = {"student": run.fitter.tokenizer, "teacher": run.fitter.teacher_tokenizer}
    named = {side: tokenizer_name(one) for side, one in names.items() if one}
    if run.pair.cut is not None:
        named["in training"] = (
            "in training the teacher read the student's tokens under its own ids, and it was evaluated with its own "
            "whole vocabulary"
        )
    two = {"tokenizers": named} if all(names.values()) else {}
    return {
        "versions": environment(),
        **two,
        "device": str(run.args.device),
        "processes": parallel.processes(),
        "precision": f"{precision} (training and metrics); latency in each model's own dtype",
        "train_rows": len(run.prepared.train),
        "eval_rows": len(run.prepared.eval),
        **labels_of(run.prepared),
        **_trained_on(run),
        "parameters": _parameters({name: model for name, model in models.items() if name != "baseline"}),
        **_frozen(run, models["student"]),
        **_stages(run),
        **({"teacher": dict(facts)} if facts else {}),
        **({"student": run.made} if run.made else {}),
        **_adapters(run, models["student"]),
        **({"pseudo_labels": run.sure.facts(run.prepared.label_names)} if run.sure else {}),
        **({} if run.cache is None else {"teacher's answers": f"cached: {run.cache.in_words()}"}),
        **({"completions": run.completions} if run.completions else {}),
        **({"layers": run.layers} if run.layers else {}),
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        **({"skipped_steps": skipped} if (skipped := skipped_of(run.histories)) else {}),
        **({"training_cost": costs} if (costs := costs_of(run.histories)) else {}),
    }


def _trained_on(run: Run) -> dict[str, Any]:
    """Return in words the rows that each model was trained on; nothing if all rows have a label."""
    labelled = labels_of(run.prepared)["train_rows_with_label"]
    if labelled == len(run.prepared.train):
        return {}
    with_label = f"{labelled:,} with a label"
    alone = all(len(run.fitter.rows(stage.objectives)) == labelled for stage in run.recipe.plan)
    # A teacher that gives targets for some rows only leaves out the others.
    data = run.prepared if run.stored is None else run.stored[0].prepared
    rows, labels = len(data.train), labels_of(data)
    labelled, transfer = labels["train_rows_with_label"], labels.get("transfer_rows", 0)
    kinds = [f"{labelled:,} with a label"] * bool(labelled)
    kinds += [f"{transfer:,} transfer rows"] * bool(transfer)
    what = "prompts" if run.recipe.completions.in_training else "without a label"
    kinds += [f"{rest:,} {what}"] if (rest := rows - labelled - transfer) else []
    trained = run.recipe.teacher.keeps_private or run.trains_teacher
    teacher = {"teacher": run.recipe.teacher.rows_in_words(with_label)} if trained else {}
    baseline = {"baseline": f"{with_label}, for as many steps"} if run.recipe.report.baseline else {}
    student = with_label if alone else kinds[0] if len(kinds) == 1 else f"{rows:,} ({', '.join(kinds)})"
    if run.sure is not None:
        student = f"{len(run.sure.rows):,} ({with_label}, {run.sure.count:,} without one of which the teacher is sure)"
    return {"rows_trained_on": {**teacher, "student": student, **baseline}}


def _frozen(run: Run, student: PreTrainedModel) -> dict[str, str]:
    """Return how many parameters of student and baseline were trained; nothing if all were."""
    parts = run.recipe.student.freeze
    if not parts:
        return {}
    frozen = find_frozen(student, parts)
    return {"trained_parameters": f"{frozen.trained:,} of {frozen.total:,}; frozen: {', '.join(parts)}"}


def _parameters(models: Mapping[str, Any]) -> dict[str, str]:
    """Return where the parameters of each Transformers model are, and what its weights are as float32."""
    from transformers import PreTrainedModel

    return {name: Parts.of(model).in_words() for name, model in models.items() if isinstance(model, PreTrainedModel)}


def _adapters(run: Run, student: PreTrainedModel) -> dict[str, Any]:
    """Return how a student is loaded of which adapters alone are saved; nothing for a whole model."""
    if not has_adapters(student):
        return {}
    head = run.prepared.head
    # Their base knows neither labels nor kind of the head.
    known = {key: head.settings[key] for key in ("num_labels", "problem_type") if head.settings.get(key) is not None}
    labels = {"labels": list(run.prepared.label_names)} if run.prepared.label_names else {}
    return {"loaded_with": {"class": head.auto_class, **(known if head.kind == "labels" else {}), **labels}}


def _stages(run: Run) -> dict[str, Any]:
    """Return the objectives of each stage, and what the baseline did in these stages."""
    stages = {
        f"stage {number}": ", ".join(objective.name for objective in stage.objectives)
        + (HEAD_IS_LEFT if leaves_head(stage.objectives, run.recipe.task.head_kind) else "")
        for number, stage in enumerate(run.recipe.stages, 1)
    }
    if stages and run.recipe.report.baseline:
        stages["baseline"] = "the same stages, with the same training arguments, on labels alone"
    return stages
