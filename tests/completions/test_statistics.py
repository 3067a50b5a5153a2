"""Figures of completions, and of two models on the same tokens, against NumPy and counting by hand."""

import numpy as np
import pytest
import torch

from hf_distill.completions.statistics import Written, acceptance, describe, repeated_runs, top_overlap


def test_repetition_is_counted_within_a_completion() -> None:
    """Counted over all completions together, an ordinary phrase that two of them share would look like a loop."""
    phrase = [1, 2, 3, 4, 5]
    found = describe([Written.of(phrase, True), Written.of(phrase, True), Written.of([9] * 10, False)])
    assert repeated_runs(phrase) == (0, 2)
    assert repeated_runs([9] * 10) == (6, 7)
    assert found["repeated_4grams"] == pytest.approx(6 / 11)
    assert found["distinct"] == pytest.approx(2 / 3)
    assert (found["ended"], found["cut"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_lengths_of_short_and_empty_completions() -> None:
    """An empty completion has length 0 and no runs; without any completion there is no figure, and no NaN."""
    lengths = [0, 1, 3, 40]
    found = describe([Written.of(list(range(one)), one > 0) for one in lengths])
    assert found["completion_length"] == np.mean(lengths)
    assert found["completion_length_p95"] == pytest.approx(np.percentile(lengths, 95))
    assert describe([Written.of([], False)])["repeated_4grams"] == 0.0
    assert describe([]) == {}


def test_acceptance_and_overlap_equal_those_of_numpy() -> None:
    """A sum over the wrong side or a mass of the wrong model would look like a plausible share."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(7, 50, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    p, q = log_p.exp().numpy(), log_q.exp().numpy()
    np.testing.assert_allclose(acceptance(log_p, log_q), 1 - 0.5 * abs(p - q).sum(-1), rtol=1e-12)
    share, mass_p, mass_q = top_overlap(log_p, log_q, top=16)
    for row in range(7):
        both = sorted(set(np.argsort(-p[row])[:16]) & set(np.argsort(-q[row])[:16]))
        assert share[row] == len(both) / 16
        assert mass_p[row] == pytest.approx(p[row, both].sum())
        assert mass_q[row] == pytest.approx(q[row, both].sum())


def test_a_vocabulary_smaller_than_the_top_is_compared_whole() -> None:
    """`topk` of more tokens than there are would fail in every toy model."""
    log_p, log_q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log()
    assert [one.item() for one in top_overlap(log_p, log_q)] == pytest.approx([1.0, 1.0, 1.0])
