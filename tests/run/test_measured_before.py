"""A finished run: its report is measured again where anything has changed that it depends on, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run

import hf_distill.run.distill


def test_a_report_is_measured_once(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Measured again, the same command takes minutes to say what it said; taken over too often, the report is that of
    other rows, other code or another recipe."""
    path = write_recipe(training={"max_steps": 2}, report={"latency": False})
    out, measured = tmp_path / "out", []
    report_on = hf_distill.run.distill.report_on

    def counted(*args: Any) -> Any:
        measured.append(args)
        return report_on(*args)

    monkeypatch.setattr("hf_distill.run.distill.report_on", counted)

    def is_measured(*overrides: str) -> bool:
        before = len(measured)
        run(path, *overrides, may_take_over=True)
        return len(measured) > before

    first = run(path, may_take_over=True)
    (out / "report.html").write_text("damaged")
    text = (out / "report.json").read_text()
    capfd.readouterr()
    again = run(path, may_take_over=True)
    assert len(measured) == 1
    assert again.to_dict() == first.to_dict()
    assert (out / "report.json").read_text() == text
    assert "damaged" not in (out / "report.html").read_text()
    said = capfd.readouterr().out
    assert "finished on 20" in said
    assert "accuracy" in said
    assert is_measured("report.seeds=2")
    assert not is_measured("report.seeds=2")
    changed = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps({**changed, "agreement": 1.0}))
    assert is_measured("report.seeds=2")
    (out / "model.safetensors").write_bytes(b"")  # trained again, with the same weights
    assert is_measured("report.seeds=2")
    for place, value in {
        "hf_distill.run.measured_before._code": lambda: "other",
        "hf_distill.run.evaluation.environment": lambda: {"torch": "other"},
        "hf_distill.report.latency.device_name": lambda device: "other",
        "hf_distill.run.measured_before.outside_code": lambda recipe: iter(["my_losses:L1"]),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, value)
            assert is_measured("report.seeds=2"), place
