"""Whether a difference is more than noise, against SciPy and the definitions: `hf_distill/metrics/significance.py`."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from hf_distill.metrics.bootstrap import Units, gain_error
from hf_distill.metrics.significance import half_width, holm, p_value


def pairs(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    teacher = (rng.random(rows) < 0.9).astype(float)
    return teacher, np.where(rng.random(rows) < 0.2, rng.random(rows) < 0.5, teacher).astype(float)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    """An unpaired interval calls a real loss on a group noise; a wrong one invents losses."""
    teacher, student = pairs()
    error = gain_error(Units.means(student), Units.means(teacher), samples=3000)
    assert error is not None
    expected = scipy.stats.ttest_rel(student, teacher).confidence_interval(0.95)
    assert half_width(error, len(teacher)) == pytest.approx((expected.high - expected.low) / 2, rel=0.05)


def test_the_p_value_of_an_accuracy_is_mcnemars() -> None:
    """The variance of what was seen, which is 0 where all rows changed alike, calls a single lost row certain."""
    teacher, student = pairs()
    lost, won = int(((teacher == 1) & (student == 0)).sum()), int(((teacher == 0) & (student == 1)).sum())
    difference = student - teacher
    found = p_value(difference.mean(), difference.std() / np.sqrt(len(difference)), len(difference))
    statistic = (won - lost) / np.sqrt(won + lost)
    assert found == pytest.approx(2 * scipy.stats.t.sf(abs(statistic), len(difference) - 1), rel=1e-9)
    assert found == pytest.approx(scipy.stats.binomtest(lost, lost + won).pvalue, abs=0.02)


def test_the_larger_uncertainty_counts() -> None:
    """Three seeds that disagree, or a small split on which they happen to agree: neither is certain."""
    seeds = [-0.10, -0.02, -0.06]
    interval = scipy.stats.t.interval(0.95, 2, np.mean(seeds), scipy.stats.sem(seeds))
    assert half_width(1e-4, 1000, seeds) == pytest.approx((interval[1] - interval[0]) / 2)
    assert half_width(0.5, 1000, seeds) == half_width(0.5, 1000)
    assert p_value(-0.06, 1e-4, 1000, seeds) == pytest.approx(scipy.stats.ttest_1samp(seeds, 0).pvalue)
    assert p_value(-0.06, 0.5, 1000, seeds) == p_value(-0.06, 0.5, 1000)


def test_holm_keeps_the_chance_of_a_false_alarm() -> None:
    """Of 20 groups without any difference, one looks worse at 5 % in two reports of three."""
    rng = np.random.default_rng(0)
    alarms = [any(holm(rng.random(20).tolist())) for _ in range(2000)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.015)
    for p_values in rng.beta(0.2, 3, (200, 6)):
        # By definition: rejected if all smaller ones are, and p <= level / (number of those that are not smaller).
        order = np.sort(p_values)
        passed = np.cumprod(order <= 0.05 / np.arange(6, 0, -1)).astype(bool)
        assert holm(p_values.tolist()) == [bool(passed[np.searchsorted(order, p)]) for p in p_values]
    assert holm([]) == []
