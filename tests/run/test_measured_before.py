"""A finished run: its report is measured again where anything has changed that it depends on, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

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


def test_a_report_follows_what_weights_do_not_show(
    write_recipe: WriteRecipe, sentiment_csv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups of the train rows and the lineage of the teacher are in the report, and no weight depends on them. A
    student that was trained anew, in a run that ended before its report, has the report of the one before."""
    csv = {}
    for name, source in (("train", sentiment_csv.train), ("validation", sentiment_csv.validation)):
        csv[name] = tmp_path / f"{name}.csv"
        lines = source.read_text("utf-8").splitlines()
        rows = (f"{line},{'aab'[place % 3]}" for place, line in enumerate(lines[1:]))
        csv[name].write_text("\n".join([f"{lines[0]},part", *rows]), "utf-8")
    data = {"path": {name: str(file) for name, file in csv.items()}, "columns": {"text": "sentence", "group": "part"}}
    path = write_recipe(data=data, training={"max_steps": 2})
    teacher = shutil.copytree(json.loads(path.read_text("utf-8"))["teacher"]["model"], tmp_path / "teacher")
    first = run(path, f"teacher.model={teacher}", may_take_over=True)
    assert first.for_whom[0].notes == ()
    assert run(path, f"teacher.model={teacher}", may_take_over=True) == first

    csv["train"].write_text(csv["train"].read_text("utf-8").replace(",b", ",c"), "utf-8")
    assert run(path, f"teacher.model={teacher}", may_take_over=True).for_whom[0].notes

    before = [{"name": "its-own-teacher"}, {"name": "teacher"}]
    (teacher / "report.json").write_text(json.dumps({"lineage": before}), "utf-8")
    assert run(path, f"teacher.model={teacher}", may_take_over=True).lineage[0].name == "its-own-teacher"

    (tmp_path / "out" / "_fit.json").unlink()
    csv["train"].write_text(csv["train"].read_text("utf-8").replace("positive,a", "negative,a", 8), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.run.distill.report_on", mock.Mock(side_effect=InterruptedError))
        with pytest.raises(InterruptedError):
            run(path, f"teacher.model={teacher}", may_take_over=True)
    last = run(path, f"teacher.model={teacher}", may_take_over=True)
    assert last.history != first.history
