"""`hf-distill doctor`: the frame. What each check finds is in `test_doctor_data.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.run.doctor import examination
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.opened import Opened


def files(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_the_command_reads_and_never_writes(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A doctor that claims the output directory makes the run after it refuse to start, or resume from nothing."""
    path = write_recipe()
    before = files(tmp_path)
    assert main(["doctor", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    assert document["status"] in ("ok", "warning")
    assert {"check", "status", "found", "advice"} == set(document["findings"][0])
    assert files(tmp_path) == before
    assert main(["doctor", str(path), "data.columns.text=nothing"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "data.columns.text" in said.err


def test_a_check_that_fails_does_not_hide_the_others(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One check that raises would end the command, and with it all that later checks know."""

    def refuses(_: Opened) -> Any:
        yield Finding("first", "ok", "before")
        raise UserError("wanted this, found that")

    def cannot(_: Opened) -> Any:
        raise CannotCheck("there is no GPU")

    def breaks(_: Opened) -> Any:
        raise RuntimeError("boom\nmore")

    def last(opened: Opened) -> Any:
        return [Finding("last", "warning", "[/] odd", "Do this.")]

    checks = {"first": refuses, "second": cannot, "third": breaks, "last": last}
    monkeypatch.setattr(examination, "CHECKS", checks)
    assert main(["doctor", str(write_recipe())]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["MISTAKE", "first"],
        ["MISTAKE", "third"],
        ["warning", "last"],
        ["OK", "first"],
        ["skipped", "second"],
    ]
    assert "wanted this, found that" in lines[0]
    assert "RuntimeError: boom" in lines[1]
    assert lines[2].endswith("[/] odd. Do this.")
    assert lines[-1] == "2 mistakes, 1 warning, 1 OK, 1 skipped"


def test_what_cannot_be_loaded_is_said_once(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten checks of a teacher that cannot be loaded would load it ten times, and repeat one mistake ten times."""
    opened = Opened(load_recipe(write_recipe()), tmp_path)
    tries = []

    def load(*_: Any) -> None:
        tries.append(1)
        raise UserError("no such weights")

    monkeypatch.setattr("hf_distill.run.run.Run.load_teacher", load)

    def asks(opened: Opened) -> Any:
        return [Finding("teacher", "ok", str(opened.teacher))]

    first, second = (examination.findings("teacher", asks, opened) for _ in range(2))
    assert first == [Finding("teacher", "mistake", "no such weights")]
    assert second == [Finding("teacher", "skipped", "the teacher could not be loaded")]
    assert len(tries) == 1


def test_a_teacher_that_an_earlier_run_trained_is_found(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Judged by its new head, a teacher that the run fine-tunes is no better than chance, and a false alarm."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"num_train_epochs": 1}}
    path = write_recipe(teacher=teacher)
    scratch = tmp_path / "scratch"
    with pytest.raises(CannotCheck, match="fine-tunes this teacher first"):
        _ = Opened(load_recipe(path), scratch).trained_teacher
    run(path)
    before = files(tmp_path / "out")
    opened = Opened(load_recipe(path), scratch)
    found = opened.trained_teacher.models["teacher"].state_dict()
    stored = type(opened.teacher.models["teacher"]).from_pretrained(next((tmp_path / "out" / "_teacher").glob("*/")))
    assert all(found[name].equal(value) for name, value in stored.state_dict().items())
    assert opened.trainer.args.output_dir == str(scratch)
    opened.trainer.train()
    assert files(tmp_path / "out") == before
