"""Objectives that compare how the examples of a batch lie to each other."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_distill.errors import UserError
from hf_distill.models.representations import represent
from hf_distill.objectives.base import Comparison
from hf_distill.objectives.pairwise import (
    PairwiseObjective,
    Relational,
    SimilarityPreserving,
    angle_gap,
    both,
    distance_gap,
    similarity_gap,
)
from hf_distill.rows.examples import ExampleRows

BATCH = 5
GAPS = [similarity_gap, distance_gap, angle_gap]
OBJECTIVES: list[PairwiseObjective] = [SimilarityPreserving(), Relational(), Relational(angle_weight=0.0)]


def spaces(batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Return representations of both models, of different widths."""
    chance = torch.Generator().manual_seed(0)
    ours = torch.randn(batch, 4, generator=chance, dtype=torch.float64)
    return ours, 3 * torch.randn(batch, 7, generator=chance, dtype=torch.float64) + 1


def comparison(ours: Tensor, theirs: Tensor, *, examples: int | None = None, **teacher: Any) -> Comparison:
    """Return a batch with these hidden states, `(sequences, tokens, width)`, or one token each."""
    states = [one if one.dim() == 3 else one.unsqueeze(1) for one in (ours, theirs)]
    tokens = torch.ones(states[0].shape[:2], dtype=torch.bool)
    inputs = {"input_ids": tokens.long()[: examples or len(tokens)], **teacher.pop("inputs", {})}
    layout = ExampleRows()
    logits = torch.zeros(examples or len(ours), 2, dtype=torch.float64)
    rows = layout.select(logits, logits, inputs)
    return Comparison(rows, {"hidden_states": (None, states[0])}, {"hidden_states": (states[1],)}, inputs, tokens)


# --- the published values ---------------------------------------------------------------------------------------------


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def published_similarity(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Tung and Mori, as in RepDistiller's SP.py: `(G_diff * G_diff).sum() / (bsz * bsz)`."""
    matrices = []
    for vectors in (ours, theirs):
        products = np.array([[np.dot(a, b) for b in vectors] for a in vectors])
        matrices.append(products / np.sqrt((products**2).sum(1, keepdims=True)))
    return float(((matrices[1] - matrices[0]) ** 2).sum() / len(ours) ** 2)


def published_distances(ours: np.ndarray, theirs: np.ndarray) -> float:
    """RkdDistance: pairwise distances over the mean of the positive ones, smooth_l1 as a mean over all entries."""
    tables = []
    for vectors in (ours, theirs):
        table = np.array([[np.linalg.norm(a - b) for b in vectors] for a in vectors])
        tables.append(table / table[table > 0].mean())
    return float(np.mean([huber(a - b) for a, b in zip(*(table.flat for table in tables), strict=True)]))


def published_angles(ours: np.ndarray, theirs: np.ndarray) -> float:
    """RKdAngle: cosines at every example between the directions to every two, smooth_l1 as a mean over all triples."""

    def cosine(vectors: np.ndarray, at: int, one: int, two: int) -> float:
        a, b = vectors[one] - vectors[at], vectors[two] - vectors[at]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths else 0.0

    triples = list(product(range(len(ours)), repeat=3))
    return float(np.mean([huber(cosine(ours, *triple) - cosine(theirs, *triple)) for triple in triples]))


@pytest.mark.parametrize(
    ("gap", "published"),
    [(similarity_gap, published_similarity), (distance_gap, published_distances), (angle_gap, published_angles)],
)
def test_the_mean_over_pairs_is_the_published_value(gap: Any, published: Any) -> None:
    """Weights such as 3000 or 25 and 50 belong to one way of averaging: with another one they are other weights."""
    ours, theirs = spaces()
    values = gap(ours, theirs)
    assert values.shape == (BATCH,)
    expected = published(ours.numpy(), theirs.numpy())
    assert expected > 0.01
    assert values.sum().item() / (BATCH * (BATCH - 1)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_objectives_over_their_unit_are_the_published_value(objective: PairwiseObjective) -> None:
    """The unit that the trainer divides by must be the one the formula was made for."""
    ours, theirs = spaces()
    batch = comparison(ours, theirs)
    pairs = ExampleRows().units(batch.inputs)["pair"].sum()
    value = (objective.per_example(batch).sum() / pairs).item()
    numpy = ours.numpy(), theirs.numpy()
    if isinstance(objective, Relational):
        expected = 25 * published_distances(*numpy) + objective.angle_weight * published_angles(*numpy)
    else:
        expected = published_similarity(*numpy)
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap", GAPS)
def test_gradient_is_that_of_the_value(gap: Any) -> None:
    """A mean distance taken as a constant, or a clamp, would train something other than what is logged."""
    ours, theirs = spaces()
    assert torch.autograd.gradcheck(lambda vectors: gap(vectors, theirs), ours.requires_grad_())


@pytest.mark.parametrize("gap", GAPS)
def test_zero_in_the_teachers_space_turned_and_scaled(gap: Any) -> None:
    """What is compared are relations: a student that has them all in another basis must not pay."""
    _, theirs = spaces()
    turn, _ = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    ours = (2.5 * theirs @ turn).requires_grad_()
    values = gap(ours, theirs)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), ours)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


