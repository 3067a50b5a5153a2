"""Numbers that change while a model trains: a weight, a temperature."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hf_distill.component import component


@component
class Schedule:
    """A number that goes from one value to another, and stays there.

    Evaluation always takes the last value, so that two evaluations of one training can be compared.

    Attributes:
        start: Value at the first step.
        end: Value once `over` has passed.
        over: How long that takes: up to 1 a share of the training, above it optimiser steps.
        shape: `linear`; `cosine`: slow at both ends; `constant`: `start` all the time, then `end` at once.
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


def number(value: float | Schedule) -> float:
    """Return a setting that is a number by now (see `Objective.at`).

    Raises:
        TypeError: It is still a schedule.
    """
    if isinstance(value, Schedule):
        raise TypeError("a schedule has no value by itself: call objective.at(step, steps) first.")
    return value


def _never_negative(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) < 0:
        raise ValueError("start and end must be 0 or more")
    return schedule


def _positive(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) <= 0:
        raise ValueError("start and end must be above 0")
    return schedule


# A number, or {start, end, over} of it.
Weight = Annotated[float, Field(ge=0.0)] | Annotated[Schedule, AfterValidator(_never_negative)]
Temperature = Annotated[float, Field(gt=0.0)] | Annotated[Schedule, AfterValidator(_positive)]
