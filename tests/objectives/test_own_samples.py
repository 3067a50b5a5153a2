"""Divergences on texts that the student wrote: what each estimate is on average, by enumeration over five tokens.

The numbers are worked out by hand for `p` (teacher) and `q` (student) below; everything is computed in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import OBJECTIVES, JensenShannon, KLDivergence, ReverseKL, RowObjective, SampledReverseKL
from hf_distill.objectives.softened import Softened
from hf_distill.rows.base import Rows, SparseRows

P = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
Q = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
# A student that has left what the teacher finds likely.
LEFT = torch.tensor([0.06, 0.02, 0.4, 0.3, 0.22], dtype=torch.float64)
TOKENS = torch.arange(5)
NO_LABELS = torch.full((5,), IGNORED)
OF_REVERSE_KL = torch.tensor([-0.05913, -0.13795, -0.06863, 0.06354, 0.20217], dtype=torch.float64)


def each_token(objective: RowObjective, teacher: Any = None) -> tuple[Tensor, Tensor]:
    """Return value and gradient by the logits for every token that may be drawn, `(5,)` and `(5, 5)`."""
    student = Q.log().expand(5, 5).clone().requires_grad_()
    given = P.log().expand(5, 5) if teacher is None else teacher
    written = {"written": TOKENS} if objective.written else {}
    values = objective.rows(student, given, NO_LABELS, **written)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def moments(values: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over the draws."""
    mean = (Q * values).sum()
    return mean.item(), (Q * (values - mean).square()).sum().sqrt().item()


