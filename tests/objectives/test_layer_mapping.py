"""Which layers are paired: published mappings, and similarity measured as it is defined."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from features import Pair, make_pair

from hf_distill import UserError
from hf_distill.objectives import Attention, Hidden
from hf_distill.objectives.feature_terms import FeatureTerm
from hf_distill.objectives.layer_mapping import TOKENS, Similarity, best_in_order, layer_pairs, linear_cka

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    ("choice", "student", "teacher", "wanted"),
    [
        # TinyBERT 4 of 12: every third, the last with the last.
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("uniform", 4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        ("uniform", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("uniform", 4, 1, [(1, 1), (2, 1), (3, 1), (4, 1)]),
        ("last", 6, 12, [(6, 12)]),
        ("middle", 6, 12, [(3, 6)]),
        ("middle", 1, 3, [(1, 2)]),
        # PKD-skip and PKD-last, 6 of 12: the teacher's 2, 4, 6, 8, 10 and 7 to 11.
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("tail", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        (((0, 0), (2, 12)), 2, 12, [(0, 0), (2, 12)]),
    ],
)
def test_mappings_are_the_published_ones(choice: Any, student: int, teacher: int, wanted: list[Any]) -> None:
    """One layer off compares states that were never meant for each other, and the loss still falls."""
    assert layer_pairs(choice, student, teacher) == tuple(wanted)


def test_a_rule_that_leaves_nothing_is_refused() -> None:
    """The mean over no layers is NaN."""
    for choice in ("skip", "tail"):
        with pytest.raises(UserError, match="leaves out the student's last layer, and it has no other"):
            layer_pairs(choice, 1, 12)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])
def test_index_0_is_the_output_of_the_embeddings(kind: str) -> None:
    """Where it were the first block, every mapping would be one layer off: libraries disagree on it."""
    pair = make_pair(kind)
    inner = pair.student.base_model
    places = {"bert": "embeddings encoder.layer", "distilbert": "embeddings transformer.layer"}
    embeddings, blocks = places.get(kind, "embed_tokens layers").split()
    seen: list[Any] = []
    for name in (embeddings, f"{blocks}.0", f"{blocks}.1"):
        inner.get_submodule(name).register_forward_hook(lambda module, given, found: seen.append(found))
    given = {"input_ids": pair.inputs["input_ids"], "output_hidden_states": True}
    states = pair.student(**given).hidden_states
    # Llama's last one has been through the final norm, as the head sees it.
    if kind == "llama":
        seen[2] = inner.norm(seen[2][0] if isinstance(seen[2], tuple) else seen[2])
    assert len(states) == len(seen) == 3
    for found, wanted in zip(states, seen, strict=True):
        torch.testing.assert_close(found, wanted[0] if isinstance(wanted, tuple) else wanted)


# --- similarity -------------------------------------------------------------------------------------------------------


def states(layers: int, tokens: int, width: int, seed: int) -> Array:
    result: Array = np.random.default_rng(seed).normal(size=(layers, tokens, width))
    return result


def cka_by_hand(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    across = np.linalg.norm(y.T @ x) ** 2
    return float(across / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_cka_by_hand() -> None:
    """Kernels that are not centred measure the means, which are large and alike in all layers."""
    x, y = states(2, 40, 6, 0) + 3.0, states(3, 40, 9, 1) - 1.0
    y[1] = x[0] @ np.random.default_rng(2).normal(size=(6, 9))
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    wanted = [[cka_by_hand(one, other) for other in y] for one in x]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert found[0, 1] > 2 * found[0, 0]


def test_cka_does_not_see_rotation_scale_and_shift() -> None:
    """What a projection undoes is no difference between layers; widths need not be equal either."""
    x = states(1, 40, 6, 0)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 9)))
    y = np.concatenate((x, np.zeros((1, 40, 3))), -1) @ rotation * 5.0 + 2.0
    np.testing.assert_allclose(linear_cka(torch.from_numpy(x), torch.from_numpy(y)), [[1.0]], rtol=1e-10)


def test_a_layer_that_says_nothing_is_like_no_other() -> None:
    """0 / 0 would be NaN, and the largest of all."""
    constant = torch.ones(1, 5, 3)
    assert linear_cka(constant, torch.from_numpy(states(2, 5, 3, 0)).float()).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (3, 3), (4, 6), (4, 2)])
def test_the_best_order_is_found(rows: int, columns: int) -> None:
    """Each layer's favourite alone may be the same for all of them, or cross."""
    for seed in range(20):
        scores = np.random.default_rng(seed).random((rows, columns))
        ways = itertools.product(range(columns), repeat=rows)
        step = rows <= columns
        in_order = [way for way in ways if all(b - a >= step for a, b in itertools.pairwise(way))]
        wanted = max(in_order, key=lambda way: scores[range(rows), way].sum())
        assert tuple(best_in_order(torch.from_numpy(scores))) == wanted


