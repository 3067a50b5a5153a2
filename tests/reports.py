"""Made-up reports, whole and with parts missing, for the tests of what is made of a report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hf_distill.metrics.bootstrap import Units
from hf_distill.report.calibration import by_label, calibration, confusion
from hf_distill.report.comparison import compare, parts_by_class, parts_by_group
from hf_distill.report.for_whom import ForWhom
from hf_distill.report.report import Report
from hf_distill.report.results import ModelResult, SeedResult
from hf_distill.report.timing import Latency, Timing

RECIPE = """\
task: text-classification
data:
  path: nyu-mll/glue
  name: sst2
  splits: {train: train, eval: validation}
teacher: {name: pretrained, model: textattack/bert-base-uncased-SST-2}
student: {name: copy_layers, layers: 6}
objectives:
  - {name: kl, weight: 0.5, temperature: 2.0}
  - {name: labels, weight: 0.5}
training: {output_dir: outputs/bert-small, num_train_epochs: 3}
report: {baseline: true}
"""


def speed(single: float, batch: float) -> Latency:
    """Return a latency with these medians, in milliseconds."""
    return Latency(
        single=Timing(single, single * 1.2, 40, 1, 20),
        batch=Timing(batch, batch * 1.1, 12, 32, 64),
        device="A CPU",
        dtype="float32",
        threads=2,
    )


def model(parameters: int, latency: Latency | None, **metrics: float) -> ModelResult:
    """Return a result in float32."""
    return ModelResult(metrics, parameters, parameters * 4, latency)


def by_group(names: tuple[str, ...], right: dict[str, Any], group: Any, **changes: Any) -> ForWhom:
    """Return models compared by group.

    Args:
        names: Names of the groups.
        right: Model -> whether it is right, or another score, `(rows,)`.
        group: Number of the group of each row.
        changes: Other fields of the result.
    """
    units = {model: Units.means(np.asarray(one, dtype=float)) for model, one in right.items()}
    groups, distance = compare(parts_by_group(units, names, np.asarray(group)), greater_is_better=True)
    return replace(ForWhom("age", "group", "accuracy", True, groups, distance), **changes)


def whole(names: tuple[str, ...] = ("negative", "positive"), rows: int = 500, **changes: Any) -> Report:
    """Return a report with every part: accuracy 85.2 (teacher), 83.1 (student), 81.9 (baseline) on 10,000 rows."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), rows)
    logits = {key: np.eye(len(names))[labels] + rng.normal(size=(rows, len(names))) for key in ("teacher", "student")}
    guesses = {key: value.argmax(-1) for key, value in logits.items()}
    by_class = parts_by_class(guesses, labels, names)
    softmax = {key: np.exp(value) / np.exp(value).sum(-1, keepdims=True) for key, value in logits.items()}
    history = [
        {"step": step, "loss": 1 / step, "objective/kl": 1 / step, "objective/labels": 2 / step, "learning_rate": 1e-5}
        for step in range(1, 40)
    ]
    evaluated = [{"step": step, "eval_loss": 0.5, "eval_accuracy": 0.8, "eval_objective/kl": 0.4} for step in (20, 39)]
    report = Report(
        task="text-classification",
        metric="accuracy",
        teacher=model(2_000_000, speed(20.0, 400.0), accuracy=0.852, f1=0.84, matthews=0.7),
        student=model(1_000_000, speed(10.0, 160.0), accuracy=0.831, f1=0.82, matthews=0.66),
        baseline=model(1_000_000, speed(10.0, 160.0), accuracy=0.819, f1=0.81, matthews=0.63),
        agreement=0.93,
        baseline_agreement=0.9,
        eval_rows=10_000,
        gain_error=0.003,
        groups=by_label(guesses, labels, names),
        for_whom=(
            by_group(names, {key: value == labels for key, value in guesses.items()}, np.arange(rows) % len(names)),
            ForWhom("class", "class", "accuracy", True, compare(by_class, greater_is_better=True)[0]),
        ),
        confusion=confusion(guesses["student"], guesses["teacher"], names),
        calibration={key: calibration(value, labels) for key, value in softmax.items()},
        history={"student": [*history, *evaluated], "baseline": history, "student seed 43": history},
        settings={"versions": {"torch": "2.13.0"}, "threads": 2, "seconds": {"train student": 12.34}, "sizes": [3, 4]},
        recipe=RECIPE,
    )
    return replace(report, **changes)


def several_seeds(student: tuple[float, ...], baseline: tuple[float, ...], **changes: Any) -> Report:
    """Return a report over seeds with these accuracies."""
    seeds = tuple(
        SeedResult(42 + index, {"accuracy": own}, {"accuracy": other})
        for index, (own, other) in enumerate(zip(student, baseline, strict=True))
    )
    return whole(seeds=seeds, **changes)


def regression(**changes: Any) -> Report:
    """Return a report on an error: no classes, so no agreement, confusion or calibration."""
    report = Report(
        task="text-classification",
        metric="mse",
        greater_is_better=False,
        teacher=model(2_000_000, None, mse=0.40, pearson=0.9),
        student=model(1_000_000, None, mse=0.50, pearson=0.87),
        baseline=model(1_000_000, None, mse=0.60, pearson=0.85),
        recipe=RECIPE,
    )
    return replace(report, **changes)


def unlabelled(**changes: Any) -> Report:
    """Return a report on an eval split without labels: all there is to see is agreement."""
    report = Report(
        task="text-classification",
        metric="agreement",
        teacher=model(2_000_000, None),
        student=model(1_000_000, None),
        agreement=0.932,
        eval_rows=2000,
    )
    return replace(report, **changes)
