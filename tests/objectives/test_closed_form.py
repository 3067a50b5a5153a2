"""Gradients that are written down: those of the formula, at the edges of float32 too."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from hf_distill.objectives import JensenShannon, closed_form
from hf_distill.rows.base import IMPOSSIBLE, top_class

Loss = Callable[[Tensor, Tensor], Tensor]
ROWS, CLASSES = 5, 11
LABELS = torch.tensor([3, 0, -100, 10, 5])
LOSSES: dict[str, Loss] = {
    "kl": lambda student, teacher: closed_form.kl(student, teacher, 2.0),
    "js": lambda student, teacher: closed_form.jensen_shannon(student, teacher, 2.0, 0.3),
    "labels": lambda student, teacher: closed_form.cross_entropy(student, LABELS),
    "smoothed labels": lambda student, teacher: closed_form.cross_entropy(student, LABELS, 0.2),
}


def by_hand(name: str, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return the values in float64 from the definition, with 0 log 0 = 0."""
    if "labels" in name:
        share = 0.2 if "smoothed" in name else 0.0
        target = np.full(student.shape, share / CLASSES)
        for row, label in enumerate(LABELS.tolist()):
            target[row] = target[row] + (1 - share) * np.eye(CLASSES)[label] if label >= 0 else 0.0
        return -(target * log_softmax(student, -1)).sum(-1)
    log_p, log_q = log_softmax(teacher / 2, -1), log_softmax(student / 2, -1)

    def divergence(log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(np.isneginf(log_a), 0.0, np.exp(log_a) * (log_a - log_b)).sum(-1)

    if name == "kl":
        return divergence(log_p, log_q)
    log_m = np.logaddexp(log_p + math.log(0.3), log_q + math.log(0.7))
    return 0.3 * divergence(log_p, log_m) + 0.7 * divergence(log_q, log_m)


def logits(scale: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = (torch.randn(ROWS, CLASSES, dtype=dtype) * scale for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    """A gradient written down by hand can be that of another loss; nothing but finite differences would say so."""
    student, teacher = logits(2.0)
    np.testing.assert_allclose(
        LOSSES[name](student, teacher).detach(), by_hand(name, student.detach().numpy(), teacher.numpy()), rtol=1e-12
    )
    assert torch.autograd.gradcheck(lambda one: LOSSES[name](one, teacher), student)
    assert LOSSES[name](student, teacher).requires_grad
    with torch.no_grad():
        assert not LOSSES[name](student, teacher).requires_grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1000.0])
def test_float32_at_any_scale(name: str, scale: float) -> None:
    """Probabilities that are 0 in float32 must neither lose the loss nor make NaN of it."""
    student, teacher = logits(scale, torch.float32)
    values = LOSSES[name](student, teacher)
    values.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    wanted = by_hand(name, student.detach().double().numpy(), teacher.double().numpy())
    np.testing.assert_allclose(values.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1000.0])
