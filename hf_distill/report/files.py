"""report.json: a report as plain values, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter

from hf_distill.metrics.table import Undefined
from hf_distill.report.results import ModelResult, Results
from hf_distill.report.verdict import verdict

REPORT = "report.json"

R = TypeVar("R", bound=Results)
MODELS = ("teacher", "student", "baseline")
# Properties of `Results` that are written beside its fields.
DERIVED = ("retention", "gain", "gain_over_best", "gain_std", "compression", "speedup")


def to_plain(report: Results) -> dict[str, Any]:
    """Return what `report.json` holds: plain values, None for what is not a number."""
    own = {item.name: getattr(report, item.name) for item in fields(report) if item.name not in MODELS}
    content: dict[str, Any] = {"task": report.task, "metric": report.metric, "verdict": verdict(report)}
    content |= {name: _model_dict(report.models.get(name)) for name in MODELS}
    content |= {name: getattr(report, name) for name in DERIVED}
    content |= {name: value for name, value in own.items() if name not in content}
    plain = _plain(content)
    assert isinstance(plain, dict)
    return plain


def from_plain(kind: type[R], content: Mapping[str, Any]) -> R:
    """Return the report that `to_plain` made `content` of; what it has beside the fields of a report is left out."""
    models = {name: _with_reasons(content[name]) for name in MODELS if content.get(name)}
    return TypeAdapter(kind).validate_python({**content, **models})


def _with_reasons(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's part of `report.json` with its undefined metrics, null there, as values that have a reason."""
    without = {name: Undefined(reason) for name, reason in model.get("undefined", {}).items()}
    return {**model, "metrics": {**model["metrics"], **without}}


def _model_dict(model: ModelResult | None) -> dict[str, Any] | None:
    if model is None:
        return None
    latency = model.latency
    return {
        "metrics": model.metrics,
        "undefined": model.undefined,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "weights": model.weights,
        "latency_ms": latency.single.median_ms if latency else None,
        "throughput": latency.throughput if latency else None,
        "latency": latency,
    }


def _plain(value: Any) -> Any:
    # Strict JSON has no NaN, and most readers of it fail on the word.
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
