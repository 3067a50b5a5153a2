"""Optimal brain damage: second derivatives against other ways to compute them, and zeros that stay zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from calibration_cases import CASES, measured_task
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.models.calibration import CalibrationRows
from hf_distill.rows.examples import ExampleRows
from hf_distill.students import OptimalBrainDamage
from hf_distill.students.freezing import freeze
from hf_distill.students.optimal_brain_damage.curvature import directions, increase, second_derivatives
from hf_distill.students.optimal_brain_damage.neurons import Neurons
from hf_distill.students.optimal_brain_damage.weights import Prunable, delete_lowest, saliencies


def of_inputs(inputs: Tensor, *, classes: bool = True) -> Any:
    """Return calibration rows that are vectors, which a module reads."""

    def predicted(model: nn.Module, count: int, **_: Any) -> Iterator[Tensor]:
        return (model(row.unsqueeze(0)) for row in inputs[:count])

    return SimpleNamespace(predicted=predicted, layout=SimpleNamespace(has_classes=classes))


def measured(module: Any, rows: Any, count: int = 1000) -> Tensor:
    (found,) = second_derivatives(module, [module.weight], rows, count)
    return found


@pytest.mark.parametrize("classes", [2, 4, None])
def test_they_are_those_of_the_hessian_where_the_model_is_linear(classes: int | None) -> None:
    """The Gauss-Newton matrix of a model that is linear in its weights is the Hessian, whatever the labels are: a wrong
    factor for a class, or for squared errors, would change which weights go.
    """
    torch.manual_seed(0)
    inputs = torch.randn(7, 3, dtype=torch.double)
    linear = nn.Linear(3, classes or 1, dtype=torch.double)
    labels = torch.randint(classes, (7,)) if classes else torch.randn(7, 1, dtype=torch.double)

    def loss(weight: Tensor) -> Tensor:
        logits = F.linear(inputs, weight, linear.bias)
        return F.cross_entropy(logits, labels) if classes else F.mse_loss(logits, labels)

    hessian = torch.autograd.functional.hessian(loss, linear.weight.detach())  # type: ignore[no-untyped-call]
    expected = hessian.flatten(0, 1).flatten(1).diagonal().view_as(linear.weight)
    torch.testing.assert_close(measured(linear, of_inputs(inputs, classes=classes is not None)), expected)


def test_they_are_those_of_the_gauss_newton_matrix_of_a_transformer(make_model: Any) -> None:
    """Padding, dropout or a weight that is used at every token would make another matrix of it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        make_model("bert", layers=2, labels=("bad", "good", "odd")), dtype=torch.float64
    )
    texts = [[2, 7, 8, 9, 3], [2, 9, 3]]
    rows = CalibrationRows(
        Dataset.from_dict({"input_ids": texts}),
        lambda some: {"input_ids": torch.tensor([one["input_ids"] for one in some])},
        2,
        False,
        ExampleRows(width=3),
    )
    weights = Prunable.of(model)
    assert len(weights.named) == 12
    found = dict(zip(weights.named, second_derivatives(model.train(), weights.weights, rows, 2), strict=True))
    assert model.training
    model.eval()
    for name in ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.dense.weight"):
        expected = torch.zeros_like(weights.named[name])
        for ids in texts:

            def logits(weight: Tensor, name: str = name, ids: list[int] = ids) -> Tensor:
                out: Tensor = torch.func.functional_call(model, {name: weight}, (torch.tensor([ids]),)).logits[0]
                return out

            weight = weights.named[name].detach()
            jacobian = torch.func.jacrev(logits)(weight).flatten(1)
            p = logits(weight).softmax(-1)
            matrix = jacobian.T @ (p.diag() - p.outer(p)) @ jacobian / 2
            expected += matrix.diagonal().view_as(expected)
        torch.testing.assert_close(found[name], expected)