def test_padding_is_not_measured_and_long_texts_are_thinned() -> None:
    """Padding is alike in all layers; and all tokens of a wide model would fill the memory."""
    chance = torch.Generator().manual_seed(0)
    mask = torch.zeros(3, 50, dtype=torch.bool)
    mask[0], mask[1, :5] = True, True
    layer = torch.randn(3, 50, 4, generator=chance)
    layer[~mask] = torch.nan
    similarity = Similarity(1, 2)
    similarity.add([layer], [2 * layer, layer.square()], mask)
    pairs, text = similarity.settle(((1, 2),))
    assert pairs == ((1, 1),)
    assert text == (
        f"linear CKA of the student's layers (rows) and the teacher's (columns) on {TOKENS + 5} tokens; * is chosen:\n"
        f"           1       2\n"
        f"   1   1.000*  {text.splitlines()[2].split()[2]}\n"
        "layers: [[1, 1]]"
    )


def test_a_student_of_the_teachers_layers_finds_them_again() -> None:
    """The whole way: states of both models, the table, the pairs that training uses, and what a checkpoint keeps."""
    pair = make_pair("bert", num_hidden_layers=2, hidden_size=16, num_attention_heads=4)
    student, teacher = pair.student.bert, pair.teacher.bert
    student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for layer in (0, 1):  # the first two: `uniform` would take the second and the fourth
        student.encoder.layer[layer].load_state_dict(teacher.encoder.layer[layer].state_dict())
    for objective in (Hidden(layers="similarity"), Attention(layers="similarity")):
        term: Any = objective.prepare(pair.student, pair.teacher)
        assert term.pairs == ((1, 2), (2, 4))
        observe(pair, term)
        text = term.settle()
        assert text.count("1.000*") == 2
        assert text.endswith("layers: [[1, 1], [2, 2]]")
        assert term.pairs == ((1, 1), (2, 2))
        assert pair.losses(term).abs().max() < 1e-9
        # A resumed training goes on with what was measured before it, not with what a trained student would say.
        resumed: Any = objective.prepare(pair.student, pair.teacher)
        resumed.load_state_dict(term.state_dict())
        assert resumed.pairs == ((1, 1), (2, 2))


def observe(pair: Pair, term: FeatureTerm) -> None:
    with torch.no_grad():
        term.observe(pair.compare(term, pair.inputs))


def test_no_token_to_measure_is_said() -> None:
    """The CKA of nothing is NaN in every place."""
    pair = make_pair("bert")
    term: Any = Hidden(layers="similarity").prepare(pair.student, pair.teacher)
    term.observe(pair.compare(term, dict(pair.inputs, attention_mask=torch.zeros_like(pair.inputs["input_ids"]))))
    assert term.settle() == "layers: similarity has seen no token that counts; [[1, 2], [2, 4]] it is."
    assert term.pairs == ((1, 2), (2, 4))
