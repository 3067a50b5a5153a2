"""What a training cost as a whole: in the report and in the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from runs import WriteRecipe, run

from hf_distill.report.costs import cost_of, costs_of, describe_cost


def test_evaluations_and_what_was_not_logged_are_left_out() -> None:
    """A training of before these figures were logged, found finished, must still make a report."""
    history = [{"loss": 1.0}, {"eval_loss": 1.0}, {"train_loss": 1.0}]
    assert cost_of(history) == {}
    assert costs_of({"old": history, "new": [{"loss": 1.0, "peak_memory": 3.0}]}) == {"new": {"peak_memory": 3.0}}
    assert describe_cost({"peak_memory": 3.0}) == "memory 3 MiB at most"


def test_a_run_says_what_its_trainings_cost(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Throughput that is in the logs alone is seen by those who knew of it."""
    path = write_recipe(report={"latency": False, "baseline": True})
    run(path)
    printed = capsys.readouterr().out
    student = r"^student: [\d.]+ ?K? tokens/s, the teacher takes [\d.]+ % of the time, memory [\d,]+ MiB at most$"
    assert re.search(student, printed, re.MULTILINE)
    assert re.search(r"^baseline: [\d.]+ ?K? tokens/s, memory [\d,]+ MiB at most$", printed, re.MULTILINE)
    costs = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["training_cost"]
    assert {name: set(cost) for name, cost in costs.items()} == {
        "student": {"tokens_per_second", "teacher_share", "peak_memory"},
        "baseline": {"tokens_per_second", "peak_memory"},
    }
    assert "training cost: student: tokens per second" in (tmp_path / "out" / "report.html").read_text()
    run(path)  # found finished: measured then, and still in the report
    assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["training_cost"] == costs
