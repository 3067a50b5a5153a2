"""Format the numbers of a report, and build its table for the terminal, the page and the model card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.formatting import count, counted

if TYPE_CHECKING:
    from hf_distill.report.results import Results
    from hf_distill.report.timing import Timing

TITLES = {"teacher": "teacher", "student": "student", "baseline": "student without teacher"}
NOTHING = "-"

# End of a stage's entry in the report's settings if the stage does not train the head that the metrics need.
HEAD_IS_LEFT = " (the head is not trained)"

# Shares of correct predictions, shown in percent if between 0 and 1 (`evaluate` returns some in percent).
SHARES = (
    *("accuracy", "exact_match", "f1", "precision", "recall", "agreement", "ece"),
    *("rouge1", "rouge2", "rougel", "rougelsum"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: Text of the first column.
        cells: Model -> text.
        headline: Whether it is the headline metric.
    """

    label: str
    cells: dict[str, str]
    headline: bool = False


def number(value: float | None) -> str:
    """Return a number with four significant digits.

    >>> number(0.123456), number(1234.5), number(None)
    ('0.1235', '1234', '-')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}".replace(",", "") if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a share as a percentage.

    >>> percent(0.8312)
    '83.1 %'
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{value * 100:.1f} %"


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with about three digits.

    >>> milliseconds(0.4567), milliseconds(45.67), milliseconds(4567.8)
    ('0.457 ms', '45.7 ms', '4568 ms')
    """
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} ms"


def metric_title(metric: str) -> str:
    """Return the name of a metric for the report; for a script of the `evaluate` library, its file name only.

    >>> metric_title("f1_macro"), metric_title("evaluate//home/me/squad.py#f1")
    ('f1_macro', 'squad f1')
    """
    if not metric.startswith("evaluate/"):
        return metric
    return metric.split("/")[-1].replace(".py", "").replace("#", " ")


def is_share(report: Results, metric: str) -> bool:
    """Return whether a metric is shown in percent."""
    words = metric_title(metric).lower().replace("-", "_").replace(" ", "_")
    if not any(words == share or words.startswith(f"{share}_") or words.endswith(f"_{share}") for share in SHARES):
        return False
    values = [model.metrics.get(metric) for model in report.models.values()]
    return all(value is None or not math.isfinite(value) or 0 <= value <= 1 for value in values)


def metric_names(report: Results) -> list[str]:
    """Return the names of all metrics, the headline first; without agreement, which has its own row."""
    names = dict.fromkeys(name for model in report.models.values() for name in model.metrics)
    names.pop("agreement", None)
    return sorted(names, key=lambda name: name != report.metric)


def metric_value(report: Results, metric: str, value: float | None) -> str:
    """Return the value of a metric as the report shows it."""
    return percent(value) if is_share(report, metric) else number(value)


def signed(report: Results, value: float, metric: str = "") -> str:
    """Return a difference on a metric, by default the headline: `+1.2 points`, `-0.013`."""
    return f"{'+' if value >= 0 else '-'}{unsigned(report, abs(value), metric)}"


def unsigned(report: Results, value: float, metric: str = "") -> str:
    """Return the size of a difference on a metric, by default the headline, in points if it is shown in percent."""
    if not is_share(report, metric or report.metric):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"  # no 1.93e+03
    points = value * 100
    return f"{points:.{2 if 0 < points < 0.095 else 1}f} points"


def rows(report: Results) -> list[Row]:
    """Return the rows of the table: metrics, agreement, calibration, size, speed; without those not measured."""
    models = report.models
    table = []
    for name in metric_names(report):
        values = {key: metric_value(report, name, model.metrics.get(name)) for key, model in models.items()}
        table.append(Row(metric_title(name), values, headline=name == report.metric))
        if name == report.metric and _was_better(report):
            best = {key: report.best[key].value if key in report.best else None for key in models}
            cells = {key: metric_value(report, name, value) for key, value in best.items()}
            table.append(Row("best evaluation during training", cells))
    if report.agreement is not None:
        agreement = {"teacher": None, "student": report.agreement, "baseline": report.baseline_agreement}
        cells = {key: percent(agreement[key]) for key in models}
        table.append(Row("agreement with teacher", cells, headline=report.metric == "agreement"))
    if report.calibration:
        errors = {key: report.calibration[key].ece if key in report.calibration else None for key in models}
        table.append(Row("calibration error (ECE)", {key: percent(error) for key, error in errors.items()}))
    if len({model.weights for model in models.values() if model.weights}) > 1:
        table.append(Row("weights", {key: model.weights or NOTHING for key, model in models.items()}))
    sizes = {key: (model.parameters, model.bytes) for key, model in models.items()}
    table.append(Row("parameters", {key: NOTHING if n is None else count(n) for key, (n, _) in sizes.items()}))
    held = {key: NOTHING if size is None else f"{size / 1e6:,.1f} MB" for key, (_, size) in sizes.items()}
    table.append(Row("size", held))
    return table + _speed(report)


