"""The curves of a report: each panel shows one logged quantity, so that its curves can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.report.recipe_facts import recipe_of

if TYPE_CHECKING:
    from hf_distill.report.results import Results

OBJECTIVE = "objective/"
STUDENT = "student"


@dataclass(frozen=True, order=True)
class Quantity:
    """The quantity that a panel shows.

    Attributes:
        name: `objective/kl`, a metric, or `loss`, the weighted sum of all objectives.
        of: Whose it is, such as `student` or `stage 1`, if its scale differs between trainings; else empty.
    """

    name: str
    of: str = ""

    @property
    def title(self) -> str:
        """Title of the panel."""
        name = self.name if self.name.startswith(OBJECTIVE) else f"eval {self.name}"
        return f"{name}, {self.of}" if self.of else name


@dataclass
class Curve:
    """Values by optimiser step; a NaN makes a gap in the line.

    Attributes:
        steps: Optimiser steps, counted through all stages.
        values: A value for each step.
    """

    steps: list[float]
    values: list[float]


# (run, whether on the eval split) -> its curve.
Curves = dict[tuple[str, bool], Curve]


def panels(report: Results) -> dict[Quantity, Curves]:
    """Return the panels that have a number: first the objectives, then the metric, then losses."""
    settings = _Settings(report)
    found: dict[Quantity, Curves] = {}
    before: dict[str, float] = {}
    for part, history in report.history.items():
        # The stages of a training are one curve: the steps of each are counted from the end of the one before.
        run, _, stage = part.partition(" stage ")
        offset = before.get(run, 0)
        before[run] = offset + max((entry["step"] for entry in history if "step" in entry), default=0)
        for name, evaluated, step, value in _logged(history):
            quantity = settings.quantity(name, evaluated, run, stage, report.metric)
            if quantity is not None:
                curve = found.setdefault(quantity, {}).setdefault((run, evaluated), Curve([], []))
                curve.steps.append(offset + step)
                curve.values.append(value)
    shown = {
        quantity: curves
        for quantity, curves in found.items()
        if any(math.isfinite(value) for curve in curves.values() for value in curve.values)
    }
    order = sorted(shown, key=lambda one: (not one.name.startswith(OBJECTIVE), one.name == "loss"))
    return {quantity: shown[quantity] for quantity in order}


def _logged(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bool, float, float]]:
    """Yield name, whether it is from the eval split, step and value of each logged number."""
    for entry in history:
        for key, value in entry.items() if "step" in entry else ():
            name = key.removeprefix("eval_")
            if value is None or (isinstance(value, (int, float)) and not math.isfinite(value)):
                yield name, name != key, entry["step"], math.nan  # a report loaded from JSON has None for NaN
            elif isinstance(value, (int, float)):
                yield name, name != key, entry["step"], float(value)


class _Settings:
    """The settings of the trainings' objectives, from the recipe.

    Values logged under the same name can be compared only if their settings are the same: the temperature of `kl` and
    the smoothing of `labels` change the scale.
    """

    def __init__(self, report: Results) -> None:
        recipe = recipe_of(report.recipe)
        stages = recipe.get("stages") or [recipe]
        # (name of an objective, number of the stage) -> its settings.
        self._known: dict[tuple[str, str], str] = {}
        for number, stage in enumerate(stages, 1):
            names: list[str] = []
            for entry in stage.get("objectives") or ():
                names.append(str(entry.get("name")))
                repeated = names.count(names[-1])
                name = names[-1] if repeated == 1 else f"{names[-1]}_{repeated}"
                own = {key: value for key, value in entry.items() if key not in ("name", "weight")}
                self._known[name, str(number) if len(stages) > 1 else ""] = repr(sorted(own.items()))

    def quantity(self, name: str, evaluated: bool, run: str, stage: str, metric: str) -> Quantity | None:
        """Return the quantity (panel) to which a logged value belongs; None if it is not shown."""
        if name.startswith(OBJECTIVE):
            return Quantity(name, self._whose(name.removeprefix(OBJECTIVE), run, stage))
        if evaluated and name == metric:
            return Quantity(name)
        # A baseline's loss is its `objective/labels`; a student's is a weighted sum, comparable with no other training.
        if evaluated and name == "loss" and run.startswith(STUDENT):
            return Quantity(name, f"{STUDENT}, stage {stage}" if stage else STUDENT)
        return None

    def _whose(self, objective: str, run: str, stage: str) -> str:
        every = {settings for (name, _), settings in self._known.items() if name == objective}
        if run.partition(" ")[0] == "teacher":  # trained with the plain loss on labels
            return "teacher" if every - {"[]"} else ""
        return f"stage {stage}" if len(every) > 1 and stage else ""
