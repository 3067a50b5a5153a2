"""Training arguments where a recipe says nothing, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import KL_AND_LABELS, WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.data.section import Data
from hf_distill.recipe.recipe import Recipe, Stage
from hf_distill.run.dry_run import check
from hf_distill.run.training_defaults import sampling_remark, training_defaults
from hf_distill.tasks import TASKS

SAID = "batches group examples of similar length"
RELATIONAL = {"name": "relational"}


def recipe_of(task: Any, *stages: Stage, **training: Any) -> Recipe:
    from hf_distill.objectives import KLDivergence
    from hf_distill.students import CopyLayers
    from hf_distill.teachers import PretrainedTeacher

    return Recipe(
        task=task,
        data=Data(path="data"),
        teacher=PretrainedTeacher(model="teacher"),
        student=CopyLayers(layers=1),
        objectives=() if stages else (KLDivergence(),),
        stages=stages,
        training={"output_dir": "out", **training},
    )


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_of_like_length_in_all_tasks_but_one(name: str) -> None:
    """Half of a batch of texts of any length is padding, which both models read in every step."""
    recipe = recipe_of(TASKS[name]())
    grouped = name != "text-generation"
    assert training_defaults(recipe).get("train_sampling_strategy") == ("group_by_length" if grouped else None)
    said = sampling_remark(recipe)
    assert said is None if not grouped else said is not None and said.startswith(SAID) and len(said) < 100


def test_a_recipe_of_its_own_order_is_told_nothing() -> None:
    """A remark about a default that does not hold would contradict the recipe."""
    from hf_distill.objectives import KLDivergence

    task = TASKS["text-classification"]()
    kl = (KLDivergence(),)
    for strategy in ("random", "sequential", "group_by_length"):
        own = {"train_sampling_strategy": strategy}
        assert sampling_remark(recipe_of(task, **own)) is None
        assert sampling_remark(recipe_of(task, Stage(objectives=kl, training=own))) is None
        some = recipe_of(task, Stage(objectives=kl, training=own), Stage(objectives=kl))
        assert str(sampling_remark(some)).startswith(SAID)


def test_examples_that_are_compared_with_each_other_are_of_all_lengths(write_recipe: WriteRecipe) -> None:
    """Among texts of like length, "which of these is nearest" is another question, and asked by nobody."""
    plan = check(load_recipe(write_recipe(objectives=[*KL_AND_LABELS, RELATIONAL])))
    assert SAID not in plan
    assert "batches hold examples of any length (train_sampling_strategy: random, though group_by_length is" in plan
    plan = check(load_recipe(write_recipe()))
    assert plan.count(SAID) == 1


def orders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list to which every training adds its directory and the kind of its sampler."""
    from hf_distill.trainer import DistillationTrainer

    seen: list[tuple[str, str]] = []
    real = DistillationTrainer._get_train_sampler

    def noting(self: Any, *args: Any) -> Any:
        sampler = real(self, *args)
        seen.append((Path(self.args.output_dir).parts[-2], type(sampler).__name__))
        return sampler

    monkeypatch.setattr(DistillationTrainer, "_get_train_sampler", noting)
    return seen


@pytest.mark.parametrize(
    ("objective", "training", "kinds"),
    [
        (KL_AND_LABELS[0], {}, ["EpochLengthGroupedSampler"] * 5),
        (KL_AND_LABELS[0], {"train_sampling_strategy": "random"}, ["RandomSampler"] * 5),
        (RELATIONAL, {}, ["EpochLengthGroupedSampler", *["RandomSampler"] * 4]),
    ],
    ids=["default", "as the recipe says", "compared with each other"],
)
def test_all_trainings_of_a_student_have_one_order(
    objective: Any, training: Any, kinds: list[str], write_recipe: WriteRecipe, make_model: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A baseline in another order than the student's would win or lose by that; a stage that was forgotten is slow."""
    seen = orders(monkeypatch)
    labels = {"objectives": [KL_AND_LABELS[1]], "training": {"num_train_epochs": 1}}
    run(
        write_recipe(
            teacher={"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"num_train_epochs": 1}},
            objectives=None,
            stages=[{"objectives": [objective]}, labels],
            training=training,
            report={"latency": False, "baseline": True},
        )
    )
    assert [kind for _, kind in seen] == kinds
    assert seen[0][0] == "_teacher"
    assert (SAID in capsys.readouterr().out) == (kinds[-1] == "EpochLengthGroupedSampler")


def test_a_stage_may_have_its_own_order(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage says goes before a default of the run."""
    seen = orders(monkeypatch)
    own = {"objectives": [KL_AND_LABELS[1]], "training": {"train_sampling_strategy": "random"}}
    run(write_recipe(objectives=None, stages=[{"objectives": [KL_AND_LABELS[0]]}, own]))
    assert [kind for _, kind in seen] == ["EpochLengthGroupedSampler", "RandomSampler"]


def test_what_a_student_learns_from_does_not_change_how_its_teacher_is_trained() -> None:
    """Two objectives would be compared under two teachers, and the second run would fine-tune its teacher anew."""
    from hf_distill.objectives import KLDivergence, Relational
    from hf_distill.run.training_defaults import fine_tuning
    from hf_distill.teachers.base import FineTuning

    task, how = TASKS["text-classification"](), FineTuning({"num_train_epochs": 2})
    found = []
    for objective in (KLDivergence(), Relational()):
        recipe = recipe_of(task, Stage(objectives=(objective,)))
        found.append(fine_tuning(recipe, {**training_defaults(recipe), **recipe.training}, how))
    assert found[0] == found[1]
    assert found[0]["train_sampling_strategy"] == "group_by_length"
    own = recipe_of(task, train_sampling_strategy="random")
    assert fine_tuning(own, own.training, how)["train_sampling_strategy"] == "random"
