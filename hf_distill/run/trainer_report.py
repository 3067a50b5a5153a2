"""`evaluate_distillation(trainer)`: the report of a run, after a training with `DistillationTrainer`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from torch import nn
from transformers import set_seed

from hf_distill import parallel
from hf_distill.data import by_length, with_length
from hf_distill.data.example_columns import held
from hf_distill.errors import UserError
from hf_distill.files.ownership import RUNS
from hf_distill.mistakes import describe
from hf_distill.models import sharding
from hf_distill.models.inspection import base_model
from hf_distill.models.loading import Head
from hf_distill.recipe.writer import objective_entries, to_yaml
from hf_distill.report.best import best_of
from hf_distill.report.costs import costs_of
from hf_distill.report.partitions import for_whom
from hf_distill.report.predictions import Evaluated
from hf_distill.report.report import Report
from hf_distill.run.evaluation import (
    about_teacher,
    compared,
    environment,
    evaluated,
    in_students_order,
    latencies,
    measured,
)
from hf_distill.run.fit import Fitter, finished_model
from hf_distill.tasks import Prepared, Task
from hf_distill.tasks.inferred import evaluator_of, tasks_of
from hf_distill.trainer import DistillationTrainer
from hf_distill.training.checkpoints import remove_checkpoints
from hf_distill.training.labelled import drawn_from, is_labelled, label_objective, labels_of, same_steps
from hf_distill.training.saving import attach
from hf_distill.training.streams import is_stream
from hf_distill.training.text_columns import holds_text
from hf_distill.training_args import DistillationArguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# True by default in Transformers; `DistillationArguments` does not read it and refuses True.
NOT_READ = {"logging_nan_inf_filter"}


def evaluate_distillation(
    trainer: DistillationTrainer,
    *,
    baseline: PreTrainedModel | nn.Module | bool = False,
    eval_dataset: datasets.Dataset | None = None,
    metrics: Sequence[str] = (),
    latency: bool = True,
) -> Report:
    """Compare a trainer's student with its teacher, and with the same student trained without the teacher.

    Groups in a column `example_group` of both data sets are compared, as those of `data.columns.group` in a run.

    Args:
        trainer: The trainer, after `train()`.
        baseline: The student as it was before training (`copy.deepcopy(student)`, or loaded again). It is trained here
            on labels alone, with the trainer's arguments, for as many steps. True if the trainer has a `model_init`
            that makes it; False for no baseline.
        eval_dataset: The data to evaluate on, tokenised or of text as the trainer's is; by default the trainer's.
        metrics: Names as in a recipe (`evaluation: {metrics: ...}`), the headline first; by default the task's own.
        latency: Whether to measure how fast the models are.

    Returns:
        The report, as of a run; `report.save(directory)` writes page, model card and `report.json`.

    Raises:
        UserError: There is no teacher, no eval data, or no way to evaluate or train on it.
    """
    if trainer.source is None:
        raise UserError("the trainer has no teacher to compare its student with.")
    teacher = trainer.source.measured
    if teacher is None:
        raise UserError(
            "the teacher is not a model that can be evaluated here. Pass the model itself, or run a recipe."
        )
    if sharding.split_over(teacher) is not None:
        raise UserError(
            "the teacher's layers are split over processes, which do not evaluate it alone. Load the saved student "
            "and the whole teacher in another trainer, and report on that."
        )
    task, prepared = _data(trainer, eval_dataset, metrics)
    start = _start(trainer, baseline, prepared)
    models: dict[str, Any] = {"teacher": teacher, "student": finished_model(trainer)}
    histories = {"student": trainer.state.log_history}
    if start is not None:
        models["baseline"], histories["baseline"] = _train_baseline(trainer, start, prepared)
    found = {name: _evaluate(trainer, prepared, model, name, teacher) for name, model in models.items()}
    attach(trainer.model, trainer.terms.learned)  # so that training can continue
    size = trainer.args.per_device_eval_batch_size
    speeds = parallel.asked_once(lambda: latencies(prepared, models, size)) if latency else {}
    best = {name: best_of(histories, name, prepared.evaluator) for name in ("student", "baseline")}
    return Report(
        task=task.name,
        **compared(prepared, found),
        **measured(models, found, speeds),
        best={name: one for name, one in best.items() if one is not None},
        for_whom=for_whom(prepared, found, "group"),
        history=histories,
        settings=_settings(trainer, prepared, histories),
        recipe=_recipe(trainer, task),
    )


# ---- Data ------------------------------------------------------------------------------------------------------------


def _data(
    trainer: DistillationTrainer, split: datasets.Dataset | None, metrics: Sequence[str]
) -> tuple[Task, Prepared]:
    """Return the task of a trainer's student, and its data with the task's evaluator."""
    split = trainer.eval_dataset if split is None else split
    if not isinstance(split, datasets.Dataset):
        several = f" ({', '.join(split)})" if isinstance(split, dict) else ""
        raise UserError(f"wanted one data set to evaluate on{several}: pass eval_dataset=..., a datasets.Dataset.")
    texts = trainer.texts
    raw = None if texts is None else texts.raw(split)
    if texts is None or raw is None:
        task, prepared = _of_tokens(trainer, split, metrics)
    else:
        task, prepared = texts.task, replace(texts.prepare(raw, metrics), layout=trainer.layout)
    # `texts.prepared.train` may be another split than the one that the student is trained on.
    train: Any = trainer.train_dataset if texts is None else texts(trainer.train_dataset)
    if not isinstance(train, datasets.Dataset):
        return task, replace(prepared, train=prepared.eval.select([]), labelled=False)
    labelled = is_labelled(train, prepared.layout)
    made = not prepared.evaluator.needs_logits  # the collator makes labels of the tokens
    return task, replace(prepared, train=train, labelled=made if labelled is None else labelled)


def _of_tokens(trainer: DistillationTrainer, split: datasets.Dataset, metrics: Sequence[str]) -> tuple[Task, Prepared]:
    """Return the task of the trainer's student, and the data where the eval split was given tokenised."""
    tasks = tasks_of(trainer.model)
    if not tasks:
        raise UserError(f"there is no task for a {type(base_model(trainer.model)).__name__}, and so no report.")
    if holds_text(split, trainer.takes[0]):
        raise UserError(
            f"eval_dataset holds text ({', '.join(split.column_names)}), and the trainer's data sets were tokenised "
            "before. Tokenise it as they were."
        )
    rows = trainer._remove_unused_columns(split, "evaluation")
    for name in held(split):  # of the report alone: no model takes it
        if name not in rows.column_names:
            rows = rows.add_column(name, split[name][:])
    rows = by_length(with_length(rows))
    config: Any = base_model(trainer.model).config
    evaluator = evaluator_of(trainer.layout, config, metrics)
    if evaluator.needs_logits and not is_labelled(rows, trainer.layout):
        evaluator = replace(evaluator, names=())  # without labels, only the agreement can be reported
    prepared = Prepared(
        train=rows.select([]),
        eval=rows,
        head=Head(tasks[0].auto_class),
        layout=trainer.layout,
        collator=trainer.data_collator,
        evaluator=evaluator,
        label_names=getattr(evaluator, "label_names", None),
        labelled=False,
    )
    return tasks[0], prepared


