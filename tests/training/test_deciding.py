"""What a finished training is found by: `hf_distill/training/deciding.py`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run, same, weights

from hf_distill.training.deciding import NEVER, WHERE_EVALUATED, deciding
from hf_distill.training_args import DistillationArguments

NAMES = [one.name for one in fields(DistillationArguments)]


def test_what_is_left_out_is_what_transformers_has() -> None:
    """A name that is misspelt, or gone from Transformers, would not be noticed otherwise."""
    assert set(NAMES) >= NEVER | WHERE_EVALUATED
    assert not NEVER & WHERE_EVALUATED


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER | WHERE_EVALUATED])
def test_all_else_counts(name: str) -> None:
    """A prefix left out `eval_steps`, and with it what decided which model was the best: another run's was reused."""
    assert deciding({name: 7}) == {name: 7}  # no default is 7


def test_a_default_that_is_written_decides_nothing() -> None:
    """The seed of the first generation, which is written, had a shared teacher trained again, to the same weights."""
    assert deciding({"seed": 42, "learning_rate": 5e-5, "max_grad_norm": 1.0, "bf16": False, "output_dir": "x"}) == {}
    assert deciding({"seed": 43}) == {"seed": 43}


def test_an_argument_of_a_later_transformers_counts() -> None:
    """It may decide what is computed; trained twice is better than the wrong model."""
    assert deciding({"eval_magic": 1, "save_magic": 2, "output_dir": "x"}) == {"eval_magic": 1, "save_magic": 2}


@pytest.mark.parametrize(
    "listens",
    [{"load_best_model_at_end": True}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {"lr_scheduler_type": "greedy"}],
)
def test_when_it_is_evaluated_counts_where_evaluations_decide(listens: dict[str, Any]) -> None:
    """With other evaluations another checkpoint is the best, or the learning rate falls at another step."""
    training = {"eval_steps": 5, "save_steps": 5, "eval_strategy": "steps", "output_dir": "x", "hub_model_id": "y"}
    assert deciding(training) == {}
    assert deciding({**training, **listens}).keys() == {"eval_steps", "save_steps", "eval_strategy", *listens}


def test_evaluating_does_not_change_what_is_trained(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Every evaluation drew from the generator of the dropout: the more often one looked, the other the student."""

    def trained(name: str, **training: Any) -> dict[str, Any]:
        run(write_recipe(training={"output_dir": str(tmp_path / name), **training}))
        return weights(tmp_path / name)

    without = trained("without", eval_strategy="no", save_strategy="no")
    often = trained("often", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=3, logging_steps=1)
    assert same(without, often)


def test_a_shared_teacher_is_the_one_that_was_asked_for(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """With `load_best_model_at_end` and other `eval_steps` the other run's teacher was found finished, in silence."""
    teacher = {
        "name": "finetuned",
        "model": str(make_model("bert-bare", layers=2)),
        "output_dir": str(tmp_path / "teachers"),
    }

    def teachers(name: str, **training: Any) -> int:
        strategies = {"eval_strategy": "steps", "save_strategy": "steps"}
        training = {"output_dir": str(tmp_path / name), **strategies, **training}
        run(write_recipe(teacher=teacher, student={"name": "copy_layers", "layers": 1}, training=training))
        return len([folder for folder in (tmp_path / "teachers").iterdir() if folder.is_dir()])

    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    assert teachers("a", eval_steps=2, save_steps=2, **best) == 1
    assert teachers("b", eval_steps=4, save_steps=4, **best) == 2
    assert teachers("c", eval_steps=2, save_steps=2, **best) == 2
    assert teachers("d", eval_steps=4, save_steps=4) == 3
    assert teachers("e", eval_steps=2, save_steps=2) == 3
