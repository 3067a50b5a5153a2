"""Losses of one's own: a subclass with a `compute_loss`, and objectives that return what they must not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from invariants.cases import NotingTrainer, Record, make_trainer, split, train
from runs import run
from torch import Tensor

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives import Comparison, Labels, Objective, RowObjective

WriteRecipe = Callable[..., Path]


class FromATutorial(NotingTrainer):
    """What somebody who moves here has."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss of the labels alone."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


class WithATerm(NotingTrainer):
    """Adds a term to the loss of the objectives."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of the objectives and a penalty of large logits."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = loss + 0.01 * outputs["logits"].square().sum()
        return (loss, outputs) if return_outputs else loss


class WithAPenalty(NotingTrainer):
    """Adds a penalty of large weights, half as much of the objectives, and nothing else."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return half of the loss of the objectives and the penalty."""
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return 0.5 * loss + 0.01 * penalty(model) / self.args.gradient_accumulation_steps


class WithoutCounts(NotingTrainer):
    """Does not pass on what it is given."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss of the objectives, as for a batch of its own."""
        return super().compute_loss(model, inputs)


def penalty(model: Any) -> Tensor:
    return sum((weight.square().sum() for weight in model.parameters()), torch.zeros(()))


def subclass(kind: str, cls: type[NotingTrainer], directory: Path, **settings: Any) -> NotingTrainer:
    trainer = make_trainer(kind, directory, max_steps=2, **settings)
    trainer.__class__ = cls
    return trainer


def first(record: Record) -> dict[str, Tensor]:
    return record.gradients[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_without_the_teacher_is_refused(steps: int, tmp_path: Path) -> None:
    """It trained on the labels alone and logged `objective/kl 0`: the best match there can be."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": steps}
    trainer = subclass("classification", FromATutorial, tmp_path, **settings)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=r"never calls DistillationTrainer\.compute_loss.*objective.*super\(\)"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize("batch", [8, 4])
def test_a_term_is_added(batch: int, tmp_path: Path) -> None:
    """Logits without their graph would put the term into the logged loss, and nothing of it into the gradient."""
    plain = train(make_trainer("classification", tmp_path, max_steps=2, **split(batch)))
    trainer = subclass("classification", WithATerm, tmp_path, **split(batch))
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    batches = trainer.get_train_dataloader()
    seen = [dict(one) for _, one in zip(range(8 // batch), batches, strict=False)]
    added = train(trainer)
    model = trainer.model
    model.load_state_dict({**model.state_dict(), **weights})
    model.zero_grad()
    value = torch.zeros((), dtype=torch.float64)
    for one in seen:
        out = model(**{key: one[key] for key in ("input_ids", "attention_mask") if key in one})
        value = value + 0.01 * out.logits.square().sum()
    value.backward()
    assert added.logs[0]["loss"] - plain.logs[0]["loss"] == pytest.approx(value.item(), rel=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(first(added)[name] - first(plain)[name], weight.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("batch", [8, 2])
def test_a_penalty_beside_a_loss_in_chunks(batch: int, tmp_path: Path) -> None:
    """The gradient of a vocabulary is taken in the forward pass: a factor in front of the loss must still reach it."""
    plain = train(make_trainer("causal-lm", tmp_path, max_steps=2, **split(batch)))
    trainer = subclass("causal-lm", WithAPenalty, tmp_path, **split(batch))
    value = 0.01 * penalty(trainer.model)
    value.backward()
    wanted = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    added = train(trainer)
    assert added.logs[0]["loss"] == pytest.approx(0.5 * plain.logs[0]["loss"] + value.item(), rel=1e-5)
    for name, gradient in wanted.items():
        expected = 0.5 * first(plain)[name] + gradient
        torch.testing.assert_close(first(added)[name], expected, rtol=1e-9, atol=1e-12)


def test_counts_must_be_passed_on(tmp_path: Path) -> None:
    """Every micro-batch would weigh as a whole step: gradients that are larger by the number of them."""
    train(subclass("classification", WithoutCounts, tmp_path, **split(8)))
    with pytest.raises(UserError, match=r"without num_items_in_batch.*over 2 micro-batches"):
        subclass("classification", WithoutCounts, tmp_path, **split(4)).train()


# ---- Objectives ------------------------------------------------------------------------------------------------------


@component
class Faulty(RowObjective):
    """Returns what `how` says."""

    name: ClassVar[str] = "faulty"

    how: str = "mean"

    def rows(self, student: Tensor, teacher: Any, labels: Tensor) -> Tensor:
        """See `RowObjective.rows`."""
        losses = (student - teacher).abs().mean(-1)
        if self.how == "raises":
            losses = losses @ torch.ones(3, 3, 3)
        made: dict[str, Any] = {
            "mean": losses.mean,
            "classes": lambda: student,
            "number": lambda: float(losses.sum()),
            "integer": losses.long,
            "detached": losses.detach,
            "nothing": lambda: None,
            "raises": lambda: losses,
        }
        found: Tensor = made[self.how]()
        return found


@component
class FaultyExamples(Objective):
    """Returns what `how` says, for the examples of a batch."""

    name: ClassVar[str] = "faulty_examples"

    how: str = "mean"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        losses = comparison.student["logits"].square().flatten(1).sum(-1)
        found: Tensor = {"mean": losses.mean(), "detached": losses.detach(), "long": losses.long()}[self.how]
        return found


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("mean", r"found \(\)\. Do not average"),
        ("classes", r"shape \(\d+,\); found \(\d+, \d+\)"),
        ("number", "found float"),
        ("nothing", "found NoneType"),
        ("integer", r"found torch\.int64\. Wanted floating point"),
        ("detached", "without a gradient to the student"),
        ("raises", r"RuntimeError: .*\(.*test_own_loss\.py:\d+\)"),
    ],
)
def test_rows_that_are_not_wanted(kind: str, how: str, said: str, tmp_path: Path) -> None:
    """A mean is divided once more, a detached loss teaches nothing, and a traceback of autograd says neither."""
    trainer = make_trainer(kind, tmp_path, terms=[Faulty(how=how), Labels()], max_steps=1, **split(4))
    with pytest.raises(UserError, match=f"^objective 'faulty': .*{said}"):
        trainer.train()


@pytest.mark.parametrize(
    ("how", "said"), [("mean", "found"), ("detached", "without a gradient"), ("long", "Wanted floating point")]
)
def test_sums_of_examples_that_are_not_wanted(how: str, said: str, tmp_path: Path) -> None:
    """Likewise for objectives on more than logits."""
    trainer = make_trainer("classification", tmp_path, terms=[FaultyExamples(how=how)], max_steps=1, **split(4))
    with pytest.raises(UserError, match=f"^objective 'faulty_examples': per_example must .*{said}"):
        trainer.train()


def test_a_recipe_says_the_same(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistake in a loss of one's own ends a run as every other mistake: one line, status 2."""
    from hf_distill.cli import main

    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "faulty_beside.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    path = write_recipe(objectives=[{"name": "faulty_beside:Faulty", "how": "detached"}], training={"max_steps": 1})
    with pytest.raises(UserError, match=r"objective .faulty.*without a gradient"):
        run(path)
    assert main([str(path)]) == 2
