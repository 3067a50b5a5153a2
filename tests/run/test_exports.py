"""Exports of a run: written, compared with PyTorch, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runs import run

FORMATS = ["onnx", "onnx-int8", "onnx-int8-static"]


def test_a_run_exports_and_reports(write_recipe: Any, tmp_path: Path, capsys: Any) -> None:
    """Else."""
    path = write_recipe(export={"formats": FORMATS, "calibration": {"rows": 16}}, report={"latency": True})
    report = run(path)
    print(report.exports)
    out = capsys.readouterr().out
    Path("/tmp/exp/out.txt").write_text(out)
    assert [one.format for one in report.exports] == ["pytorch", *FORMATS]
