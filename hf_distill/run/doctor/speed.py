"""Measures steps of the first stage, and says when the run would end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.memory import measured
from hf_distill.run.doctor.trial import order_of, try_out

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

STEPS = 6


def speed(opened: Opened) -> Iterator[Finding]:
    """Say how long a step takes, and the whole run."""
    seconds = step_seconds(opened)
    yield Finding(
        "speed",
        "ok",
        f"{1 / seconds:.3g} steps a second (median of {STEPS})",
        figures={"step_seconds": seconds, "steps_per_second": 1 / seconds},
    )


def step_seconds(opened: Opened) -> float:
    """Return the median duration of an optimiser step, after the first one, on rows from all over the epoch.

    Raises:
        CannotCheck: A step would not fit into memory, or the rows cannot be chosen.
    """
    try:
        fits = measured(opened).fits(opened.trainer._train_batch_size)
    except CannotCheck:
        fits = True
    if not fits:
        raise CannotCheck("the training does not fit into memory")
    size, order = opened.trainer._train_batch_size, order_of(opened.trainer)
    step = size * opened.run.args.gradient_accumulation_steps * parallel.processes()
    trial = try_out(opened, steps_from(order, step, STEPS + 1), size, STEPS + 1, counts=False)
    return median(trial.seconds[1:])


def steps_from(order: Sequence[int], size: int, number: int) -> list[int]:
    """Return the rows of some steps at equal distances in an epoch.

    >>> steps_from([0, 1, 2, 3, 4, 5, 6, 7, 8], 2, 2)
    [0, 1, 6, 7]
    """
    whole = max(len(order) // size, 1)
    places = [round(index * (whole - 1) / max(number - 1, 1)) * size for index in range(number)]
    return [row for place in places for row in order[place : place + size]]
