"""What a run says while it runs: each thing once, in the right section, and true when it is said."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from runs import WriteRecipe, run

from hf_distill.training.chunked.compiled import warn_nothing_compiled


def sections(printed: str) -> dict[str, list[str]]:
    """Return the lines under each heading (`Teacher ────`) of what a run printed."""
    found: dict[str, list[str]] = {"": []}
    for line in printed.splitlines():
        if line.endswith("──"):
            found[title := line.rstrip("─ ")] = []
        elif line.strip():
            found[title if len(found) > 1 else ""].append(line)
    return found


def test_a_teacher_that_is_trained(
    write_recipe: WriteRecipe, make_model: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its training decides on padding as the student's does; and one mistake in `training` is told once, not for each
    of the trainings of a run and again for each model that is judged."""
    warn_nothing_compiled.cache_clear()
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "training": {"max_steps": 2}}
    run(
        write_recipe(
            teacher=teacher,
            student={"name": "copy_layers", "layers": 1},
            training={"compile_loss": True, "max_steps": 2},
            report={"latency": False, "baseline": True},
        )
    )
    said = sections(capsys.readouterr().out)
    free = "padding_free: wherever it makes a batch at least 10 % smaller"
    for title in ("Teacher", "Student: distilling", "Baseline: the same student without the teacher"):
        assert free in said[title]
    warned = [one for one in caplog.records if "compile_loss" in one.getMessage() and one.levelno == logging.WARNING]
    assert len(warned) == 1


def test_a_teacher_that_is_loaded(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A heading with nothing under it looks as if something had failed."""
    path = write_recipe(report={"latency": False})
    report = run(path)
    (line,) = sections(capsys.readouterr().out)["Teacher"]
    model = json.loads(path.read_text())["teacher"]["model"]
    assert line == f"{model}: {report.teacher.parameters / 1000:.1f} K parameters"
