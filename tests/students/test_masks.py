"""Runs of optimal brain damage: deleted weights stay zero, whatever happens to the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import two_processes
from runs import WriteRecipe, run, same, weights
from transformers import AutoModelForSequenceClassification

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.files.ownership import RUNS
from hf_distill.run.dry_run import check
from hf_distill.students.optimal_brain_damage.masks import Masks, shares_of, steps_of
from hf_distill.students.optimal_brain_damage.weights import Prunable
from hf_distill.trainer import DistillationTrainer

ENTRY = {"name": "optimal_brain_damage", "ratio": 0.6, "rounds": 3, "rows": 8}
# 8 optimiser steps: rounds before the first, after the second and after the fourth.
TRAINING: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "weight_decay": 0.1,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 3,
}


def zeros(directory: Path) -> float:
    number, total, _ = Prunable.of(AutoModelForSequenceClassification.from_pretrained(directory)).zeros()
    return number / total


class Dead(Exception):
    """What stands for a power cut."""


def test_a_run_that_dies_between_rounds_ends_with_the_same_weights(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that was lost, or a round that was left out or made twice after a resume, would show only in the weights:
    more of them, or other ones, than asked for.
    """

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(self.args.output_dir) == out and self.state.global_step == 4:
            raise Dead
        return step(self, *args, **kwargs)

    both = {"latency": False, "baseline": True}
    report = run(write_recipe(student=ENTRY, training={**TRAINING, "output_dir": str(tmp_path / "whole")}, report=both))
    out, step = tmp_path / "out", DistillationTrainer.training_step
    path = write_recipe(student=ENTRY, training=TRAINING, report={"latency": False, "baseline": False})
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", die)
        with pytest.raises(Dead):
            run(path)
    assert (out / "checkpoint-3" / "trainer_state.json").exists()
    run(path)
    assert same(weights(tmp_path / "whole"), weights(out))
    for place in (out, tmp_path / "whole" / RUNS / "baseline"):
        assert zeros(place) == pytest.approx(0.6, abs=1e-4)
    facts = report.settings["student"]
    assert facts["zero after"].endswith("weights (60.0 %)")
    assert facts["increase of the loss in the first round"]["predicted"] > 0


