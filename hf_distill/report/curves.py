"""The curves of a report: what was logged, one quantity a panel, so that what stands side by side can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.report.model_card import recipe_of

if TYPE_CHECKING:
    from hf_distill.report.results import Results

OBJECTIVE = "objective/"
STUDENT = "student"


@dataclass(frozen=True, order=True)
class Quantity:
    """What a panel shows: values of two different quantities have different scales.

    Attributes:
        name: `objective/kl`, a metric, or `loss`, the weighted sum of all objectives.
        of: Where it is not the same for all trainings: whose it is, such as `student` or `stage 1`.
    """

    name: str
    of: str = ""

    @property
    def title(self) -> str:
        """Above the panel."""
        name = self.name if self.name.startswith(OBJECTIVE) else f"eval {self.name}"
        return f"{name}, {self.of}" if self.of else name


@dataclass
class Curve:
    """Values by optimiser step; NaN where there was no number, so that the line has a gap.

    Attributes:
        steps: Those of stages count on.
        values: As many.
    """

    steps: list[float]
    values: list[float]


# (run, whether on the eval split) -> its curve.
Curves = dict[tuple[str, bool], Curve]


def panels(report: Results) -> dict[Quantity, Curves]:
    """Return every panel that has a number: objectives first, which were minimised, then the metric, then losses."""
    settings = _Settings(report)
    found: dict[Quantity, Curves] = {}
    before: dict[str, float] = {}
    for part, history in report.history.items():
        # The stages of a training are one curve: each counts its steps on from the one before it.
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
    """Yield name, whether it is of the eval split, step and value of all that was logged with a step."""
    for entry in history:
        for key, value in entry.items() if "step" in entry else ():
            name = key.removeprefix("eval_")
            if value is None or (isinstance(value, (int, float)) and not math.isfinite(value)):
                yield name, name != key, entry["step"], math.nan  # a report that was read again has None for NaN
            elif isinstance(value, (int, float)):
                yield name, name != key, entry["step"], float(value)


class _Settings:
    """What the objectives of the trainings were, as far as the recipe tells.

    The temperature of `kl` and the smoothing of `labels` decide the scale of what is logged under their names.
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
        """Return which panel a value belongs to; None where it is not shown."""
        if name.startswith(OBJECTIVE):
            return Quantity(name, self._whose(name.removeprefix(OBJECTIVE), run, stage))
        if evaluated and name == metric:
            return Quantity(name)
        # The loss of a baseline is its `objective/labels`; a student's is a weighted sum of other terms, on its own.
        if evaluated and name == "loss" and run.startswith(STUDENT):
            return Quantity(name, f"{STUDENT}, stage {stage}" if stage else STUDENT)
        return None

    def _whose(self, objective: str, run: str, stage: str) -> str:
        every = {settings for (name, _), settings in self._known.items() if name == objective}
        if run.partition(" ")[0] == "teacher":  # trained with the plain loss on labels
            return "teacher" if every - {"[]"} else ""
        return f"stage {stage}" if len(every) > 1 and stage else ""
