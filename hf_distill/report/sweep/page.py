"""The result of a sweep as plain values (`sweep.json`) and as a page (`sweep.html`)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.report.rendering import render
from hf_distill.report.sweep.plot import plot
from hf_distill.report.sweep.text import rows, titles, verdict

if TYPE_CHECKING:
    from hf_distill.report.sweep.results import ScoredSetting, Sweep


def to_plain(sweep: Sweep) -> dict[str, Any]:
    """Return what `sweep.json` holds: the best setting, the sentences, and every setting with its figures."""
    figures = {one.trial.name: _figures(sweep, one) for one in sweep.ranked}
    commands = sweep.command or {}
    names = [one.trial.name for one in sweep.ranked]
    trials = sorted(sweep.trials, key=lambda one: names.index(one.name) if one.name in figures else len(names))
    return {
        "recipe": sweep.recipe,
        "keys": list(sweep.keys),
        "metric": sweep.headline,
        "greater_is_better": sweep.greater_is_better,
        "best": sweep.best_of or None,
        "certain": sweep.is_certain,
        "command": commands.get(sweep.best_of),
        "verdict": verdict(sweep),
        "settings": [
            {
                "directory": one.name,
                "values": dict(one.values),
                "state": one.state,
                **({"error": one.error} if one.error else {}),
                **({"sources": one.sources} if one.sources else {}),
                **figures.get(one.name, {}),
            }
            for one in trials
        ],
    }


def _figures(sweep: Sweep, one: ScoredSetting) -> dict[str, Any]:
    against = sweep.against_best.get(one.trial.name)
    report = one.report
    return {
        "student": one.value,
        "seeds": list(one.values),
        "std": one.spread,
        "teacher": _finite(one.teacher),
        "baseline": _finite(one.baseline),
        "gain": report.gain,
        "gain_noise": report.noise,
        "below_best": None if against is None else abs(against.difference),
        "below_best_noise": None if against is None else against.noise,
        "within_noise": None if against is None else against.within_noise,
        "parameters": report.student.parameters,
        "bytes": report.student.bytes,
        "step_seconds": one.step_seconds,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def html(sweep: Sweep) -> str:
    """Return the page. The same result gives the same bytes."""
    from markupsafe import Markup

    drawn = plot(sweep)
    return render(
        "sweep.html.jinja",
        name=Path(sweep.recipe).stem,
        verdict=verdict(sweep),
        titles=titles(sweep),
        rows=rows(sweep),
        plot=drawn and replace(drawn, svg=Markup(drawn.svg)),
        command=(sweep.command or {}).get(sweep.best_of, ""),
        student=sweep.best_of,
    )
