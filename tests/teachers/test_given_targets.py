"""A teacher given as data: targets are read right, refused where they cannot be, and taught as a model's are."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Sequence, Value
from runs import KL_AND_LABELS, WriteRecipe, run, same, weights

from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.recipe.reader import load_recipe
from hf_distill.report.page import html
from hf_distill.report.report import Report
from hf_distill.report.text import rows as table
from hf_distill.run.dry_run import check
from hf_distill.teachers import CachedTeacher, GivenTeacher
from hf_distill.teachers.given.target_columns import as_table, read_targets

LISTS = {"name": "given", "columns": {"logits": "logits"}, "labels": ["positive", "negative"]}
GIVEN = {"name": "given", "columns": {"probabilities": ["positive", "negative"]}}


@pytest.fixture(scope="module")
def targets(sentiment_csv: Any, make_model: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows of both splits with the logits of a model, each text alone, by the name of the class."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = make_model("bert", layers=4, seed=1)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(where), AutoTokenizer.from_pretrained(where)
    found = {}
    for split, path in (("train", sentiment_csv.train), ("validation", sentiment_csv.validation)):
        with path.open(encoding="utf-8") as file:
            found[split] = list(csv.DictReader(file))
        for row in found[split]:
            with torch.no_grad():
                logits = model(**tokenizer(row["sentence"], return_tensors="pt")).logits[0].tolist()
            row["logits"] = dict(zip(("negative", "positive"), logits, strict=True))
    return found


def softmax(logits: dict[str, float]) -> dict[str, float]:
    whole = sum(math.exp(value) for value in logits.values())
    return {name: math.exp(value) / whole for name, value in logits.items()}


def as_csv(rows: list[dict[str, Any]], path: Path) -> str:
    """One column a class, positive first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "label", "positive", "negative"))
        for row in rows:
            shares = softmax(row["logits"])
            writer.writerow((row["sentence"], row["label"], shares["positive"], shares["negative"]))
    return str(path)


