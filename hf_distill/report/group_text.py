"""For whom it got worse, in words: the sentences of the verdict, and the table of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.formatting import counted
from hf_distill.report.for_whom import FEWEST
from hf_distill.report.text import TITLES, metric_title, metric_value, number, signed, unsigned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_distill.report.for_whom import Distance, ForWhom, GroupResult
    from hf_distill.report.results import Results

METRICS = {"demographic_parity_difference": "demographic parity", "equalized_odds_difference": "equalised odds"}


@dataclass(frozen=True)
class Line:
    """One line of the table of groups.

    Attributes:
        name: Name of the group.
        rows: Number of its rows.
        cells: Model -> its metric, as text.
        difference: Student - teacher, with its interval.
        outcome: `worse`, `better`, `too few rows`, ...
    """

    name: str
    rows: int
    cells: Mapping[str, str]
    difference: str
    outcome: str


def heading(whom: ForWhom) -> str:
    """Return the title of the table of groups."""
    return f"For whom did it get worse? By {_by(whom)}"


def _by(whom: ForWhom) -> str:
    return whom.by if whom.kind == "class" else f"'{whom.by}'"


def groups_shown(report: Results, whom: ForWhom, limit: int) -> list[Line]:
    """Return the lines of the table, the group that lost most first."""
    return [
        Line(
            group.name,
            group.rows,
            {model: _cell(report, whom, group, model) for model in report.models},
            _difference(report, whom, group),
            "" if group.outcome == "not significant" else group.outcome,
        )
        for group in whom.groups[:limit]
    ]


def _cell(report: Results, whom: ForWhom, group: GroupResult, model: str) -> str:
    value = metric_value(report, whom.metric, group.metrics.get(model))
    return f"{value} (± {_plain(report, whom, group.std[model])})" if model in group.std else value


def _difference(report: Results, whom: ForWhom, group: GroupResult) -> str:
    if group.difference is None:
        return number(None)
    change = signed(report, group.difference, whom.metric).removesuffix(" points")
    return change if group.interval is None else f"{change} ± {_plain(report, whom, group.interval)}"


def _plain(report: Results, whom: ForWhom, value: float) -> str:
    return unsigned(report, value, whom.metric).removesuffix(" points")


def notes(report: Results, whom: ForWhom, limit: int) -> list[str]:
    """Return sentences that say how to read the table, what it leaves out, and the metrics of fairness."""
    seeds = f"; mean over {len(report.seeds)} seeds (± standard deviation)" if len(report.seeds) > 1 else ""
    together = f" for all {whom.compared} compared together (Holm's correction)" if whom.compared > 1 else ""
    told = [
        f"The {metric_title(whom.metric)} on each {whom.kind}{seeds}. Difference: student minus teacher, with the 95 % "
        f"interval of that {whom.kind} alone. Worse or better: significant at 5 %{together}."
    ]
    if len(whom.groups) > limit:
        told.append(f"{len(whom.groups) - limit} more are in report.json.")
    if whom.with_outcome("too few rows"):
        told.append(f"Too few rows: fewer than {FEWEST}.")
    told += [f"{_some(names)}: not defined, {reason}." for reason, names in _undefined(whom, limit).items()]
    return [*told, *whom.notes, *fairness_shown(whom)]


def _undefined(whom: ForWhom, limit: int) -> dict[str, list[str]]:
    """Return why a metric is not defined -> the groups."""
    found: dict[str, list[str]] = {}
    for group in whom.groups[:limit]:
        if group.reason:
            found.setdefault(group.reason, []).append(group.name)
    return found


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def fairness_shown(whom: ForWhom) -> list[str]:
    """Return a sentence for each metric of fairness, and why one is missing."""
    fair = whom.fairness
    if fair is None:
        return []
    found = []
    for place, (name, title) in enumerate(METRICS.items()):
        values: Mapping[str, float] = getattr(fair, name)
        texts = [
            f"{TITLES[model]} {number(round(value, 4))}" + (f" ('{fair.of[model][place]}')" if model in fair.of else "")
            for model, value in values.items()
        ]
        if texts:
            found.append(f"Difference in {title} between groups (0 is equal): {', '.join(texts)}.")
    return [*found, fair.note] if fair.note else found


# ---- The verdict -----------------------------------------------------------------------------------------------------


def for_whom_sentence(report: Results, whom: ForWhom) -> str:
    """Return the sentences of the verdict about the groups; "" by class, where no class got worse."""
    worse = whom.with_outcome("worse")
    if whom.kind == "class" and not worse:
        return ""
    texts = [_worse(report, whom, worse) if worse else _none_worse(whom)]
    if whom.distance is not None:
        texts.append(_distance(report, whom, whom.distance))
    return " ".join(texts)


def _worse(report: Results, whom: ForWhom, worse: list[GroupResult]) -> str:
    most = worse[0]
    of = "classes" if whom.kind == "class" else f"groups of {_by(whom)}"
    values = [
        metric_value(report, whom.metric, most.metrics[model]).removesuffix(" %") for model in ("student", "teacher")
    ]
    facts = [signed(report, most.difference or 0.0, whom.metric)]
    facts += [f"95 % interval ± {_plain(report, whom, most.interval)}"] if most.interval is not None else []
    facts += [counted(most.rows, "row")]
    start, certain = f"It got worse for {len(worse)} of {whom.compared} {of}, most for '{most.name}'", "significant"
    if len(worse) == 1:
        start = f"It got worse for 1 of {whom.compared} {of}, '{most.name}'"
    if whom.compared == 1:
        start = f"It got worse for '{most.name}', {_the_only(whom)}"
    else:
        certain = f"significant with Holm's correction for {whom.compared}"
    return (
        f"{start}: {metric_title(whom.metric)} {values[0]} against the teacher's {values[1]} "
        f"({', '.join(facts)}; {certain})."
    )


def _the_only(whom: ForWhom) -> str:
    """Return how the only group is called that can be compared."""
    of = "class" if whom.kind == "class" else f"group of {_by(whom)}"
    return f"the only {of} with at least {FEWEST} rows"


def _none_worse(whom: ForWhom) -> str:
    few = len(whom.groups) - whom.compared
    if not whom.compared:
        return (
            f"For whom it got worse is not known: no group of {_by(whom)} has {FEWEST} rows on which "
            f"{metric_title(whom.metric)} is defined."
        )
    left = f"; {few} more cannot be judged" if few else ""
    if whom.compared == 1:
        name = whom.with_outcome("better", "not significant")[0].name
        return f"The student is not shown to be worse than the teacher for '{name}', {_the_only(whom)}{left}."
    return (
        f"The student is not shown to be worse than the teacher for any of {whom.compared} groups of {_by(whom)} "
        f"(Holm's correction{left})."
    )


def _distance(report: Results, whom: ForWhom, distance: Distance) -> str:
    """Return whether the best and worst group are further apart than they were."""

    def apart(model: str) -> str:
        return _plain(report, whom, distance.metrics[model])

    words = {1: "grew", -1: "shrank", 0: "did not change significantly"}[distance.changed("teacher")]
    width = distance.interval.get("teacher")
    interval = "" if width is None else f" ± {_plain(report, whom, width)}"
    change, points, _ = signed(report, distance.widened["teacher"], whom.metric).partition(" points")
    text = (
        f"The gap between the best and the worst group {words}: {apart('student')} against the teacher's "
        f"{apart('teacher')} ({change}{interval}{points})"
    )
    if "baseline" in distance.widened:
        doubt = {1: "smaller", -1: "larger", 0: "not significantly different"}[distance.changed("baseline")]
        text += f"; without the teacher it is {apart('baseline')} ({doubt})"
    return f"{text}."
