"""Which of several runs is best, which of the others could be as good, and what may be compared at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, stdev

import numpy as np

from hf_distill.metrics.bootstrap import spread
from hf_distill.report.results import NOTHING, Results, SeedResult
from hf_distill.report.runs.grounds import FINGERPRINTS, conditions, first_difference, grounds, hint
from hf_distill.report.runs.reading import ComparedRun
from hf_distill.report.runs.recipes import differing
from hf_distill.report.timing import Timing


@dataclass(frozen=True)
class RunDifference:
    """How far a run is behind another one, or ahead of it.

    Attributes:
        value: Student's headline metric minus the other one's, mean over the seeds that both have.
        noise: Half-width of its 95 % interval; None if it is not known.
        seeds: Number of seeds that both have.
    """

    value: float
    noise: float | None
    seeds: int

    @property
    def within_noise(self) -> bool | None:
        """Whether the two could be equally good; None if that is not known."""
        if self.noise is None:
            return True if abs(self.value) <= NOTHING else None
        return abs(self.value) <= self.noise


def difference(one: Results, other: Results) -> RunDifference | None:
    """Return the student of one run minus that of another, as the effect of a teacher is computed: seed by seed.

    The interval is the larger of two: that of the spread over the seeds that both have (Student's t), and that of an
    eval split of this size, by a paired bootstrap over its rows (`Results.resampled`). Where a report does not have
    that, the second is known for shares of rows only (accuracy, exact match), and ignores that both students were
    evaluated on the same rows: it is rather too wide.

    Args:
        one: A report.
        other: Another one, on the same eval rows.

    Returns:
        The difference; None where a student does not have the metric.
    """
    error = None
    if is_paired(one, other):
        error = spread(np.array(one.resampled) - np.array(other.resampled))
    theirs = {seed.seed: seed.student for seed in other.seeds}
    pairs = tuple(SeedResult(seed.seed, seed.student, theirs[seed.seed]) for seed in one.seeds if seed.seed in theirs)
    if len(pairs) < 2:  # also where only one of the two has several seeds
        one, other = (_mean_of_seeds(each) for each in (one, other))
        pairs = ()
    paired = replace(one, baseline=other.student, seeds=pairs, gain_error=error, best={})
    return None if paired.gain is None else RunDifference(paired.gain, paired.noise, max(len(paired.gains), 1))


def is_paired(one: Results, other: Results) -> bool:
    """Return whether two reports on the same eval rows have their metric on the same resampled splits."""
    same = (one.metric, one.eval_rows) == (other.metric, other.eval_rows)
    return same and bool(one.resampled) and len(one.resampled) == len(other.resampled)


def seed_values(report: Results, metric: str, model: str = "student") -> tuple[float, ...]:
    """Return a metric of student or baseline for each seed; of one seed, that of the report.

    Empty if the value of a seed is missing or not finite: the mean of the others would hide a training that diverged.
    """
    found = [(getattr(seed, model) or {}).get(metric) for seed in report.seeds]
    if len(found) < 2 or all(value is None for value in found):
        found = [report.models[model].metrics.get(metric) if model in report.models else None]
    known = tuple(float(value) for value in found if value is not None and math.isfinite(value))
    return known if len(known) == len(found) else ()


def over_seeds(report: Results, metric: str, model: str = "student") -> tuple[float | None, float | None]:
    """Return a metric of student or baseline, mean over seeds, and its standard deviation; of one seed, None for it."""
    values = seed_values(report, metric, model)
    return (mean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def _mean_of_seeds(report: Results) -> Results:
    """Return a report whose student has the mean of its seeds as its headline metric."""
    value, apart = over_seeds(report, report.metric)
    if value is None or apart is None:
        return report
    return replace(report, student=replace(report.student, metrics={**report.student.metrics, report.metric: value}))


@dataclass(frozen=True)
class RunComparison:
    """Several runs, and what may be said of them together.

    Attributes:
        runs: The runs, in the order in which they were named.
    """

    runs: tuple[ComparedRun, ...]

    @cached_property
    def changed(self) -> dict[str, tuple[str | None, ...]]:
        """The recipe keys whose values differ -> the value in each run; see `recipes.differing`."""
        return changed(self.runs)

    @cached_property
    def alike(self) -> list[list[ComparedRun]]:
        """The runs in groups with the same `grounds`, such as eval rows: only these are compared on quality."""
        found: dict[tuple[str, ...], list[ComparedRun]] = {}
        for run in self.runs:
            # What a report does not know is not that of any other run.
            same = tuple(f"{name} {value or f'unknown {run.name}'}" for name, value in grounds(run.report).items())
            found.setdefault(same, []).append(run)
        return list(found.values())

    def best(self, runs: Sequence[ComparedRun]) -> ComparedRun | None:
        """Return the best of some runs with the same metric; None if none has it."""
        values = {run.name: over_seeds(run.report, run.report.metric)[0] for run in runs}
        known = [(value, run) for run in runs if (value := values[run.name]) is not None]
        choose = max if runs[0].report.greater_is_better else min
        return choose(known, key=lambda one: one[0])[1] if known else None

    def behind(self, runs: Sequence[ComparedRun]) -> dict[str, RunDifference]:
        """Return name -> difference from the best of some runs, for each of the others that has the metric."""
        best = self.best(runs)
        if best is None:
            return {}
        found = {run.name: difference(run.report, best.report) for run in runs if run is not best}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def not_resampled(self) -> list[str]:
        """Names of the runs that are compared on quality without a paired bootstrap."""
        groups = [(group, self.best(group)) for group in self.alike if len(group) > 1]
        return [run.name for group, best in groups if best for run in group if not is_paired(run.report, best.report)]

    @cached_property
    def why_not_compared(self) -> str:
        """Why not all runs are compared on quality, in words; empty if they are."""
        if len(self.alike) == 1:
            return ""
        return _apart({run.name: grounds(run.report) for run in self.runs})

    @cached_property
    def not_comparable(self) -> dict[str, str]:
        """Metric beside the headline -> why its values in the table are not compared; without those that can be."""
        metrics = dict.fromkeys(name for run in self.runs for name in run.report.student.metrics)
        found = {}
        for metric in (name for name in metrics if any(name != run.report.metric for run in self.runs)):
            having = [run for run in self.runs if metric in run.report.student.metrics]
            found[metric] = _apart({run.name: conditions(run.report, metric) for run in having})
        return {metric: why for metric, why in found.items() if why}

    @cached_property
    def why_no_speed(self) -> str:
        """Why the speeds of the runs are not compared, in words; empty if they are, or if none was measured."""
        known = {run.name: run.report.student.latency for run in self.runs if run.report.student.latency is not None}
        if not known:
            return ""
        if len(known) < 2:
            return f"only that of {next(iter(known))} was measured"
        for what, values in (
            ("the machines differ", {name: one.device for name, one in known.items()}),
            ("the threads differ", {name: f"{one.threads}" for name, one in known.items()}),
            ("the inputs differ", {name: _inputs(one.single, one.batch) for name, one in known.items()}),
        ):
            if len(found := _values(values)) > 1:
                return f"{what} ({_told(found)})"
        return ""


def changed(runs: Sequence[ComparedRun]) -> dict[str, tuple[str | None, ...]]:
    """Return the recipe keys whose values differ between some runs -> the value in each (`recipes.differing`)."""
    return differing([run.recipe for run in runs], [run.whole for run in runs])


def _apart(found: Mapping[str, Mapping[str, str]]) -> str:
    """Return why some runs are not compared, by the first of their grounds that differs; empty if they are."""
    what = first_difference(list(found.values())) if len(found) > 1 else ""
    if not what:
        return ""
    by_run = {name: one.get(what, "") for name, one in found.items()}
    if unknown := [name for name, value in by_run.items() if not value]:
        return f"it is not known whether {', '.join(unknown)} had the same {what}"
    values = _values(by_run)
    told = " / ".join(", ".join(names) for names in values.values()) if what in FINGERPRINTS else _told(values)
    return f"their {what} differ ({told}{hint(what)})"


def _inputs(*timings: Timing) -> str:
    def shape(one: Timing) -> str:
        return f"{one.batch_size} x {one.sequence_length} tokens" if one.sequence_length else f"{one.batch_size}"

    return " and ".join(map(shape, timings))


def _values(by_run: Mapping[str, str]) -> dict[str, list[str]]:
    """Return value -> names of the runs that have it."""
    found: dict[str, list[str]] = {}
    for name, value in by_run.items():
        found.setdefault(value, []).append(name)
    return found


def _told(values: Mapping[str, Sequence[str]]) -> str:
    def one() -> Iterator[str]:
        for value, names in values.items():
            yield f"{value}: {', '.join(names)}"

    return "; ".join(one())
