"""The programs in `examples/` do what their pages say."""

from __future__ import annotations

import csv
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from runs import REPO

if TYPE_CHECKING:
    from conftest import MakeModel, Splits

EXAMPLES = REPO / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def load(folder: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return `run.py` of an example as a module."""
    monkeypatch.syspath_prepend(EXAMPLES / folder)
    monkeypatch.delitem(sys.modules, "models", raising=False)
    spec = importlib.util.spec_from_file_location(f"{folder}_run", EXAMPLES / folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_chunker_teaches_an_automatizer_what_it_does_not_learn_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without this, the example could show a rule that a longer training learns as well, or a chunker still needed."""
    example = load("history_compression", monkeypatch)
    alone, longer, seen, taught, left = (value for _, value in example.run(tmp_path, lag=25, steps=250, seed=3))
    assert max(alone, longer) < 0.6
    assert seen == 2.0
    assert taught == 1.0
    assert left == 1.0


def script(name: str, *arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of `examples/` as its docstring says, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_all_examples_are_listed_and_short_enough_to_copy() -> None:
    """An example that no page names is found by nobody, and one of two hundred lines is copied by nobody."""
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert len(SCRIPTS) > 3
    for path in [*SCRIPTS, *EXAMPLES.glob("*.ipynb")]:
        assert f"({path.name})" in page
        assert path.suffix != ".py" or len(path.read_text("utf-8").splitlines()) <= 60, path.name


@pytest.mark.usefixtures("brief_latency")
def test_scripts_for_classifiers(
    make_model: MakeModel,
    sentiment_csv: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script that everyone copies, and that stops with a renamed argument, is worse than none."""
    teacher, student = make_model("bert", layers=2, seed=1), make_model("bert", layers=2)
    files = (teacher, student, sentiment_csv.train, sentiment_csv.validation, "--text", "sentence", "--layers", "1")
    out = tmp_path / "student"
    script("distil_classifier.py", *files, "--out", out, monkeypatch=monkeypatch)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert json.loads((out / "report.json").read_text())["baseline"] is not None
    assert "Full report: " in capsys.readouterr().out
    script("compare_objectives.py", *files, "--seeds", "2", "--out", tmp_path / "compared", monkeypatch=monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if " accuracy " in line]
    assert [line.split("  ")[0] for line in lines] == ["labels alone", "kl", "kl + labels", "js", "logits_mse"]


def test_labels_of_a_teacher_are_its_probabilities(
    make_model: MakeModel, sentiment_csv: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns in another order than the names of the classes would teach a student the opposite."""
    from transformers import pipeline

    teacher, soft = make_model("bert", layers=2, seed=1), tmp_path / "made/soft.csv"
    script(
        "teacher_labels_to_csv.py", teacher, sentiment_csv.train, soft, "--text", "sentence", monkeypatch=monkeypatch
    )
    with soft.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pipe = pipeline("text-classification", str(teacher), top_k=None, device="cpu")
    assert len(rows) == 64
    for row in rows[:5]:
        for said in pipe([row["sentence"]])[0]:
            assert float(row[said["label"]]) == pytest.approx(said["score"], abs=1e-6)


@pytest.mark.usefixtures("brief_latency")
def test_script_for_language_models(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As above; and a text longer than the model's window must not stop it."""
    for name, rows in (("train", 16), ("eval", 4)):
        lines = [json.dumps({"topic": "films", "text": "the film is great and the plot is clever . " * 4})] * rows
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    model, out = make_model("llama-lm", layers=3), tmp_path / "out"
    files = (model, tmp_path / "train.jsonl", tmp_path / "eval.jsonl", "--layers", "1", "--steps", "2", "--out", out)
    script("distil_language_model.py", *files, monkeypatch=monkeypatch)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert "The student writes: " in capsys.readouterr().out
