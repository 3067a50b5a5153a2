"""The measured results of a run, and the numbers computed from them: retention, gain, noise, compression, speedup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import SkipValidation

from hf_distill.metrics.chance import Chance
from hf_distill.models.quantization import describe_weights, size, weights
from hf_distill.report.ancestors import Ancestor
from hf_distill.report.best import Best
from hf_distill.report.calibration import Calibration, Confusion, Group
from hf_distill.report.exports import Exported
from hf_distill.report.for_whom import ForWhom
from hf_distill.report.own_samples import OwnSamples, ShownTexts
from hf_distill.report.speculation import Speculation
from hf_distill.report.timing import Latency

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The value of a metric. Not validated, since an undefined metric is a float with a reason, which pydantic would drop.
Value = Annotated[float, SkipValidation]
# Half-width of a 95 % interval in standard errors: Student's t for each number of degrees of freedom (seeds - 1).
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
NORMAL_95 = 1.96
# Differences up to this size are rounding errors.
NOTHING = 1e-12
# Two evaluations of the same weights may differ by this much, since their batches have other shapes.
ROUNDING = 1e-5


@dataclass(frozen=True)
class ModelResult:
    """The measurements of one model.

    Attributes:
        metrics: Name -> value on the eval split; empty if it has no labels.
        parameters: Number of parameters, shared ones once; None if the teacher's targets are given as data.
        bytes: Size of the parameters in bytes, as measured; None if the teacher's targets are given as data.
        latency: Speed; None if it was not measured.
        weights: Type of the weights that were measured: `float32`, or `int8 (rest float32)`; empty without a model.
    """

    metrics: Mapping[str, Value]
    parameters: int | None
    bytes: int | None
    latency: Latency | None = None
    weights: str = "float32"

    @property
    def undefined(self) -> dict[str, str]:
        """Metric -> reason, for metrics that are not defined."""
        without = {name: value for name, value in self.metrics.items() if _number(self.metrics, name) is None}
        return {name: getattr(value, "reason", "it is not a finite number") for name, value in without.items()}

    @classmethod
    def of(cls, model: PreTrainedModel, metrics: Mapping[str, float], latency: Latency | None = None) -> ModelResult:
        """Return the results of a model, with its size and type of weights."""
        parameters, held = size(model)
        return cls(metrics, parameters, held, latency, describe_weights(**weights(model)))


@dataclass(frozen=True)
class SeedResult:
    """The results for one seed, if a run trains several.

    Attributes:
        seed: Seed of the training.
        student: Metrics of the student.
        baseline: Metrics of the same student, from the same start, trained without the teacher.
        best: The baseline's best evaluation during training; None if there was none.
        parts: Metrics on the parts of the eval split: `group` or `class` -> model -> group -> value.
    """

    seed: int
    student: Mapping[str, Value]
    baseline: Mapping[str, Value] | None = None
    best: Best | None = None
    parts: Mapping[str, Mapping[str, Mapping[str, Value]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a run.

    Attributes:
        task: A Hub pipeline tag.
        metric: Name of the headline metric; `"agreement"` where the eval split has no labels.
        greater_is_better: Whether a greater value of the headline metric is better.
        teacher: Results of the teacher.
        student: Results of the student that is saved (the first seed's).
        baseline: Results of the same student trained without the teacher, same seed.
        agreement: Share of eval rows for which student and teacher predict the same; None for regression.
        baseline_agreement: Share of eval rows for which baseline and teacher predict the same; None for regression.
        eval_rows: Number of labelled rows on which the metrics were computed.
        gain_error: Standard error of the gain on an eval split of this size (`calibration.gain_error`).
        resampled: The student's headline metric on resampled eval splits, the same ones for all runs on these rows:
            `hf-distill compare` gets the noise of a difference from them. Empty if it cannot be computed.
        conditions: Metric -> what it depends on beside the eval rows (`tokens`, `classes`, `references`, ...) -> its
            value, or a fingerprint of it: runs are compared on a metric only where these are the same.
        best: `student` and `baseline` -> its best evaluation during training, of the first seed.
        chance: Score of a trivial guesser; None if not known.
        seeds: One entry for each seed, the saved student's first; may be empty for a single seed.
        groups: Accuracy by class, with the number of rows (for tags: words) of each.
        for_whom: The models compared on each group of the data, if it has groups, and on each class.
        confusion: Student against teacher.
        calibration: Model -> calibration.
        lineage: The models from the first teacher to the student. If the teacher was itself trained by a run of this
            package, its lineage is the beginning.
        direct: For the last student of a chain: the results of the same student taught by the first teacher, one entry
            for each seed.
        direct_error: Standard error of the difference between the student and the first of `direct`, as `gain_error`.
        together: For the last of several generations: metrics of the mean of all of them.
        own_samples: What models write after held-out prompts, each its own completions, compared with the teacher; None
            if they wrote none.
        samples: A few of these prompts, with what was written after them at the start, in the middle and at the end of
            the student's training, by the teacher and by the baseline.
        speculation: How fast the teacher writes with the student as draft; None if that was not measured.
        exports: The student in other formats, PyTorch first; empty if there are none.
        benchmarks: Model -> task and metric of the lm-evaluation-harness -> value.
        history: Run (`student`, `baseline`, `teacher`, also `student seed 43`, `student stage 1`) -> `log_history` of
            its Trainer. Stages follow each other in the order of their training.
        settings: Versions, device, threads, precision, processes, seconds of each stage, cost of each training, sizes
            of the data.
        recipe: The resolved recipe, YAML.
    """

    task: str
    metric: str
    greater_is_better: bool = True
    teacher: ModelResult
    student: ModelResult
    baseline: ModelResult | None = None
    agreement: float | None = None
    baseline_agreement: float | None = None
    eval_rows: int | None = None
    gain_error: float | None = None
    resampled: tuple[float, ...] = ()
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    chance: Chance | None = None
    seeds: tuple[SeedResult, ...] = ()
    groups: tuple[Group, ...] = ()
    for_whom: tuple[ForWhom, ...] = ()
    confusion: Confusion | None = None
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    lineage: tuple[Ancestor, ...] = ()
    direct: tuple[SeedResult, ...] = ()
    direct_error: float | None = None
    together: Mapping[str, Value] = field(default_factory=dict)
    own_samples: OwnSamples | None = None
    samples: tuple[ShownTexts, ...] = ()
    speculation: Speculation | None = None
    exports: tuple[Exported, ...] = ()
    benchmarks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    history: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""

    @property
    def models(self) -> dict[str, ModelResult]:
        """The models that were measured, by name, in the order of the tables."""
        all_models = {"teacher": self.teacher, "student": self.student, "baseline": self.baseline}
        return {name: model for name, model in all_models.items() if model is not None}

    @property
    def rows_fingerprint(self) -> str:
        """Fingerprint of the eval rows; empty if it is not known."""
        return self.lineage[-1].rows if self.lineage else ""

    def headline(self, model: str) -> float | None:
        """Return the headline metric of a model; None if it is missing or not a finite number."""
        return _number(self.models[model].metrics, self.metric) if model in self.models else None

    def is_chance(self, model: str) -> bool:
        """Return whether a model's headline metric is not significantly better than a trivial guess."""
        value = self.headline(model)
        if self.chance is None or value is None:
            return False
        return self.chance.explains(value, greater_is_better=self.greater_is_better)

    @property
    def retention(self) -> float | None:
        """The retained share of the teacher's score: student / teacher, or teacher / student if smaller is better.

        None if that is undefined.
        """
        teacher, student = self.headline("teacher"), self.headline("student")
        if teacher is None or student is None:
            return None
        kept, of = (student, teacher) if self.greater_is_better else (teacher, student)
        # A share of a negative score (a correlation) makes no sense.
        return kept / of if of > 0 else None

    @property
    def gains(self) -> tuple[float, ...]:
        """Student - baseline on the headline metric, for each seed that has both."""
        return tuple(student - baseline for student, baseline, _ in self._trained_twice)

    @property
    def gains_over_best(self) -> tuple[float, ...]:
        """Student - baseline for each seed, with the baseline at its end or best evaluation, whichever is better."""
        return tuple(
            student - (best.value if best is not None and self.was_better(best, baseline) else baseline)
            for student, baseline, best in self._trained_twice
        )

    def was_better(self, best: Best, now: float) -> bool:
        """Return whether a model was better at an evaluation during training than at its end."""
        ahead = best.value - now if self.greater_is_better else now - best.value
        return ahead > ROUNDING * max(1.0, abs(now))

    @property
    def _trained_twice(self) -> list[tuple[float, float, Best | None]]:
        """Headline metrics of student and baseline, and the baseline's best evaluation, for each seed with both."""
        pairs = [(seed.student, seed.baseline, seed.best) for seed in self.seeds]
        if len(pairs) < 2:
            metrics = self.baseline.metrics if self.baseline else None
            pairs = [(self.student.metrics, metrics, self.best.get("baseline"))]
        values = [(_number(own, self.metric), _number(other or {}, self.metric), best) for own, other, best in pairs]
        return [(own, other, best) for own, other, best in values if own is not None and other is not None]

    @property
    def gain(self) -> float | None:
        """The effect of distillation: student - baseline, mean over seeds. Negative is good for errors."""
        return mean(self.gains) if self.gains else None

    @property
    def gain_over_best(self) -> float | None:
        """The gain over the baseline at its best, which may have been trained too long; mean over seeds."""
        return mean(self.gains_over_best) if self.gains_over_best else None

    @property
    def shows_help(self) -> bool:
        """Whether the gain is significant, also against the baseline's best evaluation."""
        if self.noise is None or self.gain_over_best is None:
            return False
        gain = self.gain_over_best if self.greater_is_better else -self.gain_over_best
        return gain > self.noise

    @property
    def gain_std(self) -> float | None:
        """Sample standard deviation of the gain over seeds; None for one seed."""
        return stdev(self.gains) if len(self.gains) > 1 else None

    @property
    def noise(self) -> float | None:
        """Half-width of the 95 % interval of the gain; None if it is not known.

        The larger of two: the spread over seeds (Student's t), and the sampling error of the eval split. A value of 0
        counts as not known: all seeds have the same gain, or both models have the same predictions.
        """
        if not self.gains:
            return None
        known = []
        if self.gain_std is not None:
            n = len(self.gains)
            known.append((T_95[n - 2] if n - 2 < len(T_95) else NORMAL_95) * self.gain_std / math.sqrt(n))
        error = self.gain_error if self.gain_error is not None else self.binomial_error("student", "baseline")
        if error is not None:
            known.append(NORMAL_95 * error)
        return max((one for one in known if one > NOTHING), default=None)

    def binomial_error(self, one: str, other: str) -> float | None:
        """Return the standard error of the difference of two models, if the headline metric is a share of rows.

        It ignores that both models are evaluated on the same rows, so it is rather too large than too small.
        """
        shares = [self.headline(one), self.headline(other)]
        known = [share for share in shares if share is not None and 0 <= share <= 1]
        if self.metric not in ("accuracy", "exact_match") or not self.eval_rows or len(known) < 2:
            return None
        return math.sqrt(sum(share * (1 - share) for share in known) / self.eval_rows)

    @property
    def compression(self) -> float | None:
        """Parameters of the teacher / parameters of the student; None if the teacher's targets are given as data."""
        theirs, ours = self.teacher.parameters, self.student.parameters
        return theirs / ours if theirs and ours else None

    @property
    def speedup(self) -> float | None:
        """Latency of the teacher / latency of the student, for one example; None if not measured."""
        if self.teacher.latency is None or self.student.latency is None:
            return None
        return self.teacher.latency.single.median_ms / self.student.latency.single.median_ms


def _number(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if value is not None and math.isfinite(value) else None
