"""The best model of a training: `hf_distill/run/best_model.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.recipe.recipe import Recipe
from hf_distill.run.best_model import check_best_metric
from hf_distill.run.dry_run import check
from hf_distill.run.preparation import open_run

WriteRecipe = Callable[..., Path]
BEST = {"load_best_model_at_end": True}
METRIC = "metric_for_best_model"


def told(ask: Callable[[], Any]) -> list[str]:
    """Return what follows file and line in each line that is raised."""
    with pytest.raises(UserError) as caught:
        ask()
    return [line.split(": ", 1)[1] for line in caught.value.mistakes]


@pytest.mark.parametrize(
    ("sections", "name", "said"),
    [
        ({}, "eval_acc", "'acc'. Did you mean 'accuracy'? They have: loss, {both}, agreement, the task's metrics."),
        ({"evaluation": {"metrics": ["f1"]}}, "accuracy", "'accuracy'. They have: loss, {both}, agreement, f1."),
        (
            {"evaluation": {"metrics": ["f1"]}},
            "objective/k",
            "'objective/k'. Did you mean 'objective/kl'? They have: loss, {both}, agreement, f1.",
        ),
    ],
)
def test_a_figure_that_no_evaluation_has_is_refused(
    write_recipe: WriteRecipe, sections: dict[str, Any], name: str, said: str
) -> None:
    """Transformers says it in a KeyError, after the first epoch."""
    recipe = load_recipe(write_recipe(training={**BEST, METRIC: name}, **sections))
    said = said.format(both="objective/kl, objective/labels")
    line = f"training.{METRIC}: evaluations of the student have no {said}"
    assert told(lambda: check(recipe)) == [line]
    assert told(lambda: open_run(recipe, False)) == [line]
    # Without evaluations nothing is looked up.
    check(load_recipe(write_recipe(training={METRIC: name, "eval_strategy": "no"}, **sections)))


def test_what_an_evaluation_has(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A name in the list that no evaluation has would end the run that chose it; one left out could not be chosen."""
    values = tmp_path / "values.json"
    rows = [{"text": "a great film", "label": 0.5}, {"text": "a dull story", "label": 1.5}] * 4
    values.write_text(json.dumps(rows))
    unlabelled = tmp_path / "unlabelled.json"
    unlabelled.write_text(json.dumps([{"text": row["text"]} for row in rows]))
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([{"text": "a great film", "summary": "a film"}] * 8))

    def model(kind: str, **settings: Any) -> dict[str, Any]:
        return {"name": "pretrained", "model": str(make_model(kind, **settings))}

    def data(train: Path, judged: Path) -> dict[str, Any]:
        return {"path": {"train": str(train), "eval": str(judged)}}

    mse = [{"name": "logits_mse"}, {"name": "labels"}]
    regression = {"teacher": model("bert", labels=["score"]), "objectives": mse}
    twice = [{"name": "kl"}, {"name": "kl", "temperature": 3.0}, {"name": "labels"}]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["loss", "objective/kl", "objective/labels", "agreement", "accuracy", "f1", "mcc"]),
        (
            {"data": data(values, values), **regression},
            ["loss", "objective/logits_mse", "objective/labels", "pearson", "spearman", "mse"],
        ),
        ({"data": data(values, unlabelled), **regression}, ["loss", "objective/logits_mse"]),
        (
            {"task": "text-generation", "data": data(texts, texts), "teacher": model("llama-lm"), "objectives": twice},
            ["loss", "objective/kl", "objective/kl_2", "objective/labels", "agreement"],
        ),
        (
            {
                "task": "summarization",
                "data": data(texts, texts),
                "teacher": model("t5"),
                "objectives": twice,
                "evaluation": {"metrics": ["perplexity"]},
            },
            ["loss", "objective/kl", "objective/kl_2", "objective/labels", "agreement"],
        ),
    ]
    for number, (sections, names) in enumerate(cases):
        out = {"output_dir": str(tmp_path / f"out{number}"), **BEST, METRIC: names[-1]}
        recipe = load_recipe(write_recipe(training=out, **sections))
        run = open_run(recipe, False)
        history = run.train_student(run.load_teacher(), 0).history
        (evaluated,) = [log for log in history if "eval_runtime" in log]
        extra = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch", "step"}
        assert set(evaluated) - extra == {f"eval_{name}" for name in names}
        other = replace(recipe, training={**recipe.training, METRIC: "zzz"})
        (line,) = told(lambda other=other, run=run: check_best_metric(other, run.prepared))  # type: ignore[misc]
        assert line.endswith(f"have no 'zzz'. They have: {', '.join(names)}.")