ESTIMATES = {
    "k1": (0.28087, 0.8321, torch.zeros(5, dtype=torch.float64)),
    "k2": (0.38561, 0.7803, OF_REVERSE_KL),
    "k3": (0.28087, 0.4584, Q - P),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_estimates_that_others_differentiate(name: str) -> None:
    """A right value says nothing of the gradient: k1's is 0, and k3's is that of the forward divergence."""
    logits = Q.log().clone().requires_grad_()
    gap = logits.log_softmax(-1) - P.log()
    values = {"k1": gap, "k2": gap.square() / 2, "k3": (-gap).exp() - 1 + gap}[name]
    mean, deviation, gradient = ESTIMATES[name]
    assert moments(values.detach()) == pytest.approx((mean, deviation), abs=6e-5)
    (found,) = torch.autograd.grad((Q * values).sum(), logits)
    torch.testing.assert_close(found, gradient, atol=6e-6, rtol=0)


def test_the_policy_gradient_is_that_of_the_reverse_kl() -> None:
    """`reverse_kl_sampled` differentiated as it is valued would be k1, whose gradient ignores the teacher."""
    values, gradients = each_token(SampledReverseKL())
    assert moments(values) == pytest.approx((0.28087, 0.8321), abs=6e-5)
    torch.testing.assert_close(Q @ gradients, OF_REVERSE_KL, atol=6e-6, rtol=0)
    whole, exact = each_token(ReverseKL())
    assert whole[0].item() == pytest.approx(0.28087, abs=6e-6)
    torch.testing.assert_close(Q @ gradients, exact[0])
    assert (Q @ gradients.square().sum(-1)).item() == pytest.approx(0.9055, abs=6e-5)
    assert exact[0].square().sum().item() == pytest.approx(0.0721, abs=6e-5)


@pytest.mark.parametrize(
    ("objective", "value"), [(KLDivergence(), 0.23957), (ReverseKL(), 0.28087), (JensenShannon(), 0.05896)]
)
def test_the_exact_divergences(objective: RowObjective, value: float) -> None:
    """The whole vocabulary gives value and gradient without a draw; a wrong direction would be one of the others."""
    values, gradients = each_token(objective)
    assert values.tolist() == pytest.approx([value] * 5, abs=6e-6)
    if isinstance(objective, KLDivergence):
        torch.testing.assert_close(gradients[0], Q - P)


@pytest.mark.parametrize("top", [1, 2, 4, 5])
def test_classes_compared_exactly_and_the_rest_by_the_draw(top: int) -> None:
    """A part counted twice, or a derivative left out on one side, would train towards another student."""
    values, gradients = each_token(SampledReverseKL(top=top))
    _, exact = each_token(ReverseKL())
    mean, deviation = moments(values)
    assert mean == pytest.approx(0.28087, abs=6e-6)
    torch.testing.assert_close(Q @ gradients, exact[0])
    _, alone = each_token(SampledReverseKL())
    assert Q @ gradients.square().sum(-1) <= Q @ alone.square().sum(-1)
    if top == 5:
        assert deviation == pytest.approx(0)
    # A teacher that gives its likeliest tokens and the one that was written is the same teacher.
    sparse = SparseRows.of(P.log().expand(5, 5), top)
    given = SparseRows(sparse.indices, sparse.log_probabilities, sparse.remaining, written=P.log())
    again, theirs = each_token(SampledReverseKL(top=top), given)
    torch.testing.assert_close((again, theirs), (values, gradients))


def test_one_number_a_token() -> None:
    """A served teacher may give the token's own log-probability alone; the loss must be that of the live teacher."""
    nothing = torch.zeros(5, 0, dtype=torch.long), torch.zeros(5, 0, dtype=torch.float64)
    given = SparseRows(*nothing, torch.zeros(5, dtype=torch.float64), written=P.log())
    torch.testing.assert_close(each_token(SampledReverseKL(), given), each_token(SampledReverseKL()))
    rows = Rows(Q.log().expand(5, 5), given, NO_LABELS, torch.arange(5), 5, written=TOKENS)
    assert rows.agreement().tolist() == [0] * 5
    assert torch.isfinite(rows.extremes()).all()


@pytest.mark.parametrize("top", [0, 2])
def test_a_token_of_the_data_costs_nothing(top: int) -> None:
    """On a token that the student did not draw the estimate is of no divergence, whatever the teacher says there."""
    student = Q.log().expand(2, 5).clone().requires_grad_()
    teacher = torch.stack((P.log(), torch.full((5,), -torch.inf, dtype=torch.float64)))
    rows = Rows(
        student, teacher[:1].expand(2, 5), NO_LABELS[:2], torch.tensor([0, 0]), 1, written=torch.tensor([3, IGNORED])
    )
    objective = SampledReverseKL(top=top)
    alone = objective.rows(student[:1], teacher[:1], NO_LABELS[:1], torch.tensor([3]))
    torch.testing.assert_close(objective.sums(rows), alone)
    (gradient,) = torch.autograd.grad(objective.sums(rows).sum(), student)
    assert (gradient[1] == 0).all()
    assert objective.sums(Rows(student, teacher, NO_LABELS[:2], torch.tensor([0, 0]), 1)).item() == 0


def test_tokens_that_only_the_student_has() -> None:
    """Numbered as in the student's vocabulary, the token drawn would be another one among those that both have."""
    shared = torch.tensor([0, 2, 3])
    teacher = P[shared].log().expand(3, 3)
    student = Q.log().expand(3, 5)
    rows = Rows(
        student, teacher, NO_LABELS[:3], torch.arange(3), 3, shared=shared, written=torch.tensor([3, 1, IGNORED])
    )
    p, q = P[shared] / P[shared].sum(), Q[shared] / Q[shared].sum()
    assert SampledReverseKL().sums(rows).tolist() == pytest.approx([(q[2] / p[2]).log().item(), 0, 0])


# --- the teacher's two likeliest tokens -------------------------------------------------------------------------------


def bucket(objective: RowObjective, q: Tensor) -> float:
    sparse: Any = SparseRows.of(P.log()[None], 2)
    return objective.rows(q.log()[None], sparse, NO_LABELS[:1]).item()


def test_the_bucket_and_what_others_do() -> None:
    """Raw sums fall below 0, and renormalised ones do not see a student that has left: the bucket sees most of it."""
    assert bucket(KLDivergence(), Q) == pytest.approx(0.15733, abs=6e-6)
    assert bucket(ReverseKL(), Q) == pytest.approx(0.12117, abs=6e-6)
    assert bucket(ReverseKL(), LEFT) == pytest.approx(1.22259, abs=6e-6)
    full = ReverseKL().rows(LEFT.log()[None], P.log()[None], NO_LABELS[:1]).item()
    assert full == pytest.approx(1.49546, abs=6e-6)
    p, q, left = P[:2], Q[:2], LEFT[:2]

    def kl(a: Tensor, b: Tensor) -> float:
        return (a * (a / b).log()).sum().item()

    assert (kl(p, q), kl(q, p), kl(left, p)) == pytest.approx((0.23842, -0.00047, -0.18138), abs=6e-6)
    of_p, of_q, of_left = p / p.sum(), q / q.sum(), left / left.sum()
    found = (kl(of_p, of_q), kl(of_q, of_p), kl(of_left, of_p), kl(of_p, q))
    assert found == pytest.approx((0.16450, 0.13286, 0.03537, 0.52117), abs=6e-6)


def divergences() -> list[Softened]:
    """Return the divergences that take a sparse teacher; cross-entropy is another thing."""
    every = [kind() for kind in OBJECTIVES.values() if issubclass(kind, Softened) and kind.takes_sparse]
    return [one for one in every if one.name != "soft_cross_entropy"]


@pytest.mark.parametrize("objective", divergences(), ids=lambda one: one.name)
def test_a_sparse_divergence_is_at_least_0_and_at_most_the_dense_one(objective: Softened) -> None:
    """A loss below 0 is minimised by a student that leaves the classes compared: the collapse that others report."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0, 20.0):
        student, teacher = torch.randn(2, 200, 30, generator=generator, dtype=torch.float64) * scale
        labels = torch.full((200,), IGNORED)
        dense = objective.rows(student, teacher, labels)
        for top in (1, 4, 29):
            sparse: Any = SparseRows.of(teacher, top)
            values = objective.rows(student, sparse, labels)
            assert (values >= -1e-12).all()
            assert (values <= dense + 1e-9 * (1 + dense)).all()


# --- TRL --------------------------------------------------------------------------------------------------------------

BETA = {0.0: KLDivergence, 0.1: lambda **given: JensenShannon(teacher_share=0.1, **given), 1.0: ReverseKL}


@pytest.mark.parametrize("beta", BETA)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_numbers_of_trl(beta: float, temperature: float) -> None:
    """Who comes from GKDTrainer or DistillationTrainer must find the same loss on the same texts, divided by tokens."""
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    chunked = pytest.importorskip("trl.trainer.distillation_trainer")._chunked_divergence_loss
    generator = torch.Generator().manual_seed(0)
    hidden, theirs = torch.randn(2, 3, 6, 8, generator=generator)
    heads = torch.randn(2, 40, 8, generator=generator)
    labels = torch.where(torch.rand(3, 6, generator=generator) < 0.3, IGNORED, 1)
    objective = BETA[beta](temperature=temperature, temperature_squared=False)
    student, teacher = (hidden @ heads[0].T).requires_grad_(), theirs @ heads[1].T
    kept = labels != IGNORED
    ours = objective.rows(student[kept], teacher[kept], labels[kept]).mean()
    (mine,) = torch.autograd.grad(ours, student)
    whole = gkd(student, teacher, labels, beta, temperature, num_items_in_batch=int(kept.sum()))
    (other,) = torch.autograd.grad(whole, student)
    torch.testing.assert_close((ours, mine), (whole, other), rtol=1e-5, atol=1e-6)
    loss, _, count = chunked(hidden, theirs, *heads, kept.long(), beta, temperature=temperature)
    assert int(count) == int(kept.sum())
    torch.testing.assert_close(loss, ours, rtol=1e-5, atol=1e-6)