# --- batches as they come ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_one_example_costs_nothing(objective: PairwiseObjective) -> None:
    """The last batch of an epoch may be a single example: a mean over no pair is NaN, and then so are all weights."""
    ours, theirs = spaces(1)
    values = objective.per_example(comparison(ours.requires_grad_(), theirs))
    assert values.tolist() == [0.0]
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert not ours.grad.any()


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("ours_equal", [True, False])
def test_equal_examples_have_a_small_gradient(gap: Any, *, ours_equal: bool) -> None:
    """A text that is twice in a batch is at distance 0, where the slope of a square root is infinite."""
    ours, theirs = (space.float() for space in spaces())
    theirs[1] = theirs[0]
    if ours_equal:
        ours[3] = ours[2]
        ours[4] = 0.0
    values = gap(ours.requires_grad_(), theirs)
    values.sum().backward()
    assert values.isfinite().all()
    assert ours.grad is not None
    assert ours.grad.abs().max() < 100


@pytest.mark.parametrize("gap", GAPS)
def test_all_examples_alike(gap: Any) -> None:
    """A student that starts collapsed has no distances to divide by."""
    ours = torch.ones(BATCH, 4, requires_grad=True)
    values = gap(ours, spaces()[1].float())
    values.sum().backward()
    assert values.isfinite().all()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradient_reaches_the_student_only(objective: PairwiseObjective) -> None:
    """A graph into the teacher keeps its activations in memory and, were it not frozen, would move it."""
    ours, theirs = (space.requires_grad_() for space in spaces())
    objective.per_example(comparison(ours, theirs)).sum().backward()  # type: ignore[no-untyped-call]
    assert theirs.grad is None
    assert ours.grad is not None
    assert (ours.grad != 0).any(1).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_half_precision_is_computed_in_float32(objective: PairwiseObjective) -> None:
    """bfloat16 has 3 digits: differences of near examples would be noise. Autocast must not bring it back."""
    ours, theirs = (space.bfloat16() for space in spaces())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = objective.per_example(comparison(ours, theirs))
    assert values.dtype == torch.float32
    exact = objective.per_example(comparison(ours.double(), theirs.double()))
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_several_texts_an_example_are_compared_place_by_place(objective: PairwiseObjective) -> None:
    """A pair's two sentences must not be mixed up with other pairs': all first ones come first in the batch."""
    ours, theirs = spaces(2 * BATCH)
    values = objective.per_example(comparison(ours, theirs, examples=BATCH))
    first = objective.per_example(comparison(ours[:BATCH], theirs[:BATCH]))
    second = objective.per_example(comparison(ours[BATCH:], theirs[BATCH:]))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(values, (first + second) / 2)


# --- representations --------------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]) != 0


@pytest.mark.parametrize(
    ("of", "expected"), [("mean", [(0 + 1 + 2) / 3, (6 + 7) / 2, 9]), ("first", [0, 6, 9]), ("last", [2, 7, 9])]
)
def test_padding_represents_nothing(of: Any, expected: list[float]) -> None:
    """Padded on the left, position 0 is padding, and -1 is on the right: not a fixed place is wanted, but a token."""
    states = torch.arange(12.0).reshape(3, 4, 1)
    states = states.masked_fill(~MASK.unsqueeze(-1), torch.nan).requires_grad_()
    found = represent({"hidden_states": (torch.zeros(3, 4, 1), states)}, MASK, of)
    assert found.squeeze(-1).tolist() == pytest.approx(expected)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_a_teacher_with_its_own_tokenizer_has_its_own_padding() -> None:
    """The teacher's tokens are others, in number too: its mean over the student's mask would be of anything."""
    ours, theirs = torch.ones(2, 3, 4), torch.arange(2 * 5 * 4.0).reshape(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batch = comparison(ours, theirs, inputs={"teacher_input_ids": mask, "teacher_attention_mask": mask})
    _, found = both(batch, "mean")
    torch.testing.assert_close(found, torch.stack((theirs[0].mean(0), theirs[1, :2].mean(0))))


def test_embedding_is_the_sentence_models_own() -> None:
    """A sentence model's answer passes its own pooling; several texts an example come as `(batch, texts, width)`."""
    vectors = torch.arange(12.0).reshape(2, 3, 2)
    found = represent({"sentence_embedding": vectors}, torch.ones(6, 1, dtype=torch.bool), "embedding")
    assert found.tolist() == [vectors[b, t].tolist() for t in range(3) for b in range(2)]
    with pytest.raises(UserError, match="Use mean"):
        represent({"hidden_states": ()}, MASK, "embedding")


def test_states_of_other_tokens_are_refused() -> None:
    """Models that shorten a text would be averaged over a mask of other positions, broadcast or cut."""
    with pytest.raises(UserError, match=r"\(3, 2\) for tokens of \(3, 4\)"):
        represent({"hidden_states": (torch.zeros(3, 2, 1),)}, MASK, "mean")
