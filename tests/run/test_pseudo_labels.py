"""`data.pseudo_labels`: which rows a student learns from once the teacher was asked."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_runs import cached
from runs import WriteRecipe, run, same, unfinish, weights
from scipy.special import expit, softmax

from hf_distill.data.pseudo_labels import sure_class, sure_labels
from hf_distill.errors import UserError
from hf_distill.recipe.reader import load_recipe
from hf_distill.run.dry_run import check
from hf_distill.run.fit import Fitter

LABELS = [{"name": "labels"}]


@pytest.fixture
def half(tmp_path: Path, sentiment_csv: Any) -> dict[str, Any]:
    """A `data` section whose every second train row has no label."""
    with sentiment_csv.train.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[1::4] + rows[2::4]:
        row["label"] = ""
    path = tmp_path / "half.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files = {"train": str(path), "validation": str(sentiment_csv.validation)}
    return {"path": files, "columns": {"text": "sentence"}}


def logits(model: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """Return the logits of a saved classifier, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        rows = [classifier(**tokenizer(text, return_tensors="pt")).logits[0].double() for text in texts]
    return np.stack([row.numpy() for row in rows])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[int]], list[Any]]]:
    """Tokens and labels of the rows of every training, in order."""
    seen: list[tuple[list[list[int]], list[Any]]] = []
    real = Fitter.fit

    def noting(self: Fitter, *args: Any, **kwargs: Any) -> Any:
        rows = self.rows(kwargs["objectives"])
        seen.append((rows["input_ids"][:], rows["labels"][:] if "labels" in rows.column_names else []))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Fitter, "fit", noting)
    return seen