# ---- Models ----------------------------------------------------------------------------------------------------------


def _evaluate(trainer: DistillationTrainer, prepared: Prepared, model: Any, name: str, teacher: Any) -> Evaluated:
    """Return a model's predictions with their metrics, and with its agreement with the teacher."""
    tokenizer: Any = trainer.processing_class
    fitter, training = Fitter(prepared, tokenizer), _given(trainer.args)
    if name == "teacher":
        assert trainer.source is not None
        predicting = trainer.source.predicting(prepared.layout)
        predictions, _ = fitter.predict(predicting, training, whose="the teacher")
        predictions = in_students_order(predictions, prepared)
        agreement = 1.0 if prepared.layout.has_classes else None
    else:
        predictions, agreement = fitter.predict(model, training, teacher, f"the {name}")
    texts = prepared.evaluator.generate(model, trainer.args.per_device_eval_batch_size)
    return evaluated(prepared, replace(predictions, texts=texts), agreement)


def _start(trainer: DistillationTrainer, baseline: Any, prepared: Prepared) -> Any:
    """Return the student as it was before training; None if no baseline is wanted.

    Raises:
        UserError: It is not available, or cannot be trained as the student was.
    """
    if baseline is False:
        return None
    if is_stream(trainer.train_dataset):
        raise UserError(
            "a baseline is trained on the labelled rows of train_dataset, which is a stream. Pass baseline=False, or "
            "the rows as a datasets.Dataset."
        )
    if not prepared.labelled:
        raise UserError("a baseline learns from labels, and train_dataset has none. Leave out baseline.")
    if trainer.brings_optimizer:
        raise UserError(
            "the baseline would be trained with another optimizer than the one passed as optimizers=. Pass "
            "optimizer_cls_and_kwargs= to the trainer, or leave out baseline."
        )
    if baseline is True:
        if trainer.model_init is None:
            raise UserError(
                "the student as it was before its training is gone. Wanted: baseline=copy.deepcopy(student), taken "
                "before train(), or the same checkpoint loaded again."
            )
        set_seed(trainer.args.seed)
        return trainer.call_model_init()
    if not isinstance(baseline, nn.Module):
        raise TypeError(f"baseline: wanted a model, True or False, found {describe(baseline)}.")
    if base_model(baseline) is base_model(trainer.model):
        raise UserError("baseline: this is the trained student. Wanted: copy.deepcopy(student), taken before train().")
    return copy.deepcopy(baseline)  # another report may start from it again


