"""For whom it got worse: the models compared on each group of the eval split, or on each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hf_distill.report.fairness import Fairness

# Of fewer rows nothing is said: a t test needs about as many, and a few rows can make any accuracy.
FEWEST = 30

Kind = Literal["group", "class"]
Outcome = Literal["worse", "better", "not significant", "too few rows", "not defined"]


@dataclass(frozen=True)
class GroupResult:
    """The models on one group (or class) of the eval split.

    Attributes:
        name: Name of the group.
        rows: Number of its labelled rows: examples, for tags sentences, for question answering questions.
        metrics: Model -> the metric on these rows, mean over seeds; without models for which it is not defined.
        difference: Student - teacher; None if either is not known.
        interval: Half-width of the 95 % interval of the difference, of this group alone.
        p_value: Two-sided, before the correction for several groups.
        outcome: `worse` or `better` than the teacher, if that is significant after Holm's correction.
        reason: Why the metric is not defined.
        std: Model -> standard deviation of the metric over seeds; empty for one seed.
    """

    name: str
    rows: int
    metrics: Mapping[str, float]
    difference: float | None = None
    interval: float | None = None
    p_value: float | None = None
    outcome: Outcome = "not significant"
    reason: str = ""
    std: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Distance:
    """How far apart the best and the worst group are.

    Attributes:
        metrics: Model -> metric of its best group - metric of its worst, as a positive number; mean over seeds.
        best: Model -> name of its best group.
        worst: Model -> name of its worst group.
        widened: `teacher`, `baseline` -> how much larger the student's distance is than theirs.
        interval: `teacher`, `baseline` -> half-width of the 95 % interval of `widened`.
        std: Model -> standard deviation over seeds; empty for one seed.
    """

    metrics: Mapping[str, float]
    best: Mapping[str, str]
    worst: Mapping[str, str]
    widened: Mapping[str, float]
    interval: Mapping[str, float]
    std: Mapping[str, float] = field(default_factory=dict)

    def changed(self, model: str) -> int:
        """Return 1 if the student's distance is significantly larger than a model's, -1 if smaller, else 0."""
        difference, width = self.widened.get(model), self.interval.get(model)
        if difference is None or width is None or abs(difference) <= width:
            return 0
        return 1 if difference > 0 else -1


@dataclass(frozen=True)
class ForWhom:
    """The models compared on each part of the eval split.

    Attributes:
        by: Name of the column of groups; `class` for the classes.
        kind: Whether the parts are groups or classes.
        metric: The metric: the headline metric by group, the accuracy by class.
        greater_is_better: Whether a greater value is better.
        groups: The groups, the one that lost most first; then those of which nothing can be said.
        distance: Between the best and the worst group; None by class, and with fewer than two groups to compare.
        fairness: Demographic parity and equalised odds; None where they do not apply.
        notes: Sentences on groups that were not evaluated, or not trained on.
    """

    by: str
    kind: Kind
    metric: str
    greater_is_better: bool
    groups: tuple[GroupResult, ...]
    distance: Distance | None = None
    fairness: Fairness | None = None
    notes: tuple[str, ...] = ()

    def with_outcome(self, *outcomes: Outcome) -> list[GroupResult]:
        """Return the groups with one of some outcomes, in their order."""
        return [group for group in self.groups if group.outcome in outcomes]

    @property
    def compared(self) -> int:
        """The number of groups with enough rows to say something of: the m of Holm's correction."""
        return len(self.with_outcome("worse", "better", "not significant"))
