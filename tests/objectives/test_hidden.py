"""Objectives on hidden states and attention: the published numbers for each."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from features import LENGTHS, Pair, make_pair
from torch import Tensor

from hf_distill.objectives import Attention, Embeddings, Hidden, Hint, Objective, Patient
from hf_distill.objectives.base import Term

Array = np.ndarray[Any, Any]


def outputs(pair: Pair, term: Term, kind: str) -> tuple[list[Array], list[Array]]:
    comparison = pair.compare(term, pair.inputs)
    mine, theirs = (
        [layer.detach().numpy() for layer in output[kind]] for output in (comparison.student, comparison.teacher or {})
    )
    return mine, theirs


def weights(term: Any) -> list[Array]:
    return [projection.weight.detach().numpy() for projection in term.projections]


def by_tokens(loss: Any) -> list[float]:
    """Return the sum over the tokens of every example that are no padding."""
    return [sum(float(loss(example, token)) for token in range(length)) for example, length in enumerate(LENGTHS)]


def normalized(state: Array) -> Array:
    result: Array = (state - state.mean()) / np.sqrt(state.var() + 1e-5)
    return result


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def squared(a: Array, b: Array) -> float:
    return float(((a - b) ** 2).mean())


@pytest.mark.parametrize(
    ("objective", "pairs", "loss"),
    [
        (Hidden(), [(1, 2), (2, 4)], squared),
        (Hidden(layers=((2, 1), (0, 0), (2, 3))), [(2, 1), (0, 0), (2, 3)], squared),
        (Hidden(loss="cosine", layers="last"), [(2, 4)], lambda a, b: 1 - cosine(a, b)),
        (Hidden(normalize=True), [(1, 2), (2, 4)], lambda a, b: squared(normalized(a), normalized(b))),
        (Embeddings(), [(0, 0)], squared),
        (Hint(), [(1, 2)], squared),
    ],
    ids=["uniform", "pairs", "cosine", "normalized", "embeddings", "hint"],
)
def test_hidden_states_by_hand(objective: Objective, pairs: list[tuple[int, int]], loss: Any) -> None:
    """Mean over the width and over layers, sum over tokens, each pair through a projection of its own."""
    pair = make_pair("bert")
    term = pair.prepare(objective)
    mine, theirs = outputs(pair, term, "hidden_states")
    matrices = weights(term)
    assert [matrix.shape for matrix in matrices] == [(16, 8)] * len(pairs)

    def at(example: int, token: int) -> float:
        found = [
            loss(matrix @ mine[i][example, token], theirs[j][example, token])
            for matrix, (i, j) in zip(matrices, pairs, strict=True)
        ]
        return sum(found) / len(found)

    np.testing.assert_allclose(pair.losses(term).detach(), by_tokens(at), rtol=1e-9)
    assert objective.unit == "token"


def test_equal_widths_have_no_projection_unless_it_is_wanted() -> None:
    """A random matrix in the way would undo what a student copied from its teacher knows already."""
    pair = make_pair("bert", hidden_size=16)
    for objective, count in (
        (Hidden(), 0),
        (Embeddings(), 0),
        (Patient(), 0),
        (Hint(), 1),
        (Hidden(projection="always"), 2),
    ):
        term: Any = pair.prepare(objective)
        assert len(term.projections) == count, objective
        assert len(list(term.state_dict())) == count
    term = pair.prepare(Hidden())
    mine, theirs = outputs(pair, term, "hidden_states")
    wanted = by_tokens(
        lambda e, t: (squared(mine[1][e, t], theirs[2][e, t]) + squared(mine[2][e, t], theirs[4][e, t])) / 2
    )
    np.testing.assert_allclose(pair.losses(term).detach(), wanted, rtol=1e-9)


def test_projections_start_within_glorots_bound() -> None:
    """As documented; zeros would give the student no gradient, and large ones nothing but theirs."""
    term: Any = make_pair("bert").prepare(Hidden())
    for matrix in weights(term):
        assert np.abs(matrix).max() <= math.sqrt(6 / (8 + 16))
        assert np.abs(matrix).max() > 0.9 * math.sqrt(6 / (8 + 16))


@pytest.mark.parametrize("token", ["first", "last"])
def test_patient_by_hand(token: Any) -> None:
    """The paper's sum over the width of squared differences of unit vectors, of one token an example: not the mean of
    the authors' code, which is as many times smaller as states are wide."""
    pair = make_pair("bert", num_hidden_layers=3)
    term = pair.prepare(Patient(token=token))
    mine, theirs = outputs(pair, term, "hidden_states")
    wanted = []
    for example, length in enumerate(LENGTHS):
        at = 0 if token == "first" else length - 1
        gaps = []
        for matrix, (i, j) in zip(weights(term), [(1, 1), (2, 3)], strict=True):
            a, b = matrix @ mine[i][example, at], theirs[j][example, at]
            gaps.append(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum())
            assert gaps[-1] == pytest.approx(2 - 2 * cosine(a, b))
        wanted.append(sum(gaps) / 2)
    np.testing.assert_allclose(pair.losses(term).detach(), wanted, rtol=1e-9)
    assert Patient().unit == "example"


