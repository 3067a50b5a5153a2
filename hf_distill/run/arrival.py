"""Says when a run ends: the parts of a run with their work, and the speed of what it has computed so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

# Share of a training after which its speed is known: the first steps are slower.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: As `Run.stage` calls it: `teacher`, `cache`, `student stage 1`, `baseline seed 43`, ...
        work: How much it has to compute: rows x parameters in layers and head, forward 1, backward 2.
        steps: Number of optimiser steps; 0 if nothing is trained.
        rows: Number of rows of an optimiser step; without steps, of the whole part.
    """

    name: str
    work: float
    steps: int = 0
    rows: int = 0


@dataclass
class Arrival:
    """Says when a run ends, by the speed of what it has computed so far.

    Attributes:
        parts: The parts that are not finished, in their order.
        clock: Seconds that only grow.
        now: The time of day.
    """

    parts: Sequence[Part] = ()
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = datetime.now
    _finished: set[str] = field(default_factory=set)
    _name: str = ""
    # Share of the current training and time when it was first heard of, and what is done since.
    _start: tuple[float, float] | None = None
    _share: float = 0.0
    # Work and seconds of the trainings before.
    _work: float = 0.0
    _seconds: float = 0.0

    def begin(self, name: str) -> None:
        """Note that a part begins; those before it are finished, or were found finished."""
        self._close()
        names = [part.name for part in self.parts]
        if name in names:
            self._finished = {*names[: names.index(name)]}
        self._name = name

    def at(self, share: float) -> str:
        """Note the share of the current training that is done; return when the run ends, or an empty text.

        Args:
            share: From 0 to 1.
        """
        if self._start is None:
            self._start = share, self.clock()
        self._share = share
        left = self.left()
        return "" if left is None else f"run ends about {self._when(left)}"

    def left(self) -> float | None:
        """Return how many seconds the run still takes; None if no speed is known yet."""
        own = self._current()
        work, seconds = self._measured(own)
        total = work + self._work
        if not total:
            return None
        rest = sum(one.work for one in self.parts if one.name not in self._finished and one is not own)
        here = 0.0
        if own is not None:  # its own speed, if known
            rate = seconds / work if work else (self._seconds / self._work)
            here = own.work * (1 - self._share) * rate
        return here + rest * (seconds + self._seconds) / total

    def in_words(self) -> str:
        """Return how long the run still takes and until when; an empty text if it is not known."""
        left = self.left()
        return "" if left is None else f"about {duration(left)} left in this run, until {self._when(left)}"

    def _current(self) -> Part | None:
        return next((part for part in self.parts if part.name == self._name), None)

    def _measured(self, own: Part | None) -> tuple[float, float]:
        """Return work and seconds of the current training so far; 0 if that is too little to tell its speed."""
        if own is None or self._start is None or self._share - self._start[0] < LEAST_SHARE:
            return 0.0, 0.0
        return own.work * (self._share - self._start[0]), self.clock() - self._start[1]

    def _close(self) -> None:
        work, seconds = self._measured(self._current())
        self._work, self._seconds = self._work + work, self._seconds + seconds
        self._start, self._share = None, 0.0

    def _when(self, seconds: float) -> str:
        return clock_time(seconds, self.now())


def clock_time(seconds: float, now: datetime) -> str:
    """Return the time of day so many seconds from now, with the day if it is another.

    >>> clock_time(3600, datetime(2026, 1, 5, 12)), clock_time(86_400, datetime(2026, 1, 5, 12))
    ('13:00', 'Tue 12:00')
    """
    end = now + timedelta(seconds=seconds)
    if end.date() == now.date():
        return f"{end:%H:%M}"
    return f"{end:%a %H:%M}" if seconds < 6 * 86_400 else f"{end:%d %b %H:%M}"


def duration(seconds: float) -> str:
    """Return a duration with about two digits.

    >>> [duration(one) for one in (20, 95, 4000, 200_000)]
    ['20 s', '1 min 35 s', '1 h 6 min', '2 d 7 h']
    """
    whole = round(seconds)
    for size, name, below, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
