"""What language models write on held-out prompts, and how the teacher finds it: figures with their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hf_distill.completions.statistics import Written, describe
from hf_distill.metrics.bootstrap import Units, gain_error, spread

Array = NDArray[np.float64]

# Resampled sets of prompts: cheap, as only sums are resampled.
SAMPLES = 1000

# Figure -> what it is called in the report, with its unit.
TITLES: Mapping[str, str] = {
    "reverse_kl": "reverse KL (nats a token)",
    "forward_kl": "forward KL (nats a token)",
    "acceptance": "acceptance (1 - TV)",
    "teacher_loss": "teacher's loss of a token",
    "top_overlap": "top-16 overlap",
    "teacher_mass": "its mass under the teacher",
    "student_mass": "its mass under the model",
    "draft_acceptance": "acceptance on the teacher's text",
    "exposure_error": "excess error on own text (ExAccErr)",
    "completion_length": "tokens",
    "completion_length_p95": "tokens, 95th percentile",
    "ended": "ended by the model",
    "repeated_4grams": "repeated runs of 4 tokens",
    "distinct": "different texts",
}
SHARES = frozenset(
    ("acceptance", "top_overlap", "teacher_mass", "student_mass", "draft_acceptance", "ended", "repeated_4grams")
) | {"distinct", "exposure_error"}


@dataclass(frozen=True)
class OwnTexts:
    """The completions of one model, and sums over the tokens of each.

    Attributes:
        written: What is counted of each completion.
        sums: Figure -> sum over the tokens of each completion and number of tokens, `(completions, 2)`.
        on_teacher: Of the teacher's completions, the same of `forward_kl` and `acceptance`; empty if it wrote none.
    """

    written: Sequence[Written]
    sums: Mapping[str, Array] = field(default_factory=dict)
    on_teacher: Mapping[str, Array] = field(default_factory=dict)

    def units(self) -> dict[str, Units]:
        """Return what the figures that are means over tokens, or over completions, are computed from."""
        found = {name: _ratio(sums) for name, sums in self.sums.items()}
        if "acceptance" in self.on_teacher:
            found["draft_acceptance"] = _ratio(self.on_teacher["acceptance"])
        counted = np.array([[one.length, 1.0, one.ended, one.repeated, one.runs] for one in self.written])
        if len(counted):
            found["completion_length"] = _ratio(counted[:, [0, 1]])
            found["ended"] = _ratio(counted[:, [2, 1]])
            found["repeated_4grams"] = _ratio(counted[:, [3, 4]])
        return found

    def figures(self) -> dict[str, float]:
        """Return all figures by name, in the order of `TITLES`; those that are not known are left out."""
        found = {name: units.value() for name, units in self.units().items()}
        found = {**describe(self.written), **found}
        if "forward_kl" in self.on_teacher:
            theirs = _mean(self.on_teacher["forward_kl"])
            found["exposure_error"] = _mean(self.sums["forward_kl"]) / theirs - 1 if theirs else math.nan
        return {name: found[name] for name in TITLES if name in found and np.isfinite(found[name])}

    def errors(self) -> dict[str, float]:
        """Return the standard error over prompts of the figures that have one."""
        found = {name: spread(units.resampled(SAMPLES)) for name, units in self.units().items()}
        return {name: error for name, error in found.items() if error is not None}


def _ratio(sums: Array) -> Units:
    """Return the units of a sum divided by a number, from both for each completion, `(completions, 2)`."""
    return Units((sums,), _mean, sums[:, 1] > 0)


def _mean(sums: Array) -> float:
    total, count = sums.sum(0)
    return float(total / count) if count else math.nan


@dataclass(frozen=True)
class Difference:
    """A figure of the student minus that of the baseline, on the same prompts.

    Attributes:
        value: The difference.
        error: Its standard error over prompts, from pairs; None if it is not known.
    """

    value: float
    error: float | None


@dataclass(frozen=True)
class OwnSamples:
    """What models write after held-out prompts, each its own completions, and how far they are from the teacher there.

    Attributes:
        prompts: Number of prompts.
        new_tokens: Largest number of tokens of a completion.
        figures: Model -> figure -> value; the teacher has those alone that say nothing of another model.
        errors: Model -> figure -> standard error over prompts.
        differences: Figure -> student minus baseline; empty without a baseline.
        seeds: Further seeds: model -> figure -> value of each.
        left_out: Why models are not compared with the teacher; empty if they are.
        sparse: Whether the teacher gives its likeliest tokens alone, so that divergences are lower bounds.
    """

    prompts: int
    new_tokens: int
    figures: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    seeds: tuple[Mapping[str, Mapping[str, float]], ...] = ()
    left_out: str = ""
    sparse: bool = False


@dataclass(frozen=True)
class ShownTexts:
    """What was written after one held-out prompt, with the same draws each time.

    Attributes:
        prompt: The prompt, or its end.
        texts: Who wrote and when (`teacher`, `step 0`, `step 50`, `student`, `baseline`) -> text, with special tokens.
    """

    prompt: str
    texts: Mapping[str, str]


def differences(student: OwnTexts, baseline: OwnTexts) -> dict[str, Difference]:
    """Return the differences of all figures that are means, with errors from a bootstrap over prompts in pairs."""
    ours, theirs = student.units(), baseline.units()
    found = {}
    for name in TITLES:
        if name in ours and name in theirs:
            value = ours[name].value() - theirs[name].value()
            if np.isfinite(value):
                found[name] = Difference(value, gain_error(ours[name], theirs[name], samples=SAMPLES))
    return found