def _train_baseline(trainer: DistillationTrainer, start: Any, prepared: Prepared) -> tuple[Any, list[dict[str, Any]]]:
    """Return the student trained without the teacher, on the rows with a label for as many steps, and its history."""
    objectives = (label_objective(trainer.objectives),)
    rows = drawn_from(prepared.train, objectives)
    folder = Path(str(trainer.args.output_dir)) / RUNS / "baseline"
    training = {**_given(trainer.args), "output_dir": str(folder), "push_to_hub": False, "report_to": "none"}
    if not trainer.args.load_best_model_at_end:
        training["save_strategy"] = "no"
    if trainer.state.global_step != trainer.state.max_steps:  # it was stopped early
        training["max_steps"] = trainer.state.global_step
    if len(rows) < len(prepared.train):
        batch = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * parallel.processes()
        training |= same_steps(trainer.state.log_history, training, eval_rows=len(prepared.eval), batch=batch)
    tokenizer: Any = trainer.processing_class
    alone = DistillationTrainer(
        start,
        DistillationArguments(**training),
        objectives=objectives,
        layout=prepared.layout,
        train_dataset=rows,
        eval_dataset=prepared.eval,
        data_collator=prepared.collator,
        processing_class=tokenizer,
        compute_metrics=trainer.compute_metrics,
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        optimizer_cls_and_kwargs=trainer.optimizer_cls_and_kwargs,
    )
    alone.train()
    if alone.is_world_process_zero():
        remove_checkpoints(folder)
    return finished_model(alone), alone.state.log_history


def _given(args: Any) -> dict[str, Any]:
    """Return the training arguments, of any class, that differ from the defaults of `DistillationArguments`."""
    found = {}
    for field in fields(DistillationArguments):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(args, field.name, default)
        if field.init and field.name not in NOT_READ and value != default:
            found[field.name] = value
    return found


def _recipe(trainer: DistillationTrainer, task: Task) -> str:
    """Return what the trainer was given in the form of a recipe, for page and card; its data has no name there."""
    names = {side: getattr(base_model(one), "name_or_path", "") for side, one in (
        ("teacher", trainer.teacher), ("student", trainer.model))}  # fmt: skip
    args = trainer.args
    training = ("output_dir", "num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "seed")
    content = {
        "task": task.name,
        **{side: {"name": "pretrained", "model": name} for side, name in names.items() if name},
        "objectives": objective_entries(trainer.objectives),
        "training": {name: getattr(args, name) for name in training if name != "max_steps" or args.max_steps > 0},
    }
    return to_yaml(content)


def _settings(trainer: DistillationTrainer, prepared: Prepared, histories: Mapping[str, Any]) -> dict[str, Any]:
    args = trainer.args
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    facts = {} if trainer.source is None else dict(trainer.source.facts())
    return {
        "versions": environment(),
        "device": str(args.device),
        "processes": parallel.processes(),
        "precision": f"{precision} (training and metrics); latency in each model's own dtype",
        "train_rows": len(prepared.train),
        "eval_rows": len(prepared.eval),
        **labels_of(prepared),
        "objectives": ", ".join(objective.name for objective in trainer.objectives),
        **({"teacher": facts} if facts else {}),
        **({} if trainer.source is None else about_teacher(trainer.source, finished_model(trainer))),
        **({"training_cost": costs} if (costs := costs_of(histories)) else {}),
    }
