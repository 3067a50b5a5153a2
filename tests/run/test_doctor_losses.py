"""`hf-distill doctor`: the objectives' gradients and values when training starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import WriteRecipe
from torch.nn import functional as F

from hf_distill import load_recipe
from hf_distill.run.doctor import gradients, targets, values
from hf_distill.run.doctor.examination import findings
from hf_distill.run.doctor.opened import Opened
from hf_distill.run.doctor.table import CHECKS

FULL = {"name": "copy_layers", "layers": 4}  # every layer of the teacher: the student is the teacher


def opened(path: Path) -> Opened:
    return Opened(load_recipe(path), path.parent / "scratch")


def by_hand(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of kl at temperature 2 and of labels, flat, from the models' logits; dropout is off."""
    student, teacher = trainer.model, trainer.teacher
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    logits = student(**inputs).logits
    with torch.no_grad():
        targets = F.softmax(teacher(**inputs).logits / 2, -1)
    kl = 4 * F.kl_div(F.log_softmax(logits / 2, -1), targets, reduction="batchmean")
    found = []
    for loss in (kl, F.cross_entropy(logits, batch["labels"])):
        each = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
        found.append(torch.cat([one.reshape(-1) for one in each if one is not None]).double())
    return found[0], found[1]


def test_gradients_are_those_of_the_loss(write_recipe: WriteRecipe) -> None:
    """A gradient of something else than the trainer's loss would give weights that balance nothing."""
    objectives = [{"name": "kl", "temperature": 2.0, "weight": 0.5}, {"name": "labels", "weight": 3.0}]
    trainer = opened(write_recipe(objectives=objectives)).new_trainer()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = gradients.batches_of(trainer, 1)
    terms, cosines = gradients.measure(trainer, batches)
    kl, labels = by_hand(trainer, batches[0])
    assert [one.norm for one in terms] == pytest.approx([kl.norm().item(), labels.norm().item()], rel=1e-4)
    assert [one.weighted for one in terms] == pytest.approx([kl.norm().item() / 2, 3 * labels.norm().item()], rel=1e-4)
    assert cosines["kl", "labels"] == pytest.approx(torch.dot(kl / kl.norm(), labels / labels.norm()).item(), abs=1e-4)


def test_a_term_that_drowns_the_others_is_named_with_the_weight_that_balances(write_recipe: WriteRecipe) -> None:
    """Users report KD terms 100 to 1000 times smaller than the LM term: the student then learns from labels alone."""
    objectives = [{"name": "kl", "temperature": 2.0, "weight": 0.001}, {"name": "labels", "weight": 3.0}]
    found = findings("gradients", gradients.gradients, opened(write_recipe(objectives=objectives)))
    (warning,) = [one for one in found if one.status == "warning"]
    assert warning.advice.startswith("objectives[0].weight: ")
    balanced = float(warning.advice.split()[1])
    assert balanced > 0.03
    assert found[-1].figures["kl_gradient_norm"] * balanced / 0.001 == pytest.approx(
        found[-1].figures["labels_gradient_norm"], rel=0.01
    )
    objectives[0]["weight"] = balanced
    again = findings("gradients", gradients.gradients, opened(write_recipe(objectives=objectives)))
    assert [one.status for one in again] == ["ok"]


def test_an_objective_that_reaches_no_trained_parameter_is_a_mistake(
    write_recipe: WriteRecipe, make_model: Any
) -> None:
    """Its weight takes its part of the loss, its value never moves, and the curves look like a student that cannot."""
    student = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=5)), "freeze": ["embeddings"]}
    path = write_recipe(objectives=[{"name": "embeddings"}, {"name": "labels"}], student=student)
    found = findings("gradients", gradients.gradients, opened(path))
    assert [(one.status, "embeddings has no gradient" in one.found) for one in found] == [
        ("mistake", True),
        ("ok", False),
    ]


