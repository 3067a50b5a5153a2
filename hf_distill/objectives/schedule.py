"""Numbers that change while a model trains: a weight, a temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hf_distill.component import component
from hf_distill.errors import UserError


@component
class Schedule:
    """A number that changes from one value to another during training.

    Evaluation always uses the last value, so that two evaluations of one training can be compared.

    Attributes:
        start: Value at the first step.
        end: Value once `over` has passed.
        over: Duration of the change: up to 1 a share of the training, above 1 a number of optimiser steps.
        shape: `linear`; `cosine`, slow at both ends; `constant`, which keeps `start` until `over` has passed.
    """

    start: float
    end: float
    over: Annotated[float, Field(gt=0.0)] = 1.0
    shape: Literal["linear", "cosine", "constant"] = "linear"

    def at(self, step: int, steps: int) -> float:
        """Return the value after `step` of `steps` optimiser steps.

        >>> Schedule(start=4.0, end=1.0, over=0.5).at(25, 100)
        2.5
        """
        length = self.over if self.over > 1 else self.over * steps
        done = min(step / length, 1.0) if length else 1.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.shape == "constant":
            done = math.floor(done)
        return self.start + (self.end - self.start) * done


def cut_off(schedule: Schedule, steps: int) -> str:
    """Return what becomes of a schedule that a training of so many optimiser steps is too short for; else nothing.

    >>> cut_off(Schedule(start=4.0, end=1.0, over=500), 500)
    ''
    """
    if schedule.over <= max(steps, 1):
        return ""
    words = in_words({name: getattr(schedule, name) for name in Schedule.__annotations__})
    verb = "be" if schedule.shape == "constant" else "go from"
    return (
        f"is to {verb} {words}, and the training has {steps:,}: it ends at {schedule.at(steps, steps):.4g}, and "
        f"evaluations take {schedule.end:g}. Set over to at most {steps:,}, or to a share of the training (1 is all)."
    )


def is_schedule(value: Any) -> bool:
    """Whether a setting, plain as in a recipe, is a schedule."""
    return isinstance(value, Mapping) and {"start", "end"} <= set(value) <= set(Schedule.__annotations__)


def in_words(value: Any) -> str:
    """Return a setting, plain as in a recipe, the way a person reads it.

    >>> in_words({"start": 4.0, "end": 1.0, "over": 0.5})
    '4 to 1 over 50 % of the training'
    >>> in_words({"start": 0.0, "end": 1.0, "over": 2000, "shape": "cosine"}), in_words(2.0)
    ('0 to 1 over 2,000 steps (cosine)', '2')
    """
    if isinstance(value, float):
        return f"{value:g}"
    if not is_schedule(value):
        return str(value)
    over, shape = value.get("over", 1.0), value.get("shape", "linear")
    length = f"{over:,g} steps" if over > 1 else "the training" if over == 1 else f"{100 * over:g} % of the training"
    if shape == "constant":
        return f"{value['start']:g}, then {value['end']:g} after {length}"
    return f"{value['start']:g} to {value['end']:g} over {length}{'' if shape == 'linear' else f' ({shape})'}"


def number(value: float | Schedule) -> float:
    """Return a setting that is a number by now (see `Objective.at`).

    Raises:
        TypeError: It is still a schedule.
    """
    if isinstance(value, Schedule):
        raise TypeError("a schedule has no value by itself: call objective.at(step, steps) first.")
    return value


def _never_negative(schedule: Schedule) -> Schedule:
    for key, value in (("start", schedule.start), ("end", schedule.end)):
        if value < 0:
            raise UserError(f"wanted a number of at least 0, found {value:g}.", key=key)
    return schedule


def _positive(schedule: Schedule) -> Schedule:
    for key, value in (("start", schedule.start), ("end", schedule.end)):
        if value <= 0:
            raise UserError(f"wanted a number above 0, found {value:g}.", key=key)
    return schedule


# A number, or {start, end, over} of it.
Weight = Annotated[float, Field(ge=0.0)] | Annotated[Schedule, AfterValidator(_never_negative)]
Temperature = Annotated[float, Field(gt=0.0)] | Annotated[Schedule, AfterValidator(_positive)]