@pytest.mark.parametrize(("soft", "stored"), [(False, False), (True, True)])
def test_students_learn_from_labelled_rows_and_from_those_the_teacher_is_sure_of(
    soft: bool, stored: bool, half: Any, write_recipe: WriteRecipe, make_model: Any, trained: list[Any], tmp_path: Path
) -> None:
    """Rows could be paired with another row's class, or the baseline could learn the teacher's classes."""
    from transformers import AutoTokenizer

    model = make_model("bert", layers=4, seed=1)
    with open(half["path"]["train"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = np.array([bool(row["label"]) for row in rows])
    found = softmax(logits(model, [row["sentence"] for row in rows]), -1)
    threshold = float(np.median(found[~known].max(-1)))  # in between two rows, as their number is even
    stays = known | (found.max(-1) >= threshold)
    assert known.sum() < stays.sum() < len(rows)
    teacher = cached(model, path=str(tmp_path / "cache")) if stored else {"name": "pretrained", "model": str(model)}
    report = run(
        write_recipe(
            data={**half, "pseudo_labels": {"threshold": threshold, "soft": soft}},
            teacher=teacher,
            report={"baseline": True, "latency": False},
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    (tokens, labels), (_, baseline) = trained
    assert tokens == [tokenizer(row["sentence"])["input_ids"] for row, one in zip(rows, stays, strict=True) if one]
    names = {"negative": 0, "positive": 1, "": -100}
    own = np.array([names[row["label"]] for row in rows])
    assert labels == list(np.where(known | soft, own, found.argmax(-1))[stays])
    assert baseline == list(own[known])
    facts = report.settings["pseudo_labels"]
    assert facts["rows"] == f"{(stays & ~known).sum()} of {(~known).sum()}"
    assert list(facts["classes"].values()) == np.bincount(found[stays & ~known].argmax(-1), minlength=2).tolist()


def test_a_resumed_run_learns_from_the_same_rows_and_asks_nobody(
    half: Any, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher asked again may be sure of one row more; the interrupted training would be refused, or be another."""
    from hf_distill.run import pseudo_labels

    path = write_recipe(data={**half, "pseudo_labels": {"threshold": 0.6}})
    run(path)
    first = weights(tmp_path / "out")
    monkeypatch.setattr(pseudo_labels, "_probabilities", None)
    unfinish(tmp_path / "out")
    run(path)
    assert same(first, weights(tmp_path / "out"))
    monkeypatch.undo()
    file = tmp_path / "out" / pseudo_labels.FILE
    content = file.read_bytes()
    file.write_bytes(content[:-10])  # damaged: asked again
    run(path)
    assert file.read_bytes() == content


@pytest.mark.parametrize("teacher", ["pretrained", "zero_shot"])
def test_without_any_label_the_teachers_classes_are_all_there_is_to_learn(
    teacher: str, half: Any, write_recipe: WriteRecipe, make_model: Any, trained: list[Any]
) -> None:
    """Hard labels of a bare heap of texts are the plainest use; a check for labels in the data would refuse it."""
    bare = {**half, "columns": {"text": "sentence", "label": "label"}, "labels": {"negative": None, "positive": None}}
    entailment = make_model("bert", labels=("no", "entailment"), seed=5, initializer_range=0.7)
    given = {
        "pretrained": {"model": str(make_model("bert", layers=4, seed=1))},
        "zero_shot": {"model": str(entailment), "labels": {"negative": "dull", "positive": "wonderful"}},
    }
    run(
        write_recipe(
            data={**bare, "pseudo_labels": {"threshold": 0.51, "soft": False}},
            teacher={"name": teacher, **given[teacher]},
            student={"name": "pretrained", "model": str(make_model("bert-bare", layers=2))},
            objectives=LABELS,
        )
    )
    assert set(trained[0][1]) <= {0, 1}
    assert trained[0][1]


@pytest.mark.parametrize(
    ("options", "sections", "key", "words"),
    [
        ({"threshold": 0.5}, {}, "pseudo_labels.threshold", "2 classes"),
        ({"threshold": 0.9, "soft": False}, {"objectives": [{"name": "kl"}]}, "pseudo_labels.soft", "labels"),
        ({"threshold": 0.9}, {"teacher": {"name": "ema"}, "student": None}, "pseudo_labels", "changes"),
        ({"threshold": 0.9}, {"teacher": {"name": "mutual"}, "student": None}, "pseudo_labels", "changes"),
        ({"threshold": 0.9}, {"task": "fill-mask", "objectives": [{"name": "kl"}]}, "pseudo_labels", "fill-mask"),
    ],
)
def test_what_has_no_meaning_is_refused_by_check_and_run(
    options: Any, sections: Any, key: str, words: str, half: Any, write_recipe: WriteRecipe, make_model: Any
) -> None:
    """A threshold that leaves nothing out, or labels that nobody reads, would pass as a run with pseudo-labels."""
    given = {"student": {"name": "pretrained", "model": str(make_model("bert"))}} if "student" in sections else {}
    if "task" in sections:
        given["teacher"] = {"name": "pretrained", "model": str(make_model("bert-mlm"))}
    data = {**half, "pseudo_labels": options}
    path = write_recipe(**{**sections, **given, "data": data})
    for work in (lambda: check(load_recipe(path)), lambda: run(path)):
        with pytest.raises(UserError) as caught:
            work()
        assert f"data.{key}: " in str(caught.value)
        assert words in str(caught.value)


def test_a_threshold_that_no_row_reaches_and_rows_that_all_have_labels_are_refused(
    half: Any, write_recipe: WriteRecipe
) -> None:
    """The student would learn from labels alone, and the report would call it distilled."""
    recipe = write_recipe(data={**half, "pseudo_labels": {"threshold": 0.9999999}})
    with pytest.raises(UserError, match=r"threshold: .*none of 32 train rows"):
        run(recipe)
    whole = {**half, "path": {**half["path"], "train": half["path"]["validation"]}}
    with pytest.raises(UserError, match="every train row has a label"):
        check(load_recipe(write_recipe(data={**whole, "pseudo_labels": {"threshold": 0.9}})))


def test_several_labels_are_sure_one_by_one(
    write_recipe: WriteRecipe, make_model: Any, trained: list[Any], tmp_path: Path
) -> None:
    """A label the teacher is unsure of could count as one that does not apply."""
    chance = np.random.default_rng(0)
    names = ["joy", "anger", "fear"]
    model = make_model("bert", layers=4, seed=1, labels=names, problem_type="multi_label_classification")
    texts = [" ".join(chance.choice(["film", "dull", "great", "cast", "plot"], 4)) for _ in range(16)]
    path = tmp_path / "several.jsonl"
    rows = [{"text": text, "label": ["joy"] if index < 4 else None} for index, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = {"path": {"train": str(path), "validation": str(path)}}
    options = {"threshold": 0.6, "soft": False}
    run(write_recipe(data={**data, "pseudo_labels": options}, teacher={"name": "pretrained", "model": str(model)}))
    wanted = [[1.0, 0.0, 0.0]] * 4
    for row in expit(logits(model, texts[4:])):
        own = [1.0 if p >= 0.6 else 0.0 if p <= 0.4 else np.nan for p in row]
        wanted += [] if np.isnan(own).all() else [own]
    assert np.isnan(wanted).any()
    np.testing.assert_array_equal(np.array(trained[0][1]), np.array(wanted))


def test_sure_of_exactly_the_threshold_is_sure() -> None:
    """`>` in place of `>=` would lose the rows of a teacher whose probabilities are rounded."""
    assert sure_class(np.array([[0.75, 0.25], [0.3, 0.7]]), 0.75).tolist() == [0, -100]
    np.testing.assert_array_equal(sure_labels(np.array([[0.75, 0.25, 0.5]]), 0.75), [[1, 0, np.nan]])
