"""The tables of docs/results.md that `make results` writes: one a study, between its two comments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.quality import sweeps
from benchmarks.quality.studies import ROOT, ROWS, STUDIES
from hf_distill.metrics.significance import half_width
from hf_distill.report.text import SHARES

DOCUMENT = ROOT / "docs" / "results.md"

Measured = Mapping[str, Mapping[str, Any]]


def write_document(studies: Mapping[str, Measured], swept: Mapping[str, Mapping[str, Any]]) -> None:
    """Write every table that has something measured between `<!-- measured: NAME -->` and `<!-- end -->`."""
    tables = {name: lines(name, rows) for name, rows in studies.items() if rows}
    tables |= {f"sweep {name}": sweeps.lines(name, found) for name, found in swept.items() if found}
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables.items():
        between = rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)"
        written = "\n".join(table)
        text = re.sub(between, lambda found, new=written: f"{found[1]}{new}\n{found[2]}", text, flags=re.DOTALL)
    DOCUMENT.write_text(text, encoding="utf-8")


def lines(name: str, rows: Measured) -> list[str]:
    """Return the table of a study: each row's score over the seeds, and its gains with their 95 % intervals."""
    study = STUDIES[name]
    first = rows[study.names[0]]
    metric = first["metric"]
    title = metric.replace("_", " ")
    baseline = [seed["baseline"][metric] for seed in first["seeds"]]
    reference = _values(first, metric)
    teacher = _shown(metric, [first["teacher"][metric]])
    found = [
        f"Teacher: {title} {teacher}. Students: {len(first['seeds'])} seeds, {study.steps} steps each.",
        "",
        f"| learned from | {title} | each seed | against labels alone | against `kl` |",
        "|---|---|---|---|---|",
        _row("labels alone, no teacher", metric, baseline, "", ""),
    ]
    for row in study.names:
        if row in rows:
            values = _values(rows[row], metric)
            error, units = first["gain_error"], first["eval_rows"]
            gain = _gain(metric, values, baseline, error, units)
            other = "" if row == study.names[0] else _gain(metric, values, reference, error, units)
            found.append(_row(ROWS[row].title, metric, values, gain, other))
    command, machine = first["command"].split(" training.")[0], first["machine"]
    measured = ", ".join(f"`{row}`" for row in study.names if row in rows)
    found += [
        "",
        f"`{command}` and the overrides of each row: `make results ROW={name}/ROW` with ROW one of "
        f"{measured}. {first['eval_rows']:,} eval rows; {machine['processor']}, "
        f"{machine['packages'].split(', trl')[0]}; commit {machine['commit']}, {machine['date']}.",
    ]
    return found


def _row(title: str, metric: str, values: Sequence[float], gain: str, other: str) -> str:
    spread = f" (sd {_number(metric, stdev(values))})" if len(values) > 1 else ""
    each = ", ".join(_number(metric, value) for value in values)
    return f"| {title} | {_number(metric, mean(values))}{spread} | {each} | {gain} | {other} |"


def _gain(metric: str, values: Sequence[float], others: Sequence[float], error: float | None, units: int) -> str:
    """Return a mean difference and its 95 % interval, in bold where it is significant.

    The interval is the larger of two: Student's t over the seeds, whose students start and are fed alike; and the
    sampling error of the eval rows, as the report of the first row has it.
    """
    differences = [one - other for one, other in zip(values, others, strict=False)]
    difference, width = mean(differences), half_width(error or 0.0, units, differences)
    text = f"{'+' if difference > 0 else ''}{_number(metric, difference)} ± {_number(metric, width)}"
    return f"**{text}**" if abs(difference) > width else text


def _values(row: Mapping[str, Any], metric: str) -> list[float]:
    return [seed["student"][metric] for seed in row["seeds"]]


def _shown(metric: str, values: Sequence[float]) -> str:
    return ", ".join(_number(metric, value) for value in values)


def _number(metric: str, value: float) -> str:
    """Return a share of rows in percent or points, with one digit; anything else with two."""
    is_share = any(f"_{metric}".endswith(f"_{share}") for share in SHARES)
    return f"{100 * value:.1f}" if is_share else f"{value:.2f}"