def as_json(rows: list[dict[str, Any]], path: Path) -> str:
    """A list of logits, positive first."""
    lines = [{**row, "logits": [row["logits"]["positive"], row["logits"]["negative"]]} for row in rows]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def given(targets: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> Any:
    """Write a recipe with a teacher that is given, or not."""

    def write(teacher: dict[str, Any] = GIVEN, form: Any = as_csv, kind: str = "csv", **sections: Any) -> Path:
        path = {split: form(rows, tmp_path / f"{split}.{kind}") for split, rows in targets.items()}
        return write_recipe(
            teacher=teacher,
            data={"path": path, "columns": {"text": "sentence"}},
            # Its head has the classes in the other order than the targets.
            student={"name": "pretrained", "model": str(make_model("bert", layers=2))},
            **sections,
        )

    return write


# --- the same as a model ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("brief_latency")
def test_a_student_learns_from_given_targets_what_it_learns_from_the_model(
    given: Any, make_model: Any, tmp_path: Path
) -> None:
    """Targets of another row, or of the other class, are learned as well as the right ones: nobody sees it."""
    teachers = {
        "model": ({"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))}, as_csv, "csv"),
        "columns": (GIVEN, as_csv, "csv"),
        "lists": (
            {"name": "given", "columns": {"logits": "logits"}, "labels": ["positive", "negative"]},
            as_json,
            "jsonl",
        ),
    }
    found, models = {}, {}
    for name, (teacher, form, kind) in teachers.items():
        training = {"output_dir": str(tmp_path / name), "num_train_epochs": 2}
        found[name] = run(
            given(teacher, form, kind, training=training, report={"baseline": True, "latency": True}), drawn=True
        )
        models[name] = weights(tmp_path / name)
    live = found.pop("model")
    for name, report in found.items():
        # But for biases of keys: attention does not depend on them, and Adam makes steps of rounding.
        for tensor, value in ((key, value) for key, value in models["model"].items() if not key.endswith("key.bias")):
            assert np.allclose(value, models[name][tensor], atol=1e-4), (name, tensor)
        assert report.teacher.metrics == pytest.approx(live.teacher.metrics)
        assert report.student.metrics == pytest.approx(live.student.metrics)
        assert report.baseline.metrics == live.baseline.metrics
        assert report.agreement == live.agreement
        assert [log["objective/kl"] for log in report.history["student"] if "objective/kl" in log] == pytest.approx(
            [log["objective/kl"] for log in live.history["student"] if "objective/kl" in log], rel=1e-3
        )
    report = found["columns"]
    assert (report.teacher.parameters, report.teacher.bytes, report.teacher.latency) == (None, None, None)
    assert report.student.latency is not None
    assert (report.compression, report.speedup) == (None, None)
    cells = {row.label: row.cells["teacher"] for row in table(report)}
    assert cells["parameters"] == cells["size"] == cells["latency, batch 1"] == "-"
    assert cells["accuracy"] != "-"
    content = json.loads((tmp_path / "columns" / "report.json").read_text())
    assert content["teacher"]["parameters"] is None
    assert html(Report.load(tmp_path / "columns")) == (tmp_path / "columns" / "report.html").read_text()
    assert "targets that were given as data" in (tmp_path / "columns" / "README.md").read_text()
    before = weights(tmp_path / "columns")
    again = run(given(GIVEN, training={"output_dir": str(tmp_path / "columns"), "num_train_epochs": 2},
                      report={"baseline": True, "latency": True}))  # fmt: skip
    assert same(before, weights(tmp_path / "columns"))
    assert again.student.metrics == report.student.metrics


def test_it_is_told_before_anything_runs(given: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan that shows the size of a model shows one that is not there."""
    text = check(load_recipe(given()))
    assert "no model, targets from the data" in text


# --- how they are read ------------------------------------------------------------------------------------------------


def read(
    values: list[Any], what: Any = "probabilities", classes: int = 2, exclusive: bool = True
) -> np.ndarray[Any, Any]:
    from datasets import Dataset

    return read_targets(Dataset.from_dict({"soft": values}), "train", "soft", classes, what, exclusive=exclusive)


def test_probabilities_are_logits_up_to_a_constant() -> None:
    """A softmax of what was read must give what was written, also where it was rounded, and for text of a CSV."""
    found = read([[0.2, 0.8], [0.333, 0.666], [1.0, 0.0]]).astype(np.float64)
    shares = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    assert shares[0] == pytest.approx([0.2, 0.8], rel=1e-6)
    assert shares[1] == pytest.approx([0.333 / 0.999, 0.666 / 0.999], rel=1e-6)
    assert shares[2] == pytest.approx([1.0, 0.0], abs=1e-30)
    assert np.array_equal(read(["[0.2, 0.8]"]), read([[0.2, 0.8]]))
    several = read([[0.2, 0.9], [0.0, 1.0]], exclusive=False).astype(np.float64)
    assert 1 / (1 + np.exp(-several[0])) == pytest.approx([0.2, 0.9], rel=1e-6)
    assert np.isfinite(several).all()
    assert np.array_equal(read([[-1.5, 2.0], [0.25, 3.0]], "logits"), [[-1.5, 2.0], [0.25, 3.0]])


@pytest.mark.parametrize(
    ("values", "what", "said"),
    [
        ([[0.2, 0.8], [0.2, 0.7]], "probabilities", "row 1 .* sums to 0.9; wanted probabilities that sum to 1"),
        ([[0.2, 0.8], [-0.2, 1.2]], "probabilities", "row 1 .* not negative"),
        ([[20.0, 80.0]], "probabilities", "row 0 .* percent"),
        ([[0.2, 0.8], [0.2, 0.3, 0.5]], "probabilities", "row 1 .* has 3 of them in 'soft'; wanted a list of 2"),
        ([[0.2, 0.8], None], "probabilities", "row 1 .* has None"),
        ([[0.2, 0.8], [0.2, None]], "probabilities", r"row 1 .* has \[0.2, None\]"),
        ([[0.2, 0.8], [math.nan, 0.8]], "probabilities", "row 1 .* a number for every class"),
        (["[0.2, 0.8]", "high"], "probabilities", "row 1 .* has 'high'"),
        ([[0.0, math.inf], [1.0, 1.0]], "logits", "row 0 .* a number for every class"),
        ([[0.2, 0.8], [0.3, 0.7]], "logits", "sums to 1, as probabilities do"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_right_are_refused_with_their_row(values: list[Any], what: Any, said: str) -> None:
    """Each of these is a distribution to softmax, which makes one of anything."""
    with pytest.raises(UserError, match=said) as error:
        read(values, what)
    assert error.value.key == "columns"


@pytest.mark.parametrize("asked", ["run", "check"])
def test_a_mistake_in_the_data_is_told_at_its_key(asked: str, given: Any, targets: Any, tmp_path: Path) -> None:
    """`data` would be blamed for what the teacher's entry says."""
    wrong = {"name": "given", "columns": {"probabilities": ["positive", "negativ"]}, "labels": ["positive", "negative"]}
    recipe = load_recipe(given(wrong))
    with pytest.raises(UserError, match=r"teacher\.columns: the train split has no column 'negativ'"):
        check(recipe) if asked == "check" else run(given(wrong))
    assert not (tmp_path / "out").exists()


def test_targets_stay_with_their_rows_when_eval_is_cut_from_train(targets: Any, tmp_path: Path) -> None:
    """A cut that moves texts but not what stands beside them gives every row the targets of another."""
    from hf_distill.data import apart, load_splits
    from hf_distill.data.section import Data

    path = as_csv(targets["train"], tmp_path / "train.csv")
    data = Data(path={"train": path}, columns={"text": "sentence"}, splits={"train": "train", "eval": 0.25})
    splits, beside = apart(load_splits(data, {"text": True, "label": False}, ["positive", "label"]))
    wanted = {row["sentence"]: (softmax(row["logits"])["positive"], row["label"]) for row in targets["train"]}
    assert {name: len(split) for name, split in splits.items()} == {"train": 48, "eval": 16}
    for name, split in splits.items():
        assert set(split.column_names) == {"text", "label"}
        found = zip(beside[name]["positive"], beside[name]["label"], strict=True)
        assert [wanted[text] for text in split["text"]] == [(pytest.approx(share), label) for share, label in found]


# --- what it is not for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"columns": {}}, "either probabilities or logits"),
        ({"columns": {"logits": "a", "probabilities": "b"}}, "either probabilities or logits"),
        ({"columns": {"logits": "a"}}, "which class is which"),
        ({"columns": {"logits": ["a"]}}, "two classes or more"),
        ({"columns": {"logits": ["a", "a"]}}, "two classes or more"),
        ({"columns": {"logits": ["a", "b"]}, "labels": ["x", "y", "z"]}, "3 names for 2 columns"),
    ],
)
def test_an_entry_that_says_too_little(fields: dict[str, Any], said: str) -> None:
    """Classes in an order that was guessed are the other way round half of the time."""
    with pytest.raises(UserError, match=said):
        GivenTeacher(**fields)


def test_it_is_not_cached() -> None:
    """There is nothing to ask."""
    with pytest.raises(UserError, match="given as data"):
        CachedTeacher(teacher=GivenTeacher(columns={"logits": ["a", "b"]}))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"objectives": [{"name": "hidden"}]}, r"objectives\[0\]: 'hidden' compares hidden states of"),
        ({"objectives": [{"name": "logits_mse"}]}, r"objectives\[0\]: 'logits_mse' compares logits"),
        ({"student": {"name": "copy_layers", "layers": 1}}, "teacher: the teacher is given as data: there is no model"),
        ({"student": {"name": "from_config"}}, "teacher: the teacher is given as data: there is no model"),
    ],
)
def test_what_needs_a_model_is_refused(sections: dict[str, Any], said: str, given: Any) -> None:
    """It would fail after the data was read, in words of another module."""
    path = given()
    recipe = {**json.loads(path.read_text()), "objectives": KL_AND_LABELS, **sections}
    path.write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        check(load_recipe(path))


def test_classes_of_other_names_are_refused(given: Any) -> None:
    """Matched by position, every row would teach another class."""
    teacher = {**GIVEN, "labels": ["good", "bad"]}
    with pytest.raises(UserError, match="good"):
        run(given(teacher))


@pytest.mark.parametrize("length", [-1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_lists_are_read_without_python_objects(length: int, kind: str) -> None:
    """200,000 rows of 150 classes took 7 s and 1.4 GB; read as a table, a slice must not begin at the table's start."""
    wanted = np.random.default_rng(0).normal(size=(40, 3)).astype(kind)
    features = Features({"soft": Sequence(Value(kind), length=length)})
    split = Dataset.from_dict({"soft": wanted.tolist()}, features=features)
    for rows in (range(40), range(7, 19), [9, 3]):
        part = split.select(rows)
        assert as_table(column(part, "soft").combine_chunks(), 3) is not None
        found = read_targets(part, "train", "soft", 3, "logits", exclusive=True)
        assert np.array_equal(found, wanted[list(rows)].astype(np.float32))
    assert as_table(column(split, "soft").combine_chunks(), 4) is None
