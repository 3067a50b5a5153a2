"""The table of several runs and the sentences about them, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hf_distill.formatting import count, counted
from hf_distill.report.results import Results
from hf_distill.report.runs.comparison import RunComparison, RunDifference, over_seeds
from hf_distill.report.runs.reading import ComparedRun
from hf_distill.report.text import (
    NOTHING,
    Row,
    is_share,
    metric_names,
    metric_title,
    metric_value,
    milliseconds,
    number,
    percent,
    signed,
    unsigned,
)

T = TypeVar("T")


@dataclass(frozen=True)
class RunPart:
    """Some rows of the table with a heading.

    Attributes:
        title: Heading.
        rows: The rows; their cells by name of the run.
    """

    title: str
    rows: tuple[Row, ...]


def parts(compared: RunComparison) -> list[RunPart]:
    """Return the table: in what the recipes differ, then quality, then size and speed. Empty parts are left out."""
    names = [run.name for run in compared.runs]
    keys = (
        Row(key, {name: NOTHING if value is None else value for name, value in zip(names, values, strict=True)})
        for key, values in compared.changed.items()
    )
    found = [
        RunPart("Recipe", tuple(keys)),
        RunPart("Quality", tuple(_quality(compared))),
        RunPart("Size and speed", tuple(_cost(compared))),
    ]
    return [part for part in found if part.rows]


def _quality(compared: RunComparison) -> Iterator[Row]:
    runs = compared.runs
    metrics = {run.report.metric for run in runs}
    same = len(metrics) == 1
    names = dict.fromkeys(name for run in runs for name in metric_names(run.report))
    for name in sorted(names, key=lambda one: one not in metrics):
        yield Row(metric_title(name), _cells(runs, partial(_metric, name=name)), name in metrics and same)
        if same and name in metrics:
            yield from _differences(compared)
    if any(run.report.baseline is not None for run in runs):
        yield Row("without teacher", _cells(runs, lambda one: _headline(one, "baseline")))
        yield Row("effect of distillation", _cells(runs, _gain))
    yield Row("teacher", _cells(runs, lambda one: _headline(one, "teacher")))
    if any(run.report.retention is not None for run in runs):
        yield Row("kept of the teacher", _cells(runs, lambda one: percent(one.retention)))
    if any(run.report.agreement is not None for run in runs):
        agreement = _cells(runs, lambda one: percent(one.agreement))
        yield Row("agreement with its teacher", agreement, headline=metrics == {"agreement"})
    if any("student" in run.report.calibration for run in runs):
        yield Row(
            "calibration error (ECE)",
            _cells(runs, lambda one: percent(one.calibration["student"].ece) if one.calibration else NOTHING),
        )
    if len({run.report.eval_rows for run in runs}) > 1 or len(compared.alike) > 1:
        yield Row("eval rows", _cells(runs, lambda one: NOTHING if one.eval_rows is None else f"{one.eval_rows:,}"))


def _differences(compared: RunComparison) -> Iterator[Row]:
    for group in compared.alike:
        best, behind = compared.best(group), compared.behind(group)
        if best is not None and behind:
            cells = {run.name: NOTHING for run in compared.runs} | {
                name: with_noise(best.report, one.value, one.noise) for name, one in behind.items()
            }
            yield Row(f"difference from {best.name}", {**cells, best.name: "best"})


def _cells(runs: Sequence[ComparedRun], text: Callable[[Results], str]) -> dict[str, str]:
    return {run.name: text(run.report) for run in runs}


def _metric(report: Results, name: str) -> str:
    value, spread = over_seeds(report, name)
    return metric_value(report, name, value) + ("" if spread is None else f" (± {_plain(report, spread, name)})")


def _headline(report: Results, model: str) -> str:
    if model == "baseline":
        return metric_value(report, report.metric, over_seeds(report, report.metric, model)[0])
    return metric_value(report, report.metric, report.headline(model))


def _gain(report: Results) -> str:
    return NOTHING if report.gain is None else with_noise(report, report.gain, report.noise)


def with_noise(report: Results, value: float, noise: float | None) -> str:
    """Return a difference on the headline metric with its interval: `+1.2 ± 0.8`."""
    text = signed(report, value).removesuffix(" points")
    return text if noise is None else f"{text} ± {_plain(report, noise)}"


def _plain(report: Results, value: float, metric: str = "") -> str:
    return unsigned(report, value, metric).removesuffix(" points")


def _cost(compared: RunComparison) -> Iterator[Row]:
    runs = compared.runs
    if len({run.report.student.weights for run in runs}) > 1:
        yield Row("weights", _cells(runs, lambda one: one.student.weights or NOTHING))
    yield Row("parameters", _cells(runs, lambda one: _known(one.student.parameters, count)))
    yield Row("size", _cells(runs, lambda one: _known(one.student.bytes, lambda size: f"{size / 1e6:,.1f} MB")))
    first = next((run.report.student.latency for run in runs if run.report.student.latency is not None), None)
    if first is None or compared.why_no_speed:
        return
    for label, text in (
        ("latency, batch 1", lambda one: milliseconds(one.single.median_ms)),
        (f"latency, batch {first.batch.batch_size}", lambda one: milliseconds(one.batch.median_ms)),
        ("throughput (examples/s)", lambda one: number(one.throughput)),
    ):
        yield Row(label, {run.name: _known(run.report.student.latency, text) for run in runs})


def _known(value: T | None, text: Callable[[T], str]) -> str:
    return NOTHING if value is None else text(value)


# ---- Sentences -------------------------------------------------------------------------------------------------------


def verdict(compared: RunComparison) -> list[str]:
    """Return which run is best, which of the others could be as good, and what is not compared, and why."""
    lines = []
    if compared.why_not_compared:
        lines.append(f"Not all runs are compared on quality: {compared.why_not_compared}.")
    lines += [line for group in compared.alike if len(group) > 1 and (line := _best(compared, group))]
    return lines


def _best(compared: RunComparison, group: Sequence[ComparedRun]) -> str:
    best, behind = compared.best(group), compared.behind(group)
    if best is None or not behind:
        return ""
    report = best.report
    value = metric_value(report, report.metric, over_seeds(report, report.metric)[0])
    if all(abs(one.value) == 0 for one in behind.values()):
        return f"{_listed([best.name, *behind])} have the same {metric_title(report.metric)}, {value}."
    among = f"Of {_listed([run.name for run in group])} " if len(compared.alike) > 1 else ""
    word = "highest" if report.greater_is_better else "lowest"
    start = f"{among}{best.name} has the {word} {metric_title(report.metric)}, {value}."
    return " ".join([start[0].upper() + start[1:] if among else start, *_certainty(report, behind)])


def _certainty(report: Results, behind: dict[str, RunDifference]) -> Iterator[str]:
    def told(names: Sequence[str]) -> str:
        return _listed([f"{name} ({with_noise(report, behind[name].value, behind[name].noise)})" for name in names])

    within = [name for name, one in behind.items() if one.within_noise]
    beyond = [name for name, one in behind.items() if one.within_noise is False]
    unknown = [name for name, one in behind.items() if one.within_noise is None]
    if within:
        verb = "is" if len(within) == 1 else "are"
        yield f"{told(within)} {verb} within noise of it: this comparison does not show which is better."
    if beyond:
        verb = "is" if len(beyond) == 1 else "are"
        yield f"{told(beyond)} {verb} further behind than noise."
    if unknown:
        yield f"Whether the difference from {told(unknown)} is more than noise is not known."


def notes(compared: RunComparison) -> list[str]:
    """Return sentences on how to read the table."""
    found = []
    behind = [one for group in compared.alike for one in compared.behind(group).values()]
    if any(one.noise is not None for one in behind):
        found.append(
            "± after a difference: its 95 % interval, the wider of two: over the seeds that both runs have, and over "
            "eval splits of this size (a paired bootstrap over rows). Each interval stands alone: of 20 equal runs, "
            "one looks worse by chance."
        )
    if lacking := compared.not_resampled:
        found.append(
            f"{_listed(lacking)}: reports of an earlier version, or of a metric that is not computed row by row. Their "
            "noise is known for accuracy and exact match, where it is rather too wide, and with several seeds."
        )
    if any(len(run.report.seeds) > 1 for run in compared.runs):
        seeds = {run.name: max(len(run.report.seeds), 1) for run in compared.runs}
        told = ", ".join(f"{name} {n}" for name, n in seeds.items())
        found.append(f"Metrics are means over seeds (± standard deviation). Number of seeds: {told}.")
    apart = compared.not_comparable
    found += [f"The values of {metric_title(name)} are not comparable: {why}." for name, why in apart.items()]
    if any(is_share(run.report, run.report.metric) for run in compared.runs):
        found.append("Differences of percentages are in points.")
    if compared.why_no_speed:
        found.append(f"Speed is not compared: {compared.why_no_speed}.")
    else:
        latency = next((run.report.student.latency for run in compared.runs if run.report.student.latency), None)
        if latency is not None:
            threads = counted(latency.threads, "CPU thread")
            found.append(
                f"Speed: one forward pass on {latency.device} with {threads}, measured in the run of each: "
                "other load may have differed."
            )
    if not any(part.title == "Recipe" for part in parts(compared)):
        found.append("The recipes are the same but for where they write.")
    return found


def _listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