def _was_better(report: Results) -> bool:
    """Return whether a model was better at an evaluation during training than at its end."""
    now = {key: report.headline(key) for key in report.best}
    return any(value is not None and report.was_better(report.best[key], value) for key, value in now.items())


def undefined(report: Results) -> list[str]:
    """Return a sentence for each metric that is not defined, which the table shows as `-`.

    Returns:
        Sentences such as `auc is not defined (teacher, student): only one class among the labels.`
    """
    models: dict[tuple[str, str], list[str]] = {}
    for key, model in report.models.items():
        for name, reason in model.undefined.items():
            models.setdefault((name, reason), []).append(TITLES[key])
    return [
        f"{metric_title(name)} is not defined ({', '.join(titles)}): {reason}."
        for (name, reason), titles in models.items()
    ]


def trained_on(report: Results) -> str:
    """Return the sentence about the rows that each model was trained on; "" if all rows have a label."""
    rows = report.settings.get("rows_trained_on", {})
    told = "; ".join(f"{TITLES[model]}: {text}" for model, text in rows.items())
    return f"Rows trained on. {told[0].upper()}{told[1:]}." if rows else ""


def who_teaches(report: Results) -> str:
    """Return the sentence that says who the teacher of the table is; "" if it is a model of its own."""
    own = str(report.settings.get("teacher_column", ""))
    if own or len(report.lineage) < 3:
        return own
    return f"The teacher is {report.lineage[-2].name}, which is itself a student."


def heads_left(report: Results) -> str:
    """Return the sentence that names the stages in which the student's head is not trained; "" if there are none."""
    left = [key.partition(" ")[2] for key, text in report.settings.items() if str(text).endswith(HEAD_IS_LEFT)]
    which = f"stage {left[0]}" if len(left) == 1 else f"stages {', '.join(left)}"
    return f" In {which} the student's head is not trained." if left else ""


def _speed(report: Results) -> list[Row]:
    known = {key: model.latency for key, model in report.models.items() if model.latency is not None}
    if not known:
        return []
    first = next(iter(known.values()))
    batch = f"batch {first.batch.batch_size}"
    return [
        Row(label, {key: texts.get(key, NOTHING) for key in report.models})
        for label, texts in (
            ("latency, batch 1", {key: milliseconds(it.single.median_ms) for key, it in known.items()}),
            ("p90, batch 1", {key: milliseconds(it.single.p90_ms) for key, it in known.items()}),
            (f"latency, {batch}", {key: milliseconds(it.batch.median_ms) for key, it in known.items()}),
            (f"p90, {batch}", {key: milliseconds(it.batch.p90_ms) for key, it in known.items()}),
            ("throughput (examples/s)", {key: number(it.throughput) for key, it in known.items()}),
        )
    ]


def speed_note(report: Results) -> str:
    """Return the sentence about how the speed was measured; "" if it was not."""
    latency = report.student.latency
    if latency is None:
        return ""

    def shape(timing: Timing) -> str:
        tokens = f" x {timing.sequence_length} tokens" if timing.sequence_length else ""
        return f"{timing.batch_size}{tokens} ({timing.repeats} repeats)"

    kinds = sorted({model.weights for model in report.models.values() if model.latency})
    threads = counted(latency.threads, "CPU thread")
    return (
        f"One forward pass, {' and '.join(kinds)}, on {latency.device} with {threads}; "
        f"batches of {shape(latency.single)} and {shape(latency.batch)}, models taking turns.{_other_tokens(report)}"
    )


def _other_tokens(report: Results) -> str:
    """Return the sentence about a teacher that was timed on the same texts in its own tokens; else ""."""
    ours, theirs = report.student.latency, report.teacher.latency
    if "tokenizers" not in report.settings or ours is None or theirs is None:
        return ""
    lengths = f"{theirs.single.sequence_length} and {theirs.batch.sequence_length}"
    return f" The teacher read the same texts in its own tokens ({lengths} tokens)."


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and value of all settings as text; of nested ones, the names are joined by a colon."""
    for key, value in settings.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(item) for item in value)
        else:
            yield name, number(value) if isinstance(value, float) else str(value)
