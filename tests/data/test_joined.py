"""One column for each class, as spreadsheets and Kaggle have them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from labels import head, read
from runs import run

from hf_distill import load_recipe
from hf_distill.data import load_splits
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

CSV = "text,joy,anger,love\ngood film,1,0,1\nbad film,0,1,0\nno word,0,0,0\nunread,,,\n"
ROLES = {"text": True, "label": False}


def written(path: Path, text: str = CSV) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_columns_become_lists(tmp_path: Path) -> None:
    """In the order of the recipe, whatever that of the file; a row without any value has no label."""
    path = written(tmp_path / "a.csv")
    data = Data(path={"train": path, "eval": path}, columns={"label": ["love", "joy"]})
    rows = load_splits(data, ROLES)["train"]
    assert rows["label"][:] == [[1, 1], [0, 0], [0, 0], None]
    found = read(rows["label"][:], names=["love", "joy"])
    assert (found.kind, found.names) == ("binary", ("love", "joy"))
    assert repr(found.encode([None])) == repr([[math.nan] * 2])
    # One more of each side of the decimal point: probabilities.
    soft = written(tmp_path / "b.csv", "text,no,yes\na,0.2,0.8\nb,1,0\n")
    rows = load_splits(Data(path={"train": soft, "eval": soft}, columns={"label": ["no", "yes"]}), ROLES)["train"]
    assert read(rows["label"][:], names=["no", "yes"]).soft


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["joy", "angr"], "the train split has no column 'angr'. Did you mean 'anger'"),
        (["text", "joy"], "hold int64, string; wanted numbers"),
    ],
)
def test_columns_that_are_not_there(columns: list[str], says: str, tmp_path: Path) -> None:
    """A class that is missing would shift all that come after it."""
    path = written(tmp_path / "a.csv")
    with pytest.raises(UserError) as caught:
        load_splits(Data(path={"train": path, "eval": path}, columns={"label": columns}), ROLES)
    assert says in str(caught.value)
    assert caught.value.key == "columns.label"


def test_one_hot_columns_of_one_class() -> None:
    """A head of one class of several, or the recipe, says that exactly one holds: a softmax, not a coin each."""
    rows = [[1, 0], [0, 1], None]
    assert read(rows, names=["no", "yes"]).kind == "binary"
    single = head("yes", "no", problem="single_label_classification")
    for options in ({"problem": "single_label"}, {"teacher": single}):
        found = read(rows, names=["no", "yes"], **options)
        assert (found.kind, found.soft) == ("classes", True)
    assert found.encode([[1, 0]]) == [[0.0, 1.0]]


def test_a_run_on_columns(write_recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """From a spreadsheet to a student that names its labels as the columns."""
    path = written(
        tmp_path / "rows.csv", "text,joy,anger\n" + "the film is great,1,0\na dull plot,0,1\nthe cast,1,1\n" * 4
    )
    recipe = write_recipe(
        data={"path": {"train": path, "validation": path}, "columns": {"label": ["joy", "anger"]}},
        teacher={"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"max_steps": 1}},
        training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"},
    )
    assert "classes     train: joy 8, anger 8" in check(load_recipe(recipe)).splitlines()
    report = run(recipe)
    assert "f1_micro" in report.student.metrics
    config = json.loads((next(tmp_path.rglob("report.json")).parent / "config.json").read_text())
    assert config["id2label"] == {"0": "joy", "1": "anger"}
    assert config["problem_type"] == "multi_label_classification"
    with pytest.raises(UserError, match=r"data\.columns\.text: wanted one column"):
        check(load_recipe(recipe, ["data.columns.text=[joy, anger]"]))
