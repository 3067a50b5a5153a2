"""A teacher that makes its own inputs from the columns of the data: the one of docs/extending.md."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_runs import count_calls
from conftest import WORDS
from runs import REPO, WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

# Not in the order of the data, where the first label is `negative`.
CLASSES = ["positive", "negative"]


@pytest.fixture
def titled(
    write_recipe: WriteRecipe, make_model: Any, sentiment_csv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WriteRecipe:
    """Write a recipe whose teacher reads a title before each text; `cached=True` stores its targets."""
    (code,) = re.findall(r"```python\n(# my_teachers\.py\n.*?)```", (REPO / "docs/extending.md").read_text(), re.S)
    (tmp_path / "my_teachers.py").write_text(code)
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    paths = {}
    for name in ("train", "validation"):
        rows = list(csv.DictReader(getattr(sentiment_csv, name).open()))
        paths[name] = tmp_path / f"{name}.csv"
        with paths[name].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("title", "sentence", "label"))
            writer.writerows((f"film {number % 7}", one["sentence"], one["label"]) for number, one in enumerate(rows))
    entry = {
        "name": "my_teachers:Titled",
        "model": str(make_model("roberta", labels=CLASSES, seed=10)),
        "labels": CLASSES,
    }

    def write(*, cached: bool = False, teacher: Any = entry, **sections: Any) -> Path:
        return write_recipe(
            data={"path": {name: str(path) for name, path in paths.items()}, "columns": {"text": "sentence"}},
            teacher={"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")} if cached else teacher,
            **{"student": {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=2))}, **sections},
        )

    return write


def alone(model: Path, path: Path) -> np.ndarray[Any, Any]:
    """Return the teacher's logits for the rows of a file, each by itself, in the order of the data's classes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad(), path.open() as file:
        texts = [f"{row['title']}: {row['sentence']}" for row in csv.DictReader(file)]
        return np.stack([network(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in texts])[:, ::-1]


def losses(report: Any) -> list[float]:
    return [entry["loss"] for entry in report.history["student"] if "loss" in entry]


@pytest.mark.usefixtures("brief_latency")
def test_it_reads_its_own_inputs(
    titled: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the student's tokens, without the title, or in another order of rows or classes, it would teach noise.

    From a cache it must teach the same, and be asked once for all students.
    """
    training = {"logging_steps": 1}
    live = run(titled(training=training, report={"latency": True}))
    wanted = alone(make_model("roberta", labels=CLASSES, seed=10), tmp_path / "validation.csv")
    rows = list(csv.DictReader((tmp_path / "validation.csv").open()))
    right = [
        ("negative", "positive")[guess] == row["label"] for guess, row in zip(wanted.argmax(-1), rows, strict=True)
    ]
    assert live.teacher.metrics["accuracy"] == pytest.approx(np.mean(right))
    top = torch.tensor(wanted.copy()).double().softmax(-1).max(-1).values.mean()
    bins = live.calibration["teacher"]
    known = zip(bins.counts, bins.confidence, strict=True)
    assert sum(count * value for count, value in known if count) / len(rows) == pytest.approx(float(top), abs=1e-5)
    assert live.teacher.latency.single.median_ms > 0
    assert live.settings["tokenizers"] == {"student": "BertTokenizer", "teacher": "RobertaTokenizer"}
    seen = count_calls(monkeypatch)
    stored = run(titled(cached=True, training=training), restart=True)
    assert losses(stored) == pytest.approx(losses(live), rel=1e-4)
    assert stored.agreement == pytest.approx(live.agreement)
    assert stored.teacher.metrics == live.teacher.metrics
    assert seen
    seen.clear()
    other = {"name": "pretrained", "model": str(make_model("distilbert-bare", layers=2, seed=3))}
    run(titled(cached=True, student=other, training={"max_steps": 1}), restart=True)
    assert not seen


def test_a_student_with_a_part_of_its_vocabulary_learns_the_same(
    titled: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Taken for a model that reads the student's tokens, such a teacher would be given those in place of its own."""
    inner = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, vocab=(*WORDS, "unused"), seed=2))}
    found = []
    for at, student in enumerate((inner, {"name": "prune_vocabulary", "student": inner})):
        training = {"output_dir": str(tmp_path / str(at)), "logging_steps": 1, "max_steps": 3}
        report = run(titled(student=student, training=training))
        found.append((losses(report), report.teacher.metrics))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1] == found[0][1]
    assert "vocabulary" in report.settings["student"]


def test_what_is_refused(titled: WriteRecipe, make_model: Any) -> None:
    """Each in one line before weights are loaded, by `--check` too; else it ends in a traceback or a wrong head."""
    text = check(load_recipe(titled()))
    assert "makes its own inputs; classes: positive, negative" in text
    assert "student BertTokenizer" in text
    other = {"name": "my_teachers:Titled", "model": str(make_model("bert")), "labels": ["good", "bad"]}
    headed = {"name": "pretrained", "model": str(make_model("bert", labels=("good", "bad")))}
    for message, sections in {
        "teacher: a classifier of titled texts does not have": {"student": {"name": "copy_layers", "layers": 2}},
        "teacher.name: a classifier of titled texts is for text-class": {"task": "fill-mask"},
        "'relations' compares what is inside": {"objectives": [{"name": "relations"}]},
        "'hidden' compares what is inside": {"objectives": [{"name": "hidden"}]},
        "label 'negative'; wanted one of [good, bad]": {"teacher": other},
        "student.model: label names differ: wanted [good, bad]": {"student": headed},
    }.items():
        for cached in (False, True):
            with pytest.raises(UserError) as caught:
                check(load_recipe(titled(cached=cached, **sections)))
            (line,) = caught.value.mistakes
            assert message.replace("teacher", "teacher.teacher" if cached else "teacher") in line


def test_only_a_recipe_has_its_columns(titled: WriteRecipe, make_model: Any) -> None:
    """A trainer has tokens, from which no title can be read: it would train on whatever has the same names."""
    from transformers import AutoModelForSequenceClassification

    from hf_distill import DistillationTrainer

    student = AutoModelForSequenceClassification.from_pretrained(make_model("bert"))
    for cached in (False, True):
        teacher = load_recipe(titled(cached=cached)).teacher
        with pytest.raises(UserError, match="makes its own inputs from the columns of a recipe's data"):
            DistillationTrainer(student, teacher=teacher)
