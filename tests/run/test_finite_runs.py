"""What a run does where something is NaN or infinite: one line, status 2, nothing that looks finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, same, weights

from hf_distill.cli import main
from hf_distill.training.guarding import GuardedTrainer

NAN = float("nan")
FEW: dict[str, Any] = {"max_steps": 4, "logging_steps": 100}


def spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have every training compute NaN for the second example of a step."""
    note = GuardedTrainer._note

    def noted(self: Any, inputs: Any, sums: Any, extremes: Any) -> None:
        if self.state.global_step + 1 == step:
            sums = sums.detach().clone()
            sums[1, 0] = NAN
        note(self, inputs, sums, extremes)

    monkeypatch.setattr(GuardedTrainer, "_note", noted)


def fit_records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in directory.rglob("_fit.json")]


def test_a_run_stops_and_goes_on(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student of NaN was saved, judged, and reported as finished; a checkpoint of it was gone on from."""
    path = write_recipe(training={**FEW, "save_strategy": "steps", "save_steps": 2, "max_steps": 6})
    with monkeypatch.context() as patch:
        spoil(patch, step=5)
        assert main([str(path)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "step 5" in line]
    assert len(said) == 1
    assert "kl is NaN for row 1 of 8 of the batch" in said[0]
    assert all(word in said[0] for word in ("resumes from", "checkpoint-4", "--restart"))
    out = tmp_path / "out"
    assert [record["finished"] for record in fit_records(out)] == [False]
    assert not {"model.safetensors", "report.json", "report.html", "README.md"} & {one.name for one in out.iterdir()}
    assert (out / "checkpoint-4").is_dir()
    assert main([str(path)]) == 0
    straight = tmp_path / "straight"
    assert main([str(path), f"training.output_dir={straight}"]) == 0
    assert same(weights(out), weights(straight))


def test_a_run_goes_back_to_its_checkpoint(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A week-long run that ends at two in the morning; or that leaves out steps, and its report does not say so."""
    steps = {"max_steps": 20, "logging_steps": 100, "save_strategy": "steps", "save_steps": 2, "on_nan": "rollback"}
    path = write_recipe(training=steps)
    spoil(monkeypatch, step=5)
    assert main([str(path)]) == 0
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["skipped_steps"] == {"student": "1 of 20"}
    assert "1 of 20 steps of the student were skipped" in capsys.readouterr().out
    assert main([str(path), "training.on_nan=stop", "--restart", "training.max_steps=2"]) == 0
    assert not (out / "_left_out.json").exists()
    assert main([str(path), "training.save_strategy=no", "--check"]) == 2
    assert "training.on_nan" in capsys.readouterr().err


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_whatever_is_trained_is_looked_at(
    whose: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fine-tuned teacher or a baseline of NaN is exported too, and found finished by the next run."""
    sections: dict[str, Any] = {"training": {**FEW, "learning_rate": 1e30}}
    if whose == "teacher":
        model = str(make_model("bert", layers=4, seed=1))
        teacher = {"name": "finetuned", "model": model, "training": {"learning_rate": 1e30}}
        sections = {"training": FEW, "teacher": teacher}
    assert main([str(write_recipe(**sections))]) == 2
    error = capsys.readouterr().err
    assert ("the model's logits" if whose == "teacher" else "the student's logits") in error
    assert not any(record["finished"] for record in fit_records(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("model.safetensors"))


def test_a_model_that_answers_nothing_is_not_reported_on(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models of NaN have the same top class everywhere: "agreement with teacher 100.0 %"."""
    from safetensors.torch import load_file, save_file

    teacher = tmp_path / "teacher"
    shutil.copytree(make_model("bert", layers=4, seed=1), teacher)
    tensors = load_file(teacher / "model.safetensors")
    tensors["classifier.weight"][:] = NAN
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    objectives = [{"name": "hidden", "layers": [[1, 2]]}, {"name": "labels"}]  # none looks at the teacher's head
    path = write_recipe(
        training=FEW, teacher={"name": "pretrained", "model": str(teacher)}, objectives=objectives,
        student={"name": "pretrained", "model": str(make_model("bert", layers=2, seed=2))},
    )  # fmt: skip
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "the teacher's targets" in error
    assert "classifier.weight is not finite" in error
    assert not (tmp_path / "out" / "report.json").exists()
