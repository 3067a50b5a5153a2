"""The models from the first teacher to a student: which they are, and what the student kept of the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_distill.formatting import count
from hf_distill.report.results import ModelResult
from hf_distill.report.text import NOTHING, metric_title, metric_value, milliseconds, percent

if TYPE_CHECKING:
    from hf_distill.report.ancestors import Ancestor
    from hf_distill.report.results import Results


@dataclass(frozen=True)
class Generation:
    """One model of a lineage as report and model card show it.

    Attributes:
        model: The model.
        cells: Title of a column -> text.
    """

    model: Ancestor
    cells: Mapping[str, str]


def is_long(report: Results) -> bool:
    """Return whether the teacher is itself a student, so that the lineage says more than the table."""
    return len(report.lineage) > 2


def comparable(report: Results, model: Ancestor) -> bool:
    """Return whether a model was measured by the same metric on the same rows as the student."""
    known = model.value is not None and math.isfinite(model.value)
    return known and model.metric == report.metric and bool(model.rows) and model.rows == report.lineage[-1].rows


def against_first(report: Results) -> Results | None:
    """Return the report with the first teacher in place of the student's own; None if it cannot be compared."""
    first = report.lineage[0]
    if not comparable(report, first) or first.value is None:
        return None
    return replace(report, teacher=ModelResult({report.metric: first.value}, first.parameters, first.bytes))


def generations(report: Results) -> list[Generation]:
    """Return the models of a lineage with the cells of their table; empty if teacher and student are all of it."""
    return [Generation(one, _cells(report, one)) for one in report.lineage] if is_long(report) else []


def _cells(report: Results, model: Ancestor) -> dict[str, str]:
    kept = None
    if comparable(report, model) and model.value is not None and (first := against_first(report)) is not None:
        kept = replace(first, student=ModelResult({report.metric: model.value}, None, None)).retention
    return {
        "made by": model.made or NOTHING,
        "parameters": NOTHING if model.parameters is None else count(model.parameters),
        "size": NOTHING if model.bytes is None else f"{model.bytes / 1e6:,.1f} MB",
        metric_title(report.metric): value_of(report, model),
        "kept of the first": percent(kept),
        "latency, batch 1": NOTHING if model.latency_ms is None else milliseconds(model.latency_ms),
    }


def value_of(report: Results, model: Ancestor) -> str:
    """Return the headline metric of a model; with its name if it is another one, and marked if the rows are others."""
    if model.value is None:
        return NOTHING
    if comparable(report, model):
        return metric_value(report, report.metric, model.value)
    name = f"{metric_title(model.metric)} " if model.metric != report.metric else ""
    return f"{name}{metric_value(report, model.metric, model.value)} (on other rows)"


def in_one_line(report: Results) -> str:
    """Return the lineage as one line; "" if teacher and student are all of it."""
    if not is_long(report):
        return ""
    sizes = [NOTHING if one.parameters is None else count(one.parameters) for one in report.lineage]
    shown = (f"{one.name} ({size}, {value_of(report, one)})" for one, size in zip(report.lineage, sizes, strict=True))
    return f"Lineage: {' -> '.join(shown)}"
