"""The settings of a sweep with their reports: which is best, and which of the others could be as good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.report.results import ModelResult, Results
from hf_distill.report.runs.comparison import difference, over_seeds, seed_values
from hf_distill.report.runs.grounds import grounds

if TYPE_CHECKING:
    from hf_distill.report.report import Report

State = Literal["finished", "failed", "running", "waiting"]


@dataclass(frozen=True)
class SettingRun:
    """One setting and what became of it.

    Attributes:
        name: Name of its directory below that of the sweep.
        values: Key -> value.
        state: What became of its run.
        report: The report of its run, if it is finished.
        error: Why it failed.
        sources: Hash of the files that its recipe names, when its run began.
    """

    name: str
    values: Mapping[str, Any]
    state: State = "waiting"
    report: Report | None = None
    error: str = ""
    sources: str = ""


@dataclass(frozen=True)
class Against:
    """The difference between the best setting and another one.

    Attributes:
        difference: Headline metric of the best minus that of the other, mean over the seeds that both have.
        noise: Half-width of its 95 % interval (`report.results.Results.noise`); None if it is not known.
    """

    difference: float
    noise: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the two could be equally good; None if that is not known."""
        return None if self.noise is None else abs(self.difference) <= self.noise


@dataclass(frozen=True)
class ScoredSetting:
    """A finished setting with the numbers of the table; `metric` stands for the metric of the sweep.

    Attributes:
        trial: The setting.
        report: Its report, with the metric of the sweep as its headline.
    """

    trial: SettingRun
    report: Results

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The student's metric for each seed; empty if a seed has none."""
        return seed_values(self.report, self.report.metric)

    @property
    def value(self) -> float:
        """The student's metric, mean over seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def teacher(self) -> float | None:
        """The teacher's metric."""
        return self.report.headline("teacher")

    @property
    def baseline(self) -> float | None:
        """The baseline's metric, mean over seeds; None without baseline."""
        return over_seeds(self.report, self.report.metric, "baseline")[0]

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step of the student's trainings, with evaluating and saving; None if they are not known."""
        names = [name for name in self.report.history if _is_student(name)]
        took = self.report.settings.get("seconds", {})
        seconds = sum(float(took.get(f"{name} training", 0.0)) for name in names)
        steps = sum(max((int(log.get("step", 0)) for log in self.report.history[name]), default=0) for name in names)
        return seconds / steps if seconds and steps else None


def _is_student(name: str) -> bool:
    return name == "student" or name.startswith("student ")


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        recipe: The recipe's file.
        keys: The keys that vary.
        trials: The settings in the order of their runs.
        metric: Name of the metric by which they are sorted; empty for the headline of their reports.
        command: What to type to run one of them alone: name -> command.
        drawn: Whether the settings were drawn at random.
    """

    recipe: str
    keys: tuple[str, ...]
    trials: tuple[SettingRun, ...]
    metric: str = ""
    command: Mapping[str, str] | None = None
    drawn: bool = False

    @cached_property
    def scored(self) -> list[ScoredSetting]:
        """The finished settings that have the metric, in the order of their runs."""
        found = [ScoredSetting(one, _by(one.report, self.metric)) for one in self.trials if one.report is not None]
        return [one for one in found if one.values]

    @cached_property
    def is_comparable(self) -> bool:
        """Whether all settings have the same `grounds`, such as task and eval rows; else none of them is the best."""
        return len({tuple(grounds(one.report).items()) for one in self.scored}) < 2

    @cached_property
    def ranked(self) -> list[ScoredSetting]:
        """The finished settings that have the metric, the best first; as they were run if they cannot be compared."""
        if not self.is_comparable:
            return self.scored
        return sorted(self.scored, key=lambda one: one.value, reverse=self.greater_is_better)

    @cached_property
    def greater_is_better(self) -> bool:
        """Whether a greater value of the metric is better."""
        report = next((one.report for one in self.trials if one.report is not None), None)
        return report is None or _by(report, self.metric).greater_is_better

    @property
    def best(self) -> ScoredSetting | None:
        """The best setting; None if none is finished, or they cannot be compared."""
        return self.ranked[0] if self.ranked and self.is_comparable else None

    @property
    def headline(self) -> str:
        """Name of the metric by which the settings are sorted."""
        return self.ranked[0].report.metric if self.ranked else self.metric

    @property
    def failed(self) -> list[SettingRun]:
        """The settings whose runs have failed."""
        return [one for one in self.trials if one.state == "failed"]

    @cached_property
    def against_best(self) -> dict[str, Against]:
        """Name -> the difference from the best setting, for each of the others; empty if they cannot be compared."""
        if not self.is_comparable:
            return {}
        return {other.trial.name: against(self.ranked[0].report, other.report) for other in self.ranked[1:]}

    @property
    def within_noise(self) -> list[str]:
        """Names of the settings that could be as good as the best."""
        return [name for name, one in self.against_best.items() if one.within_noise]

    @property
    def is_certain(self) -> bool:
        """Whether the best setting is ahead of every other one by more than noise."""
        return bool(self.against_best) and all(one.within_noise is False for one in self.against_best.values())

    @property
    def best_of(self) -> str:
        """Name of the best setting; empty if there is none."""
        return self.best.trial.name if self.best else ""


def _by(report: Report, metric: str) -> Results:
    """Return a report with another metric as its headline."""
    from hf_distill.metrics.score import greater_is_better
    from hf_distill.metrics.table import AGREEMENT

    if metric in ("", report.metric):
        return report
    better = metric == AGREEMENT or greater_is_better(metric)
    changed = replace(report, metric=metric, greater_is_better=better, gain_error=None, chance=None, best={})
    if metric != AGREEMENT:
        return changed
    # Agreement is not a metric of a model by itself, and is known for the first seed alone.
    student = _agreeing(report.student, report.agreement)
    baseline = None if report.baseline is None else _agreeing(report.baseline, report.baseline_agreement)
    return replace(changed, student=student, baseline=baseline, seeds=())


def _agreeing(model: ModelResult, agreement: float | None) -> ModelResult:
    return model if agreement is None else replace(model, metrics={**model.metrics, "agreement": agreement})


def against(best: Results, other: Results) -> Against:
    """Return the difference between two settings; see `runs.comparison.difference`.

    Raises:
        ValueError: One of them does not have the metric.
    """
    found = difference(best, other)
    if found is None:
        raise ValueError("wanted two reports with the headline metric")
    return Against(found.value, found.noise)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return key -> its last names, as many as are needed to tell it from the others.

    >>> short_keys(["objectives.0.temperature", "objectives[1].weight", "objectives.0.weight", "objectives.2"])
    {'objectives.0.temperature': 'temperature', 'objectives[1].weight': '1.weight', 'objectives.0.weight': '0.weight', \
'objectives.2': 'objectives.2'}
    """
    parts = {key: re.findall(r"[^.\[\]]+", key) or [key] for key in keys}

    def unique(names: Sequence[str]) -> str:
        ends = (list(names[-count:]) for count in range(1, len(names)))
        told = (end for end in ends if not end[0].isdecimal() or len(end) > 1)
        alone = (end for end in told if sum(other[-len(end) :] == end for other in parts.values()) == 1)
        return ".".join(next(alone, names))

    return {key: unique(names) for key, names in parts.items()}