def test_patient_finds_the_first_token_after_padding_on_the_left() -> None:
    """Position 0 is padding there, of which the states are nobody's."""
    pair = make_pair("bert")
    term = pair.prepare(Patient(layers="last"))
    comparison = pair.compare(term, pair.inputs)
    mask = comparison.tokens.flip(1)
    found: Any = term
    assert found.positions(dataclasses.replace(comparison, tokens=mask)).mask.int().argmax(1).tolist() == [0, 3, 6, 1]


# --- attention --------------------------------------------------------------------------------------------------------


def attention_by_hand(objective: Attention, mine: list[Array], theirs: list[Array]) -> list[float]:
    def gap(mine: Array, theirs: Array, length: int) -> float:
        if objective.compare == "kl":
            return float(scipy.stats.entropy(theirs[:length], mine[:length]))
        return float(((theirs - mine) ** 2).sum() / length)

    def at(example: int, token: int) -> float:
        losses = []
        for i, j in ((1, 2), (2, 4)):
            a, b = mine[i - 1][example, :, token], theirs[j - 1][example, :, token]  # (heads, keys)
            if objective.heads == "mean":
                losses.append(gap(a.mean(0), b.mean(0), LENGTHS[example]))
            else:
                groups = [(b[2 * head] + b[2 * head + 1]) / 2 for head in range(2)]
                losses.append(sum(gap(a[head], groups[head], LENGTHS[example]) for head in range(2)) / 2)
        return sum(losses) / 2

    return by_tokens(at)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("compare", ["kl", "mse"])
@pytest.mark.parametrize("heads", ["groups", "mean"])
def test_attention_by_hand(kind: str, compare: Any, heads: Any) -> None:
    """Direction, heads, layers and the divisor; over the padded length, `mse` would depend on the neighbours."""
    objective = Attention(compare=compare, heads=heads)
    pair = make_pair(kind)
    term = pair.prepare(objective)
    wanted = attention_by_hand(objective, *outputs(pair, term, "attentions"))
    np.testing.assert_allclose(pair.losses(term).detach(), wanted, rtol=1e-6 if kind == "llama" else 1e-9)
    assert min(wanted) >= 0
    assert max(wanted) > 0.01


DROPPING: dict[str, dict[str, float]] = {
    "bert": {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0},
    "distilbert": {"attention_dropout": 0.5, "dropout": 0.0},
    "llama": {"attention_dropout": 0.5},
    "t5": {"dropout_rate": 0.5},
}


@pytest.mark.parametrize("kind", DROPPING)
@pytest.mark.parametrize("compare", ["kl", "mse"])
def test_dropout_is_not_in_the_maps(kind: str, compare: Any) -> None:
    """Transformers returns attention after dropout: for a teacher's 0.5 on a dropped 0 the divergence is 40 and more,
    and a student equal to its teacher would be told to change."""
    pair = make_pair(kind, **DROPPING[kind])
    # The first layer: what goes into the others has been through its dropout.
    term = pair.prepare(Attention(compare=compare, layers=((1, 2),), part="encoder" if kind == "t5" else None))
    still = pair.losses(term)
    pair.student.train()
    if kind == "t5":  # one rate for all; that of attention is no module
        for module in pair.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    output = pair.compare(term, pair.inputs).student
    maps: Tensor = output["encoder_attentions" if kind == "t5" else "attentions"][0]
    assert (maps[0].tril() == 0).sum() > (torch.ones_like(maps[0]).tril() == 0).sum()
    torch.testing.assert_close(pair.losses(term), still, rtol=1e-6, atol=1e-9)
    pair.losses(term).sum().backward()
    gradients = [one.grad for one in pair.student.parameters() if one.grad is not None]
    assert any(bool((gradient != 0).any()) for gradient in gradients)


def test_kl_of_a_probability_that_underflows_is_finite() -> None:
    """In float32 a score 104 below the highest is a probability of 0, and its logarithm the end of the training."""
    pair = make_pair("bert", num_hidden_layers=4, hidden_size=16, num_attention_heads=4)
    term: Any = pair.prepare(Attention(compare="kl"))
    student = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    loss = term.compare(0, student, torch.tensor([[[0.5, 0.5]]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.5 * math.log(0.5) * 2 - 0.5 * math.log(torch.finfo(torch.float32).tiny))
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    same = term.compare(0, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
    assert same.item() == 0.0