def test_random_signs_are_right_on_average() -> None:
    """For a vocabulary one random combination stands for all classes: a bias would rank weights wrongly."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.double) * 2
    logits[0, -1] = -1e30  # not a class of this row
    p = logits.softmax(-1)
    expected = torch.block_diag(*(one.diag() - one.outer(one) for one in p))
    signs = torch.Generator().manual_seed(1)
    drawn = torch.stack([next(directions(logits, True, signs)).flatten() for _ in range(20_000)])
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, atol=5e-3, rtol=0)
    (only,) = directions(logits[:1, :2], True, signs)
    two = logits[0, :2].softmax(-1)
    torch.testing.assert_close(only.T @ only, two.diag() - two.outer(two))


def test_the_loss_grows_as_predicted_and_less_than_by_magnitude() -> None:
    """At a minimum the sum of the saliencies is what deletion costs; that is the reason not to delete small weights."""
    torch.manual_seed(0)
    scales = torch.logspace(-1.5, 1.5, 20, dtype=torch.double)  # of the inputs: a small weight may matter
    inputs = torch.randn(2000, 20, dtype=torch.double) * scales
    linear = nn.Linear(20, 2, dtype=torch.double)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 20, dtype=torch.double) / scales)
    labels = torch.distributions.Categorical(logits=linear(inputs).detach()).sample()  # type: ignore[no-untyped-call]

    def loss() -> Tensor:
        return F.cross_entropy(linear(inputs), labels)

    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    least, found = float(loss().detach()), measured(linear, of_inputs(inputs))
    (saliency,), trained = saliencies([linear.weight], [found]), linear.weight.detach().clone()

    def increase(ranking: Tensor) -> tuple[float, float]:
        predicted = delete_lowest([linear.weight], [ranking], 8)
        grown = float(loss().detach()) - least
        with torch.no_grad():
            linear.weight.copy_(trained)
        return grown, predicted

    grown, predicted = increase(saliency)
    by_magnitude, _ = increase(trained.abs())
    assert predicted == pytest.approx(grown, rel=0.25)
    assert grown < by_magnitude / 2


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_every_task_has_second_derivatives(task: str, kind: str, make_model: Any) -> None:
    """A task whose outputs were not found, or all of derivative zero, would delete weights in the order they come."""
    teacher, head, rows = measured_task(task, kind, make_model)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    model, facts = OptimalBrainDamage(ratio=0.5, rows=3).made(teacher, head, rows)
    again, _ = OptimalBrainDamage(ratio=0.5, rows=3).made(teacher, head, rows)
    assert all(weight.equal(before[name]) for name, weight in teacher.state_dict().items())
    assert all(weight.equal(again.state_dict()[name]) for name, weight in model.state_dict().items())
    zeros = Prunable.of(model).zeros()
    assert zeros.number == zeros.total // 2
    for grown in facts["increase of the loss in the first round"].values():
        assert 0 < grown < float("inf")
    state = torch.get_rng_state()
    assert Prunable.of(model).delete(0.5, rows, 3) == 0.0
    assert Prunable.of(model).zeros() == zeros
    assert state.equal(torch.get_rng_state())
    for logits in rows.predicted(model, 4):
        assert logits.isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama-lm"])
def test_a_model_without_its_deleted_neurons_computes_the_same(kind: str, make_model: Any) -> None:
    """A column or a bias of another neuron that went would be a slightly worse model, and nobody would see why."""
    task = "text-generation" if kind.endswith("lm") else "text-classification"
    teacher, head, rows = measured_task(task, kind, make_model)
    masked, facts = OptimalBrainDamage(ratio=0.3, by="neuron", rounds=2, rows=3).made(teacher, head, rows)
    neurons = Neurons.of(masked)
    neurons.delete(0.3, rows, 3)
    assert facts["neurons of each layer"] == "64 before, 45 after"
    assert str(neurons.zeros()) == "76 of 256 neurons (29.7 %)"
    narrow = neurons.removed(0.3)
    assert narrow.num_parameters() < masked.num_parameters()
    for ours, theirs in zip(rows.predicted(narrow, 4), rows.predicted(masked.eval(), 4), strict=True):
        torch.testing.assert_close(ours, theirs)
    at_once, _ = OptimalBrainDamage(ratio=0.3, by="neuron", rows=3).made(teacher, head, rows)
    assert at_once.num_parameters() == narrow.num_parameters()
    config = OptimalBrainDamage(ratio=0.3, by="neuron").config(teacher.config)
    assert config.to_diff_dict() == at_once.config.to_diff_dict()


@pytest.mark.parametrize("classes", [3, None])
def test_what_is_measured_is_what_is_predicted(classes: int | None) -> None:
    """Report and card show both numbers side by side: they must be of the same loss. A small change of a weight costs
    what its second derivative says.
    """
    torch.manual_seed(0)
    inputs = torch.randn(50, 4, dtype=torch.double)
    linear = nn.Linear(4, classes or 1, dtype=torch.double)
    rows, before = of_inputs(inputs, classes=classes is not None), copy.deepcopy(linear)
    derivative = measured(linear, rows)[0, 1]
    with torch.no_grad():
        linear.weight[0, 1] += 1e-3
    found = increase(before, linear, rows, 50)  # type: ignore[arg-type]
    assert found == pytest.approx(float(derivative) * 1e-6 / 2, rel=1e-3)


def test_a_finished_training_is_said_to_have_as_many_zeros_as_before(make_model: Any) -> None:
    """Nothing is frozen in a model that is loaded: its frozen layers would count among those that could be deleted."""
    from transformers import AutoModelForSequenceClassification

    rows: Any = None
    hooks = OptimalBrainDamage(ratio=0.5, freeze=["layers.0"]).hooks(rows)
    trained, loaded = (AutoModelForSequenceClassification.from_pretrained(make_model("bert")) for _ in range(2))
    assert hooks.outcome(loaded) == hooks.outcome(freeze(trained, ["layers.0"]))