def test_processes_delete_the_same_weights(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Each process with zeros of its own would train another model; accumulated gradients must be masked too."""
    entry = {**ENTRY, "freeze": ["embeddings", "layers.0"]}
    two = write_recipe(
        student=entry,
        training={**TRAINING, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8},
        report={"latency": False, "baseline": False},
    )
    two_processes(lambda: run(two, "training.use_cpu=true") and None, tmp_path / "results")
    found = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(found)
    assert not (model.bert.encoder.layer[0].output.dense.weight == 0).any(), "a frozen layer stays whole"
    model.bert.encoder.layer[0].requires_grad_(False)
    number, total, _ = Prunable.of(model).zeros()
    assert number / total == pytest.approx(0.6, abs=1e-4)


def test_the_best_model_is_one_with_all_zeros(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A checkpoint from before the last round has more weights, is mostly better, and is not what was asked for. A next
    stage starts with the zeros of the one before and deletes nothing.
    """
    # Of these losses the highest is one of the first, or the test says nothing.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    best |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": None}
    stages = [
        {"objectives": [{"name": "kl"}], "training": best},
        {"objectives": [{"name": "labels"}], "training": {"save_strategy": "no"}},
    ]
    report = {"latency": False, "baseline": False}
    training = {**TRAINING, "bf16": True}
    found = run(write_recipe(student=ENTRY, training=training, objectives=None, stages=stages, report=report))
    assert found.best["student"].evaluations == 5  # of steps 4 to 8, the last round being after step 4
    assert found.best["student"].step >= 4
    first, last = weights(tmp_path / "out" / RUNS / "student-stage-1"), weights(tmp_path / "out")
    assert zeros(tmp_path / "out" / RUNS / "student-stage-1") == pytest.approx(0.6, abs=1e-4)
    assert all(last[name].eq(0).equal(weight.eq(0)) for name, weight in first.items() if "dense.weight" in name)


def test_ratio_0_changes_nothing(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Not a bit: neither the weights that are copied, nor the order of random numbers, nor a step."""
    report = {"latency": False, "baseline": False}
    run(write_recipe(student={**ENTRY, "ratio": 0.0}, report=report))
    other = str(tmp_path / "other")
    run(write_recipe(student={"name": "copy_layers", "layers": 4}, report=report, training={"output_dir": other}))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "other"))


def test_momentum_does_not_bring_a_weight_back() -> None:
    """Adam goes on moving a weight whose gradient is zero, and a clipped norm counts gradients of deleted weights."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = torch.optim.Adam([weight], lr=0.1)

    def delete(share: float) -> None:
        weight.data[0] = 0.0

    masks: Any = Masks([weight], [0.3], delete)
    state: Any = type("State", (), {"max_steps": 4, "global_step": 0, "best_metric": 1.0, "log_history": []})()
    masks.on_train_begin(None, state, None)
    for _ in range(4):
        optimizer.zero_grad()
        weight.square().sum().backward()  # type: ignore[no-untyped-call]
        masks.on_pre_optimizer_step(None, state, None)
        optimizer.step()
        masks.on_optimizer_step(None, state, None)
        state.global_step += 1
        masks.on_step_end(None, state, None)
    assert weight.data[0] == 0
    assert weight.data[1] not in (0, 2)
    assert state.best_metric is None
    optimizer.zero_grad()
    (weight + 1).square().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad[0] == 0
    masks.on_train_end(None, state, None)


def test_rounds_are_in_the_first_half() -> None:
    """The last round needs training after it, and each round a step of its own."""
    assert steps_of(2, 100) == [25, 50]
    assert steps_of(3, 4) == [1, 2, 3]
    assert steps_of(0, 100) == []
    shares = shares_of(0.5, 4)
    assert shares == sorted(shares)
    assert shares[-1] == 0.5
    assert shares_of(0.3, 1) == [0.3]


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"ratio": 1.0}, "student.ratio", "everything"),
        ({"ratio": 0.9999999}, "student.ratio", "0.9999999 would delete all"),
        ({"ratio": -0.1}, "student.ratio", "0"),
        ({"rounds": 0}, "student.rounds", "1"),
        ({"freeze": ["layers.0-3"]}, "student.freeze", "nothing"),
        ({"freeze": ["layers.1"], "by": "neuron"}, "student.freeze", "same number"),
        ({"ratio": 0.999, "by": "neuron"}, "student.ratio", "all 64 neurons"),
        ({"rounds": 30}, "student.rounds", "30 rounds"),
    ],
)
def test_what_cannot_be_deleted(changes: dict[str, Any], key: str, said: str, write_recipe: WriteRecipe) -> None:
    """Everything would leave a model that predicts the same for all texts, after hours."""
    path = write_recipe(student={**ENTRY, **changes})
    for how in (run, lambda one: check(load_recipe(one))):
        with pytest.raises(UserError) as caught:
            how(path)
        assert key in str(caught.value)
        assert said in str(caught.value)
        assert path.name in str(caught.value) or key != "student.rounds"  # the line of the recipe


def test_deleted_neurons_are_gone_at_the_end(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A next stage, or a run that finds the training finished, would delete neurons a second time, or look for a model
    that is as wide as before.
    """
    stages = [{"objectives": [{"name": "kl"}]}, {"objectives": [{"name": "labels"}], "training": {"max_steps": 2}}]
    path = write_recipe(
        student={**ENTRY, "by": "neuron", "rounds": 2},
        training={**TRAINING, "num_train_epochs": 1},
        objectives=None,
        stages=stages,
        report={"latency": False, "baseline": True},
    )
    report = run(path)
    again = run(path)
    for place in (tmp_path / "out", tmp_path / "out" / RUNS / "student-stage-1", tmp_path / "out" / RUNS / "baseline"):
        model = AutoModelForSequenceClassification.from_pretrained(place)
        assert model.config.intermediate_size == 26  # 64 without 60 %
        assert model.bert.encoder.layer[3].output.dense.weight.shape == (32, 26)
        assert not (model.bert.encoder.layer[3].output.dense.weight == 0).any()
    assert report.settings["student"]["neurons of each layer"] == "64 before, 26 after"
    assert again.student.metrics == report.student.metrics
    assert again.baseline.metrics == report.baseline.metrics