@pytest.mark.parametrize("impossible", [None, -math.inf, IMPOSSIBLE])
def test_the_form_for_a_compiler(name: str, scale: float, impossible: float | None) -> None:
    """What is traced is written in other operations than what runs eagerly, and would be another loss unseen."""
    found = []
    for way in (nullcontext(), closed_form.traced()):
        student, teacher = logits(scale, torch.float32)
        if impossible is not None and "labels" not in name:
            with torch.no_grad():
                student[:, -2:] = teacher[:, -2:] = impossible
        with way:
            values = LOSSES[name](student, teacher)
        values.sum().backward()
        assert student.grad is not None
        found.append((values.detach(), student.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert LOSSES[name](student, teacher).equal(found[0][0]), "and it is left again"


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("impossible", [-math.inf, IMPOSSIBLE])
def test_a_class_nobody_finds_possible_costs_nothing(name: str, impossible: float) -> None:
    """0 * inf is NaN, in the value and in the gradient: one masked token, and the weights are gone."""
    student, teacher = logits(2.0)
    wanted = by_hand(name, student.detach()[:, :-2].numpy(), teacher[:, :-2].numpy())
    with torch.no_grad():
        student[:, -2:] = teacher[:, -2:] = impossible
    values = LOSSES[name](student, teacher)
    values.sum().backward()
    np.testing.assert_allclose(values.detach(), wanted, rtol=1e-9)
    assert student.grad is not None
    assert student.grad[:, -2:].eq(0).all()
    assert student.grad.isfinite().all()


def test_only_the_teacher_finds_a_class_impossible() -> None:
    """The student may find possible what the teacher does not; the reverse costs infinitely much."""
    student, teacher = logits(2.0)
    teacher[:, 0] = -math.inf
    np.testing.assert_allclose(
        LOSSES["kl"](student, teacher).detach(), by_hand("kl", student.detach().numpy(), teacher.numpy()), rtol=1e-9
    )
    assert closed_form.kl(teacher, student.detach(), 1.0).isposinf().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("whose", [0, 1])
def test_nan_is_not_hidden(name: str, whose: int) -> None:
    """A diverged model must be seen in the loss: what is skipped are products 0 * inf, not NaN in a logit."""
    both = [one.detach().clone() for one in logits(2.0)]
    both[whose][1, 4] = math.nan
    assert LOSSES[name](*both).isnan()[1] == (whose == 0 or "labels" not in name)


def test_equal_models_cost_exactly_nothing() -> None:
    """Rounding must not give a value below 0, which no divergence has."""
    student, _ = logits(30.0, torch.float32)
    assert LOSSES["kl"](student, student.detach()).eq(0).all()
    near = student.detach() + 1e-4 * torch.randn(ROWS, CLASSES)
    assert LOSSES["kl"](near, student.detach()).ge(0).all()
    assert LOSSES["js"](near, student.detach()).ge(0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_buckets(scale: float, temperature: float) -> None:
    """The mass of the others must keep its digits where it is e^-300, and its gradient must reach each of them."""
    student, _ = logits(scale)
    indices = torch.tensor([[0, 7, 3], [1, 2, 3], [10, 9, 0], [4, 5, 6], [8, 0, 2]])
    log_q = log_softmax(student.detach().numpy() / temperature, -1)
    rest = np.array([np.delete(row, kept) for row, kept in zip(log_q, indices.numpy(), strict=True)])
    wanted = np.concatenate((np.take_along_axis(log_q, indices.numpy(), -1), logsumexp(rest, -1)[:, None]), -1)
    made = closed_form.buckets(student, indices, temperature)
    np.testing.assert_allclose(made.detach(), wanted, rtol=1e-12, atol=1e-13)  # logits of some hundreds
    assert torch.autograd.gradcheck(lambda one: closed_form.buckets(one, indices, temperature), student)


@pytest.mark.parametrize("impossible", [-math.inf, IMPOSSIBLE])
@pytest.mark.parametrize("way", [nullcontext, closed_form.traced])
def test_buckets_without_others(impossible: float, way: Callable[[], AbstractContextManager[None]]) -> None:
    """A student that finds impossible all that was not kept: its softmax over the others is 0 / 0, and one such row
    makes every weight NaN; and what the teacher has left there must not be handed to the classes that were kept."""
    student, _ = logits(2.0, torch.float32)
    indices = torch.tensor([[0, 7, 3]]).expand(len(student), 3)
    with torch.no_grad():
        student[:, [one for one in range(student.shape[-1]) if one not in (0, 3, 7)]] = impossible
    with way():
        made = closed_form.buckets(student, indices)
    (made * torch.tensor([0.1, 0.2, 0.3, 0.4])).sum().backward()
    wanted = torch.from_numpy(log_softmax(student.detach().double().numpy()[:, [0, 7, 3]], -1))
    torch.testing.assert_close(made[:, :-1].detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert made.isfinite().all()
    assert student.grad is not None
    share = wanted.exp()
    by_hand = torch.tensor([0.1, 0.2, 0.3]).double() - share
    torch.testing.assert_close(student.grad[:, [0, 7, 3]].double(), by_hand, rtol=1e-5, atol=1e-6)
    assert student.grad.isfinite().all()


def test_classes_drawn_more_than_once() -> None:
    """Who draws from the tail with replacement has a class twice; its mass and its gradient must not be there twice."""
    student, _ = logits(2.0)
    indices = torch.tensor([[0, 7, 7, 3], [1, 1, 1, 1], [10, 9, 0, 10], [4, 5, 6, 7], [8, 0, 2, 0]])
    log_q = log_softmax(student.detach().numpy(), -1)
    rest = [
        math.log(sum(math.exp(x) for i, x in enumerate(row) if i not in kept))
        for row, kept in zip(log_q.tolist(), indices.tolist(), strict=True)
    ]
    wanted = np.concatenate((np.take_along_axis(log_q, indices.numpy(), -1), np.array(rest)[:, None]), -1)
    np.testing.assert_allclose(closed_form.buckets(student, indices).detach(), wanted, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda one: closed_form.buckets(one, indices), student)


@pytest.mark.parametrize("columns", [3, 1023, 1024, 1025, 2000, 4096])
def test_top_class_is_argmax(columns: int) -> None:
    """Looked for block by block: the last columns, past the last whole block, must be looked at too."""
    torch.manual_seed(0)
    drawn = torch.randn(300, columns)
    drawn[0] = 0.0  # all equal
    drawn[1] = IMPOSSIBLE
    drawn[2, -1] = 9.0
    drawn[3, columns // 2] = math.nan
    drawn[4, [1, columns - 1]] = 9.0
    wanted = torch.from_numpy(np.argmax(drawn.numpy(), -1))
    assert torch.equal(top_class(drawn), wanted)
    assert torch.equal(top_class(drawn[:, :-1]), drawn[:, :-1].argmax(-1))


def test_js_under_autocast() -> None:
    """`vecdot` is one of the products that autocast computes in half precision: value and gradient to 3 digits."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 50), torch.randn(4, 50)
    wanted = closed_form.jensen_shannon(student, teacher, 1.0, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = closed_form.jensen_shannon(student, teacher, 1.0, 0.5)
    torch.testing.assert_close(found, wanted)
    assert JensenShannon().rows(student, teacher, torch.zeros(4)).dtype == torch.float32


def test_kl_of_logits_far_from_zero() -> None:
    """GPT-2's logits lie around -100: rounded there, the normalisers cost the small value of near models its digits."""
    torch.manual_seed(0)
    teacher = (3 * torch.randn(64, 1000) - 1000).float()
    student = teacher + 0.01 * torch.randn(64, 1000)
    log_p, log_q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert float((closed_form.kl(student, teacher, 1.0) - exact).abs().max()) < 1e-6
