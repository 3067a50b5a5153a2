"""Runs with transfer rows: what each model trains on, and what is said about it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run, same, weights

from hf_distill.data.transfer_rows import append_transfer
from hf_distill.errors import UserError
from hf_distill.models.loading import open_tokenizer
from hf_distill.recipe.reader import load_recipe
from hf_distill.run.dry_run import check
from hf_distill.tasks import TASKS, Setup
from hf_distill.training.labelled import has_label, steps_of

LABELLED, TRANSFER, EVAL = 16, 48, 32
PAIRS = {"text": ["good plot"] * 2, "text_pair": ["a fine film"] * 2}
ANSWERS = [{"text": ["good"], "answer_start": [0]}, {"text": ["film"], "answer_start": [12]}]


@pytest.fixture
def parts(sentiment_csv: Any, tmp_path: Path) -> dict[str, str]:
    """Paths of a labelled part of the data, of the rest without labels, and of both in one file."""
    with sentiment_csv.train.open(encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    bare = [{"sentence": row["sentence"]} for row in every[LABELLED:]]
    content = {"labelled": every[:LABELLED], "transfer": bare, "both": [*every[:LABELLED], *bare]}
    paths = {}
    for name, rows in content.items():
        paths[name] = str(tmp_path / f"{name}.csv")
        with open(paths[name], "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), restval="")
            writer.writeheader()
            writer.writerows(rows)
    return {**paths, "eval": str(sentiment_csv.validation)}


def data(parts: dict[str, str], train: str = "labelled", **section: Any) -> dict[str, Any]:
    return {
        "path": {"train": parts[train], "validation": parts["eval"]},
        "columns": {"text": "sentence"},
        **({"transfer": {"path": parts["transfer"]}} if train == "labelled" else {}),
        **section,
    }


@pytest.mark.parametrize(
    ("task", "model", "train", "transfer"),
    [
        ({}, "bert", {"text": ["a", "b"], "label": ["x", "y"]}, {"text": ["c"]}),
        ({}, "bert", {**PAIRS, "label": [0.5, 1.5]}, {name: texts[:1] for name, texts in PAIRS.items()}),
        ({}, "bert", {"text": ["a", "b"], "label": [["x"], ["x", "y"]]}, {"text": ["c"]}),
        (
            {"name": "token-classification"},
            "bert-tokens",
            {"tokens": [["a"], ["good", "film"]], "tags": [["x"], ["x", "y"]]},
            {"tokens": [["fine"]]},
        ),
        ({"name": "sentence-similarity"}, "bert-bare", {**PAIRS, "label": [0.1, 0.9]}, PAIRS),
        (
            {"name": "question-answering", "stride": 1},
            "bert-qa",
            {"question": ["?", "?"], "context": ["good plot a film"] * 2, "answers": ANSWERS},
            {"question": ["?"], "context": ["good plot a film " * 3]},  # several windows
        ),
    ],
)
def test_every_task_with_labels_knows_its_transfer_rows(
    task: dict[str, Any], model: str, train: dict[str, Any], transfer: dict[str, Any], make_model: Any
) -> None:
    """A made-up label for a transfer row is learned; a row of train counted as one is given away by its teacher."""
    from datasets import Dataset

    cls = TASKS[task.pop("name", "text-classification")]
    splits = {name: Dataset.from_dict(part) for name, part in (("train", train), ("transfer", transfer))}
    splits["eval"] = splits["train"]
    setup = Setup(
        tokenizer=open_tokenizer(str(make_model(model))), max_length=12, transfer_rows=len(splits["transfer"])
    )
    prepared = cls(**task).prepare(append_transfer(splits, cls.label_role), setup)
    assert has_label(prepared.train).tolist() == (~prepared.transferred).tolist()
    assert prepared.transferred.sum() >= len(splits["transfer"])
    assert prepared.labelled
    assert has_label(prepared.eval).all()
    prepared.collator([{key: row[key] for key in row if key != "length"} for row in prepared.train])


@pytest.mark.parametrize("name", ["text-generation", "fill-mask", "summarization", "translation"])
def test_a_task_whose_labels_are_texts_has_no_transfer_rows(name: str) -> None:
    """Their texts would be learned like any other, or with an empty target."""
    with pytest.raises(UserError, match=rf"not for {name}: .* path: \{{train: ") as error:
        TASKS[name]().check_transfer()
    assert error.value.key == "transfer"


def test_transfer_rows_teach_like_rows_without_a_label(
    parts: dict[str, str],
    write_recipe: WriteRecipe,
    make_model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a file of their own, they must change neither the teacher, nor the student, nor the baseline; and a teacher
    and a baseline in batches mostly without labels learn little, so that the student wins too easily."""
    found, models = {}, {}
    for train in ("labelled", "both"):
        out = tmp_path / train
        path = write_recipe(
            data=data(parts, train),
            teacher={
                "name": "cached",
                "teacher": {"name": "finetuned", "model": str(make_model("bert-bare", layers=2))},
            },
            student={"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=1))},
            objectives=[{"name": "kl", "temperature": 2.0}],
            report={"baseline": True, "latency": False},
            training={"output_dir": str(out)},
        )
        found[train] = run(path)
        (teacher,) = (one for one in (out / "_teacher").iterdir() if one.is_dir())
        models[train] = [weights(out), weights(teacher), weights(out / "_runs" / "baseline")]
    assert all(map(same, *models.values()))
    report = found["labelled"]
    steps = {name: steps_of(history) for name, history in report.history.items()}
    assert steps == {"teacher": 6, "student": 8, "baseline": 8}  # batches of 8: 3 epochs of 16 rows, 1 of 64
    assert report.best["baseline"].evaluations >= 4
    settings = {key: report.settings[key] for key in ("train_rows", "train_rows_with_label", "transfer_rows")}
    assert settings == {"train_rows": 64, "train_rows_with_label": LABELLED, "transfer_rows": TRANSFER}
    line = (
        "Rows trained on. Teacher: 16 with a label; student: 64 (16 with a label, 48 transfer rows); "
        "student without teacher: 16 with a label, for as many steps."
    )
    out = tmp_path / "labelled"
    assert all(line in text for text in (capsys.readouterr().out, (out / "report.html").read_text()))
    assert line in (out / "README.md").read_text().replace("\\", "")
    assert "transfer.csv" in (out / "README.md").read_text()


def test_a_teacher_that_stops_early_is_not_said_to_learn_from_all_labelled_rows(
    parts: dict[str, str], write_recipe: WriteRecipe, make_model: Any
) -> None:
    """Part of them only says when to stop."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "early_stopping": {"share": 4}}
    student = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=1))}
    report = run(write_recipe(data=data(parts), teacher=teacher, student=student, training={"max_steps": 1}))
    assert report.settings["rows_trained_on"]["teacher"] == "a part of the 16 with a label"


@pytest.fixture
def model(make_model: Any) -> str:
    return str(make_model("bert-bare", layers=2))


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        ({"task": "fill-mask"}, "data.transfer", "not for fill-mask"),
        ({"objectives": [{"name": "labels"}]}, "data.transfer", "no objective learns from the teacher"),
        ({"report": {"baseline": True}}, "report.baseline", "none"),
        ({"teacher": "finetuned"}, "teacher", "no labels"),
    ],
)
def test_what_transfer_rows_cannot_do_is_told_by_check_and_run(
    sections: dict[str, Any],
    key: str,
    words: str,
    parts: dict[str, str],
    write_recipe: WriteRecipe,
    model: str,
    make_model: Any,
) -> None:
    """A teacher without labels, or a student without a teacher, is known before hours of training."""
    kl = {"objectives": [{"name": "kl"}]}
    if "teacher" in sections:
        sections = {"teacher": {"name": "finetuned", "model": model}, **kl}
    if "task" in sections:
        masked = {"name": "pretrained", "model": str(make_model("bert-mlm"))}
        sections = {"teacher": masked, "student": masked, **sections}
    if key != "data.transfer":  # no label anywhere
        Path(parts["labelled"]).write_text(Path(parts["transfer"]).read_text())
    path = write_recipe(**{"data": data(parts), **kl, **sections})
    for work in (check, load_and_open):
        with pytest.raises(UserError, match=words) as error:
            work(load_recipe(path))
        assert f" {key}: " in str(error.value)


def load_and_open(recipe: Any) -> None:
    from hf_distill.run.preparation import open_run

    open_run(recipe, restart=False)


def test_stored_targets_of_transfer_rows_are_found_by_a_run(
    parts: dict[str, str], write_recipe: WriteRecipe, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf-distill cache` that reads other rows than the run asks an expensive teacher twice; here the teacher has a
    tokenizer of its own, and two files of texts."""
    from cached_runs import cached, count_calls

    from hf_distill.run.cache_command import capture

    rest = Path(parts["transfer"]).read_text().splitlines()
    for name, rows in (("one", rest[:20]), ("two", [rest[0], *rest[20:]])):
        parts[name] = str(Path(parts["transfer"]).with_name(f"{name}.csv"))
        Path(parts[name]).write_text("\n".join(rows) + "\n")
    path = write_recipe(
        data=data(parts, transfer={"path": [parts["one"], parts["two"]]}),
        teacher=cached(make_model("roberta")),
        student={"name": "pretrained", "model": str(make_model("bert", layers=2, seed=1))},
        training={"max_steps": 2},
    )
    asked = count_calls(monkeypatch)
    capture(load_recipe(path))
    assert sum(asked) == len({*texts(parts["both"]), *texts(parts["eval"])})
    report = run(path)
    assert report.settings["transfer_rows"] == TRANSFER
    assert sum(asked) == len({*texts(parts["both"]), *texts(parts["eval"])})


def test_check_counts_transfer_rows_whose_targets_are_columns(
    parts: dict[str, str], write_recipe: WriteRecipe, model: str
) -> None:
    """The targets of a transfer row are those of its file; a row without targets is named by its place there."""
    for name in ("labelled", "transfer", "eval"):
        rows = list(csv.DictReader(Path(parts[name]).read_text(encoding="utf-8").splitlines()))
        parts[name] = str(Path(parts["both"]).with_name(f"given-{name}.csv"))
        with open(parts[name], "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0], "negative", "positive"])
            writer.writeheader()
            writer.writerows([{**row, "negative": 0.25, "positive": 0.75} for row in rows])
    teacher = {"name": "given", "columns": {"probabilities": ["negative", "positive"]}}
    student = {"name": "pretrained", "model": model}
    path = write_recipe(data=data(parts), teacher=teacher, student=student, objectives=[{"name": "kl"}])
    lines = check(load_recipe(path))
    assert "transfer    train, 48 rows, the first" in lines
    assert "labels      16 of 64 train rows and 32 of 32 eval rows have one. From the other 48, all from data" in lines
    text = Path(parts["transfer"]).read_text().splitlines()
    Path(parts["transfer"]).write_text("\n".join([*text[:3], text[3].replace("0.25", ""), *text[4:]]) + "\n")
    with pytest.raises(UserError, match=r"row 2 \(counted from 0\) of data\.transfer"):
        check(load_recipe(path))


def texts(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return [row["sentence"] for row in csv.DictReader(file)]