def test_baseline_and_teacher_are_trained_with_it_too(write_recipe: WriteRecipe, make_model: Any) -> None:
    """The baseline has no teacher to agree with: it would fail when the student, after hours, is done."""
    bare = {"name": "finetuned", "model": str(make_model("bert-bare"))}

    def lines(**sections: Any) -> list[str]:
        return told(lambda: check(load_recipe(write_recipe(**sections))))

    shared = {**BEST, METRIC: "eval_agreement"}
    theirs = "They have: loss, objective/labels, the task's metrics."
    assert lines(training=shared, report={"baseline": True}) == [
        f"training.{METRIC}: evaluations of the baseline, trained on labels alone, have no 'agreement'. {theirs}"
    ]
    said = f"evaluations of the teacher, fine-tuned on labels alone, have no 'agreement'. {theirs}"
    assert lines(training=shared, teacher=bare) == [
        f"training.{METRIC}: {said} The teacher can have its own: teacher.training.{METRIC}."
    ]
    check(load_recipe(write_recipe(training=shared, teacher={**bare, "training": {METRIC: "loss"}})))
    cached = {"name": "cached", "teacher": {**bare, "training": shared}}
    assert lines(teacher=cached) == [f"teacher.teacher.training.{METRIC}: {said}"]
    stages = [{"objectives": [{"name": "hidden"}]}, {"objectives": [{"name": "labels"}], "training": {METRIC: "kl"}}]
    assert lines(objectives=None, stages=stages, training={METRIC: "objective/hidden"}) == [
        f"stages[1].training.{METRIC}: evaluations of the student have no 'kl'. They have: loss, objective/labels, "
        "agreement, the task's metrics."
    ]


def test_without_labels_there_may_be_no_loss(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The best by its loss is the default; the baseline's is of labels alone, which the eval split has not."""
    judged = tmp_path / "judged.csv"
    judged.write_text("sentence\na great film\na dull story\n")
    recipe = load_recipe(write_recipe(training=BEST, report={"baseline": True}))
    data = replace(recipe.data, path={**recipe.data.path, "validation": str(judged)})  # type: ignore[dict-item]
    (line,) = told(lambda: open_run(replace(recipe, data=data), False))
    assert line.startswith(
        "training.load_best_model_at_end: evaluations of the baseline, trained on labels alone, have"
    )


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"eval_strategy": "steps", "save_strategy": "epoch", **BEST},
            "training.save_strategy: load_best_model_at_end can only load a model "
            "that was saved when it was evaluated, but "
            "save_strategy is epoch and eval_strategy is steps. Make them the same, or set save_strategy: best.",
        ),
        (
            {"eval_strategy": "steps", **BEST},
            "training.eval_strategy: load_best_model_at_end can only load a model "
            "that was saved when it was evaluated, but "
            "save_strategy is epoch and eval_strategy is steps. Make them the same, or set save_strategy: best.",
        ),
        (
            {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 3, **BEST},
            "training.save_steps: load_best_model_at_end can only load a model "
            "that was saved when it was evaluated, but the model is evaluated every 2 steps and saved every 3 steps. "
            "Make save_steps a multiple of eval_steps, both in steps or both as shares.",
        ),
        (
            {"eval_strategy": "steps", "save_strategy": "steps", **BEST},
            "training.save_steps: load_best_model_at_end can only load a model "
            "that was saved when it was evaluated, but the "
            "model is evaluated every 0.02 of the training and saved every 500 steps. Make save_steps a multiple of "
            "eval_steps, both in steps or both as shares.",
        ),
        (
            {"save_strategy": "best"},
            "training.save_strategy: best, but no metric says which model is best: add metric_for_best_model, such as "
            "loss.",
        ),
    ],
)
def test_what_is_not_saved_cannot_be_loaded(write_recipe: WriteRecipe, training: dict[str, Any], said: str) -> None:
    """`--check` let it pass, and a run said it with `IntervalStrategy.STEPS`."""
    recipe = load_recipe(write_recipe(training=training))
    assert told(lambda: check(recipe)) == [said]
    assert told(lambda: open_run(recipe, False)) == [said]


@pytest.mark.parametrize("strategy", ["no", "epoch", "steps", "best"])
@pytest.mark.parametrize("judged", ["no", "epoch", "steps"])
@pytest.mark.parametrize("every", [{}, {"eval_steps": 2, "save_steps": 4}, {"eval_steps": 0.1, "save_steps": 0.3}])
def test_what_transformers_takes_is_taken(
    tmp_path: Path, write_recipe: WriteRecipe, judged: str, strategy: str, every: dict[str, Any]
) -> None:
    """A rule that is stricter than Transformers' would refuse recipes that run; a laxer one would say nothing."""
    from hf_distill import DistillationArguments
    from hf_distill.run.best_model import check_saving
    from hf_distill.run.training_defaults import TRAINING_DEFAULTS

    given = {"eval_strategy": judged, "save_strategy": strategy, **every, **BEST}
    recipe: Recipe = load_recipe(write_recipe(training=given))
    try:
        DistillationArguments(**{**TRAINING_DEFAULTS, **given, "output_dir": str(tmp_path)})
    except ValueError:
        with pytest.raises(UserError):
            check_saving(recipe)
    else:
        check_saving(recipe)


@pytest.mark.parametrize(
    ("name", "greater"),
    [
        ("loss", False),
        ("objective/kl", False),
        ("eval_objective/labels", False),
        ("mse", False),
        ("hamming_loss", False),
        ("evaluate/wer", False),
        ("accuracy", True),
        ("eval_agreement", True),
    ],
)
def test_the_best_is_the_lowest_where_less_is_better(tmp_path: Path, name: str, greater: bool) -> None:
    """Transformers takes all that does not end in `loss` for better when greater: it would load the worst model."""
    from hf_distill import DistillationArguments

    given: dict[str, Any] = {"output_dir": str(tmp_path), METRIC: name}
    assert DistillationArguments(**given).greater_is_better is greater
    assert DistillationArguments(**given, greater_is_better=not greater).greater_is_better is not greater