def test_values_at_the_start_and_at_the_teacher(write_recipe: WriteRecipe) -> None:
    """For kl the teacher is 0 away from itself; for labels it is its cross-entropy; for soft targets their entropy."""
    objectives = [{"name": "kl"}, {"name": "soft_cross_entropy"}, {"name": "labels"}]
    run = opened(write_recipe(objectives=objectives))
    figures = {name: value for one in values.values(run) for name, value in one.figures.items()}
    trainer = run.new_trainer()
    logits, labels = [], []
    with torch.no_grad():
        for batch in gradients.batches_of(trainer, values.BATCHES):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
            logits.append(trainer.teacher(**inputs).logits.double())
            labels.append(batch["labels"])
    log_p = F.log_softmax(torch.cat(logits), -1)
    assert figures["kl_floor"] == pytest.approx(0, abs=1e-6)
    assert figures["soft_cross_entropy_floor"] == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), rel=1e-4)
    assert figures["labels_floor"] == pytest.approx(F.nll_loss(log_p, torch.cat(labels)).item(), rel=1e-4)
    assert figures["kl_start"] > 0
    assert figures["soft_cross_entropy_gap"] == pytest.approx(figures["kl_start"], rel=0.02)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(write_recipe: WriteRecipe) -> None:
    """A week of training that starts at its end looks like a perfect run."""
    run = opened(write_recipe(objectives=[{"name": "kl"}], student=FULL))
    assert [one.status for one in findings("start", values.values, run)] == ["warning"]
    copy = gradients.TermGradient("kl", weight=1.0, norm=0.0, value=0.0)  # without dropout, its gradient is 0 too
    assert [one.status for one in gradients.judge([copy], {}, ["objectives[0].weight"])] == ["warning"]


def test_a_teacher_that_is_not_trained_yet_is_no_measure(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Against a head of random weights, every ratio of gradients is an accident, and a false alarm."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"num_train_epochs": 1}}
    run = opened(write_recipe(teacher=teacher))
    assert [one.status for one in findings("gradients", gradients.gradients, run)] == ["skipped"]
    assert [one.status for one in findings("start", values.values, run)] == ["skipped"]


def test_values_that_are_not_finite_are_a_mistake(write_recipe: WriteRecipe) -> None:
    """NaN is neither larger nor smaller than a bound: every check would call it right, and the run stops in step 1."""
    held = opened(write_recipe(objectives=[{"name": "kl", "temperature": 2.0}, {"name": "labels"}]))
    with torch.no_grad():
        held.teacher.model.classifier.weight[0] = torch.nan
    for check in ("start", "gradients", "targets"):
        found = [one for one in findings(check, CHECKS[check], held) if one.status != "ok"]
        assert {one.status for one in found} == {"mistake"}, found
        assert all("NaN" in one.found + one.advice for one in found)
    assert [one.status for one in gradients.judge([gradients.TermGradient("kl", 1.0, torch.nan, 0.5)], {}, ["a"])] == [
        "mistake"
    ]
    none = gradients.TermGradient("kl", 1.0, torch.nan, torch.nan, batches=0)
    assert [one.status for one in gradients.judge([none], {}, ["a"])] == ["skipped"]


def test_targets_are_found_wherever_they_are() -> None:
    """Two times nothing is equal: the check would say OK of a teacher whose hidden states alone are compared."""
    rows, states = SimpleNamespace(teacher=None), (torch.zeros(2), torch.ones(2))
    found: Any = targets._numbers
    assert len(found(SimpleNamespace(rows=rows, teacher={"hidden_states": states}))) == 2
    assert found(SimpleNamespace(rows=rows, teacher=None)) == []


def test_micro_batches_by_tokens_are_looked_at(write_recipe: WriteRecipe) -> None:
    """With `max_tokens_per_batch` rows come unpadded: a check that expects tensors calls a sound recipe a mistake."""
    recipe = write_recipe(training={"max_tokens_per_batch": 64}, objectives=[{"name": "kl", "temperature": 2.0}])
    held = opened(recipe)
    for check in ("targets", "start", "gradients", "memory", "speed"):
        found = findings(check, CHECKS[check], held)
        assert {one.status for one in found} <= {"ok", "warning"}, found
