"""Whether differences of two models on parts of the eval split are more than noise: t tests, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

LEVEL = 0.05


def half_width(error: float, units: int, by_seed: Sequence[float] = ()) -> float:
    """Return the half-width of the 95 % interval of a difference.

    The larger of two: that of the sampling error of the units, and that of the spread over seeds (Student's t in both).

    Args:
        error: Standard error of the difference on this number of units, by a paired bootstrap.
        units: Number of units.
        by_seed: The difference in each seed.

    >>> round(half_width(0.1, 10_000), 3), round(half_width(0.1, 10_000, [0.0, 1.0, 2.0]), 3)
    (0.196, 2.484)
    """
    from scipy.stats import t

    widths = [t.ppf(1 - LEVEL / 2, max(units - 1, 1)) * error]
    if len(by_seed) > 1:
        widths.append(t.ppf(1 - LEVEL / 2, len(by_seed) - 1) * stdev(by_seed) / math.sqrt(len(by_seed)))
    return float(max(widths))


def p_value(difference: float, error: float, units: int, by_seed: Sequence[float] = ()) -> float:
    """Return the two-sided p-value of a difference; the larger one of the units and of the seeds.

    The variance is that without a difference, `error^2 + difference^2 / units`. Of the accuracy, this gives McNemar's
    statistic `(b - c) / sqrt(b + c)`; it also stays finite where all units differ by the same amount.

    Args:
        difference: The difference, mean over seeds.
        error: Standard error of the difference.
        units: Number of units.
        by_seed: The difference in each seed.

    >>> p_value(0.0, 0.0, 50), p_value(-1.0, 0.0, 50) < 1e-6
    (1.0, True)
    """
    from scipy.stats import t

    if difference == 0:
        return 1.0
    found = [2 * t.sf(abs(difference) / math.hypot(error, difference / math.sqrt(units)), max(units - 1, 1))]
    if len(by_seed) > 1 and (apart := stdev(by_seed)) > 0:
        found.append(2 * t.sf(abs(difference) / (apart / math.sqrt(len(by_seed))), len(by_seed) - 1))
    return float(max(found))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which differences are significant if `level` is the chance that any of them is so by noise alone.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest p-value is compared with
    `level / m`, the next with `level / (m - 1)`, and so on until one is too large.

    >>> holm([0.01, 0.04, 0.03]), holm([0.01, 0.02, 0.03])
    ([True, False, False], [True, True, True])
    """
    found = [False] * len(p_values)
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - done):
            break
        found[index] = True
    return found
