"""Measures steps of the first stage, and says when the run would end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.run.arrival import clock_time, duration
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.memory import measured
from hf_distill.run.doctor.trial import order_of, try_out
from hf_distill.run.parts import parts, work_of_row

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

STEPS = 6


def speed(opened: Opened) -> Iterator[Finding]:
    """Say how long a step takes, and when the whole run would end."""
    seconds = step_seconds(opened)
    run = replace(opened.run, training=opened.training)
    live = run.stored is None and any(one.needs_teacher for one in opened.recipe.plan[0].objectives)
    rows = rows_of_step(opened)
    rate = seconds / (rows * work_of_row(run, live=live))
    yield arrival(seconds, rows, {part.name: part.work * rate for part in parts(run)}, datetime.now())


def arrival(step: float, rows: int, of_parts: Mapping[str, float], now: datetime) -> Finding:
    """Say how long the run takes, and when it would end.

    Args:
        step: Seconds of a step.
        rows: Rows of a step.
        of_parts: Seconds of each part of the run.
        now: The time.
    """
    whole = sum(of_parts.values())
    each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in of_parts.items())
    text = (
        f"{1 / step:.3g} steps of {rows} rows a second (median of {STEPS}); the run computes for about "
        f"{duration(whole)} ({each}). Started now, it ends about {clock_time(whole, now)}"
    )
    figures = {"step_seconds": step, "steps_per_second": 1 / step, "rows_per_step": rows, "run_seconds": whole}
    figures |= {f"{name.replace(' ', '_')}_seconds": seconds for name, seconds in of_parts.items()}
    return Finding("speed", "ok", text, figures=figures)


def rows_of_step(opened: Opened) -> int:
    """Return the number of rows of an optimiser step of the first stage, of all processes."""
    size: int = opened.trainer._train_batch_size
    return size * opened.trainer.args.gradient_accumulation_steps * parallel.processes()


def step_seconds(opened: Opened) -> float:
    """Return the median duration of an optimiser step, after the first one, on rows from all over the epoch.

    Raises:
        CannotCheck: A step would not fit into memory, or the rows cannot be chosen.
    """
    try:
        fits = measured(opened).fits(opened.trainer._train_batch_size)
    except CannotCheck:
        fits = True
    if not all(parallel.from_all(fits)):  # or some processes would wait for the others
        raise CannotCheck("the training does not fit into memory")
    size, order = opened.trainer._train_batch_size, order_of(opened.trainer)
    rows = steps_from(order, rows_of_step(opened), STEPS + 1)
    trial = try_out(opened, rows, size, STEPS + 1, counts=False)
    return median(trial.seconds[1:])


def steps_from(order: Sequence[int], size: int, number: int) -> list[int]:
    """Return the rows of some steps at equal distances in an epoch.

    >>> steps_from([0, 1, 2, 3, 4, 5, 6, 7, 8], 2, 2)
    [0, 1, 6, 7]
    """
    whole = max(len(order) // size, 1)
    places = [round(index * (whole - 1) / max(number - 1, 1)) * size for index in range(number)]
    return [row for place in places for row in order[place : place + size]]
