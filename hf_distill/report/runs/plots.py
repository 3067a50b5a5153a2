"""Plots of several runs: one colour and one shape for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hf_distill.report.curves import OBJECTIVE, Curve, Quantity, panels
from hf_distill.report.drawing import Bars, PlotLine
from hf_distill.report.plots import Plot, bars_plot, lines_plot
from hf_distill.report.runs.comparison import changed, over_seeds
from hf_distill.report.runs.text import with_noise
from hf_distill.report.svg import RUNS
from hf_distill.report.text import metric_title, metric_value, number

if TYPE_CHECKING:
    from hf_distill.report.runs.comparison import RunComparison
    from hf_distill.report.runs.reading import ComparedRun

STUDENT = "student"
# Panels of curves of objectives.
PANELS = 5


def keys(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Return name -> key of its colour, for the runs that there are colours for: the first ones."""
    return dict(zip((run.name for run in runs), RUNS, strict=False))


def plots(compared: RunComparison) -> list[Plot]:
    """Return the plots: the headline metric, the effect of distillation, and the curves that have one scale."""
    return [*_bars(compared), *_curves(compared)]


def _bars(compared: RunComparison) -> Iterator[Plot]:
    key = keys(compared.runs)
    runs = [run for group in compared.alike if len(group) > 1 for run in group if run.name in key]
    values = {run: over_seeds(run.report, run.report.metric)[0] for run in runs} if len(compared.alike) == 1 else {}
    known = {run: value for run, value in values.items() if value is not None}
    if known:
        report = next(iter(known)).report
        texts = {key[run.name]: metric_value(run.report, report.metric, value) for run, value in known.items()}
        strokes = {
            key[run.name]: [
                float(seed.student[report.metric]) for seed in run.report.seeds if report.metric in seed.student
            ]
            for run in known
            if len(run.report.seeds) > 1
        }
        bars = {key[run.name]: value for run, value in known.items()}
        panel = Bars("", bars, texts, {name: max(all_of) for name, all_of in strokes.items()}, strokes)
        note = "Small strokes: every seed." if strokes else ""
        says = "A bar for each run; the table has the same values."
        yield bars_plot(metric_title(report.metric), [panel], says=says, note=note)
    gains = {run: run.report.gain for run in compared.runs if run.name in key}
    known = {run: gain for run, gain in gains.items() if gain is not None}
    if len(known) > 1 and len(compared.alike) == 1:
        texts = {key[run.name]: with_noise(run.report, gain, run.report.noise) for run, gain in known.items()}
        panel = Bars("", {key[run.name]: gain for run, gain in known.items()}, texts, {}, {})
        note = "Each student minus the same student trained without its teacher; ±: 95 % interval."
        says = "A bar for each run; the table has the same values."
        yield bars_plot("Effect of distillation", [panel], says=says, note=note)


def _curves(compared: RunComparison) -> Iterator[Plot]:
    """Yield the curves of the students: the metric on the same eval rows, and objectives with the same settings."""
    key = keys(compared.runs)
    names = {key[run.name]: run.name for run in compared.runs if run.name in key}
    found: dict[Quantity, dict[ComparedRun, Mapping[bool, Curve]]] = {}
    for run in compared.runs:
        for quantity, curves in panels(run.report).items() if run.name in key else ():
            own = {evaluated: curve for (part, evaluated), curve in curves.items() if part == STUDENT}
            if own:
                found.setdefault(quantity, {})[run] = own
    shown = [quantity for quantity, runs in found.items() if len(runs) > 1 and _same(compared, quantity, list(runs))]
    for quantity in sorted(shown, key=lambda one: one.name.startswith(OBJECTIVE))[: PANELS + 1]:
        report = next(iter(found[quantity])).report
        is_metric = quantity.name == report.metric
        lines = [
            PlotLine(key[run.name], curve.steps, curve.values, marked=evaluated, alpha=1.0 if evaluated else 0.7)
            for run, own in found[quantity].items()
            for evaluated, curve in own.items()
        ]
        text = partial(metric_value, report, report.metric) if is_metric else number
        note = (
            "On the eval split."
            if is_metric
            else "Thin line: training. Dots: eval split. Without the objective's weight."
        )
        first = " The first seed of each." if any(len(run.report.seeds) > 1 for run in found[quantity]) else ""
        yield lines_plot(quantity.title, lines, names, text, note=f"{note}{first}")


def _same(compared: RunComparison, quantity: Quantity, runs: Sequence[ComparedRun]) -> bool:
    """Return whether a quantity has one scale in some runs."""
    if any(all(run in group for run in runs) for group in compared.alike):
        if not quantity.name.startswith(OBJECTIVE):
            return quantity.name != "loss"  # a weighted sum: comparable with no other training
        path = f"objectives.{quantity.name.removeprefix(OBJECTIVE)}."
        keys_ = changed(runs)
        if any(key.startswith("stages") for key in keys_):
            return False
        # The loss of a teacher's outputs depends on the teacher too.
        teacher = path != "objectives.labels." and any(key.startswith("teacher") for key in keys_)
        return not teacher and not any(key.startswith(path) and key != f"{path}weight" for key in keys_)
    return False
