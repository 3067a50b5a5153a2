"""report.json: a report as plain values, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hf_distill.metrics.chance import Chance
from hf_distill.metrics.table import Undefined
from hf_distill.report.best import Best
from hf_distill.report.calibration import Calibration, Confusion, Group
from hf_distill.report.latency import Latency, Timing
from hf_distill.report.results import ModelResult, Results, SeedResult
from hf_distill.report.verdict import verdict

MODELS = ("teacher", "student", "baseline")


def to_plain(report: Results) -> dict[str, Any]:
    """Return what `report.json` holds: plain values, None for what is not a number."""
    derived = ("retention", "gain", "gain_over_best", "gain_std", "compression", "speedup")
    own = {item.name: getattr(report, item.name) for item in fields(report) if item.name not in MODELS}
    content: dict[str, Any] = {"task": report.task, "metric": report.metric, "verdict": verdict(report)}
    content |= {name: _model_dict(report.models.get(name)) for name in MODELS}
    content |= {name: getattr(report, name) for name in derived}
    content |= {name: value for name, value in own.items() if name not in content}
    plain = _plain(content)
    assert isinstance(plain, dict)
    return plain


def from_plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the report that `to_plain` made `content` of."""
    known = {item.name for item in fields(Results)}
    values = {key: value for key, value in content.items() if key in known}
    values |= {name: _model_from(content[name]) for name in MODELS}
    values["best"] = {name: Best(**best) for name, best in content.get("best", {}).items()}
    values["seeds"] = tuple(
        SeedResult(**{**seed, "best": Best(**seed["best"]) if seed.get("best") else None}) for seed in content["seeds"]
    )
    values["groups"] = tuple(Group(**group) for group in content["groups"])
    values["chance"] = Chance(**content["chance"]) if content.get("chance") else None
    if content["confusion"]:
        shape = content["confusion"]
        values["confusion"] = Confusion(
            tuple(shape["names"]), tuple(tuple(row) for row in shape["counts"]), shape["left_out"]
        )
    values["calibration"] = {
        name: Calibration(ece=item.pop("ece"), **{key: tuple(value) for key, value in item.items()})
        for name, item in content["calibration"].items()
    }
    return values


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


def _model_from(content: dict[str, Any] | None) -> ModelResult | None:
    if content is None:
        return None
    details = content["latency"]
    latency = details and Latency(
        **details | {"single": Timing(**details["single"]), "batch": Timing(**details["batch"])}
    )
    weights = content.get("weights", "float32")
    without = {name: Undefined(reason) for name, reason in content.get("undefined", {}).items()}
    return ModelResult(content["metrics"] | without, content["parameters"], content["bytes"], latency or None, weights)


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
