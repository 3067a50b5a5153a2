"""Texts that would pass for classes and hardly are, and what a recipe can say of labels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from labels import class_label, equal, head, mistake, read, splits
from runs import run

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check
from hf_distill.tasks.label_forms import as_lists

NLI = ("contradiction", "entailment", "neutral")


def said(caplog: pytest.LogCaptureFixture, *args: Any, **kwargs: Any) -> list[str]:
    caplog.clear()
    read(*args, **kwargs)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("sign", ["-", "?", " ", "_"])
def test_a_sign_among_names_is_refused(sign: str) -> None:
    """SNLI marks pairs without agreement with "-": as a fourth class, it is taught and judged like the others."""
    key, line = mistake([*NLI, sign], ["neutral", sign, sign])
    assert key == "columns.label"
    assert f"1 of 4 rows of the train split and 2 of 3 rows of the eval split have the label {sign!r}" in line
    assert f"data: {{labels: {{'{sign}': null}}}}" in line
    # Both ways out.
    found = read([*NLI, sign], names={sign: None})
    assert (found.names, found.encode(["neutral", sign])) == (NLI, [2, -100])
    assert "undecided" in (read([*NLI, sign], names={sign: "undecided"}).names or ())


def test_a_sign_that_the_head_does_not_know() -> None:
    """The refusal names the way out; with it, the rows are rows without a label."""
    key, line = mistake([*NLI, "-"], teacher=head(*NLI))
    assert key == "columns.label"
    assert "has the label '-'; wanted one of" in line
    assert "null in place of NAME" in line
    found = read([*NLI, "-"], ["-"], teacher=head(*reversed(NLI)), names={"-": None})
    assert found.encode(["-", "neutral"]) == [-100, 0]
    assert found.labelled == ("train",), "an eval split of nothing but gaps has no labels"


def test_a_word_for_nothing_is_told(caplog: Any) -> None:
    """Somebody's class may be called "none": one warning, and silence once the recipe speaks of it."""
    (line,) = said(caplog, ["joy", "none", "rage"])
    assert "'none' is learned as a class of its own" in line
    assert "data: {labels: {'none': null}}" in line
    assert said(caplog, ["joy", "none", "rage"], names={"none": "none"}) == []
    assert said(caplog, ["joy", "none"], teacher=head("joy", "none")) == []


@pytest.mark.parametrize("sign", [",", ";", "|"])
def test_several_classes_in_one_cell(sign: str) -> None:
    """ "joy,love" beside "joy" would be a class that shares nothing with either."""
    key, line = mistake(["joy", f"joy{sign} love", "anger"])
    assert key == "columns.label"
    assert f"data: {{label_separator: '{sign}'}}" in line
    assert read(["joy", f"joy{sign} love"], names={f"joy{sign} love": "both"}).names == ("both", "joy")
    assert read(["Washington, D.C.", "Paris"]).names == ("Paris", "Washington, D.C.")


def test_a_separator_makes_several_labels() -> None:
    """The same cells as lists: what the recipe's way out promises."""
    given = splits(["joy", "joy, love", "anger", None], ["love,joy"])
    made = as_lists(given, ",")
    assert made["train"]["label"][:] == [["joy"], ["joy", "love"], ["anger"], None]
    assert made["eval"]["label"][:] == [["love", "joy"]]
    with pytest.raises(UserError, match="labels that are text") as caught:
        as_lists(splits([1, 2]), ",")
    assert caught.value.key == "label_separator"


@pytest.mark.parametrize(
    ("texts", "lists"),
    [
        (["[0]", "[0, 1]", "[2]"], [[0], [0, 1], [2]]),
        (["['joy']", "[]", '["love", "joy"]'], [["joy"], [], ["love", "joy"]]),
        (["[0.2, 0.8]", None], [[0.2, 0.8], None]),
    ],
)
def test_lists_written_as_text(texts: list[Any], lists: list[Any], caplog: Any) -> None:
    """A CSV file holds lists as text: each spelling would be a class."""
    assert as_lists(splits(texts), None)["train"]["label"][:] == lists
    (record,) = caplog.records
    assert "read as lists" in record.getMessage()


def test_some_lists_written_as_text() -> None:
    """One cell that is none means that nobody can tell what the others are."""
    with pytest.raises(UserError, match="others are not, such as 'joy'") as caught:
        as_lists(splits(["['joy']", "joy"]), None)
    assert caught.value.key == "columns.label"
    assert as_lists(splits(["[sic]", "joy"]), None)["train"]["label"][:] == ["[sic]", "joy"]


def test_spellings_of_one_class(caplog: Any) -> None:
    """A space after a name, or an accent in another form of Unicode, cannot be seen; it made a class."""
    (line,) = said(caplog, ["joy", "joy ", "rage"])
    assert "read as one class" in line
    assert read(["joy", "joy ", "rage"]).names == ("joy", "rage")
    assert read(["caf\u00e9", "cafe\u0301", "bar"]).encode(["cafe\u0301", "caf\u00e9"]) == [1, 1]
    assert read(["joy ", "rage"], teacher=head("rage", "joy")).encode(["joy "]) == [1]
    (line,) = said(caplog, ["Joy", "joy", "rage"])
    assert "'Joy' and 'joy' are learned as two classes" in line
    assert read(["Joy", "joy", "rage"], names={"Joy": "joy"}).names == ("joy", "rage")
    assert said(caplog, ["Joy", "joy", "rage"], names={"Joy": "joy"}) == []


def test_an_id_taken_for_a_label_is_told(caplog: Any) -> None:
    """As many classes as rows: the wrong column, and a head of ten thousand outputs."""
    (line,) = said(caplog, [f"doc-{number}" for number in range(100)])
    assert "100 rows have 100 different labels" in line
    assert said(caplog, [f"class-{number % 50}" for number in range(100)]) == []
    assert len(said(caplog, list(range(1000, 1100)))) == 1
    assert len(said(caplog, [str(number) for number in range(100)])) == 1


def test_what_labels_mean() -> None:
    """A mapping names the class of each label: renamed, merged, or none at all."""
    # IMDB says neg and pos, its models NEGATIVE and POSITIVE.
    teacher = head("POSITIVE", "NEGATIVE")
    meaning = {"neg": "negative", "pos": "positive"}
    assert read(["neg", "pos"], teacher=teacher, names=meaning).encode(["neg", "pos"]) == [1, 0]
    assert read([0, 1], feature=class_label("neg", "pos"), teacher=teacher, names=meaning).encode([0, 1]) == [1, 0]
    assert read([0, 1], teacher=teacher, names={"0": "negative", "1": "positive"}).encode([0, 1]) == [1, 0]
    # Merged, in the order of the recipe.
    found = read([1, 2, 3], names={"1": "bad", "2": "bad", "3": "good"})
    assert (found.names, found.encode([1, 2, 3])) == (("bad", "good"), [0, 0, 1])
    # A number that means nothing.
    assert read([0, 1, 9], names={"9": None}).encode([0, 1, 9]) == [0, 1, -100]
    assert read([True, False], names={"true": "ja", "false": "nein"}).encode([True, False]) == [0, 1]
    # A declared class that is none.
    found = read([0, 1, 2], feature=class_label("no", "yes", "unsure"), names={"unsure": None})
    assert (found.names, found.encode([1, 2])) == (("no", "yes"), [1, -100])
    # Several labels.
    assert equal(read([["a", "-"], ["b"]], names={"-": None}).encode([["a", "-"], None]), [[1.0, 0.0], [math.nan] * 2])
    # Numbers with a word for nothing.
    found = read(["0.5", "n/a"], names={"n/a": None}, problem="regression")
    assert equal(found.encode(["0.5", "n/a"]), [0.5, math.nan])


def test_meanings_that_leave_something_out() -> None:
    """A number of which the recipe says nothing, where it speaks of others, has no name."""
    key, line = mistake([0, 1, 2], names={"0": "no", "1": "yes"})
    assert key == "columns.label"
    assert "has the label 2; wanted one of those that data.labels names" in line
    assert (
        "wanted one of [NEGATIVE, POSITIVE]"
        in mistake(["neg", "pos"], teacher=head("NEGATIVE", "POSITIVE"), names={"neg": "NEGATIVE"})[1]
    )


def test_a_recipe_says_what_labels_mean(write_recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """From YAML to the student and back: a key such as "1" or "-" must stay text in the recipe that is kept."""
    path = tmp_path / "data.jsonl"
    rows = [{"text": f"film {number}", "label": ["neg", "pos", "-"][number % 3]} for number in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meaning = {"neg": "negative", "pos": "positive", "-": None, "1": "one"}
    recipe = write_recipe(
        data={"path": str(path), "splits": {"train": "train[:9]", "eval": "train[9:]"}, "labels": meaning},
        training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"},
    )
    lines = check(load_recipe(recipe)).splitlines()
    assert "classes     train: negative 3, positive 3" in lines
    report = run(recipe)
    assert "accuracy" in report.student.metrics
    kept = next(tmp_path.rglob("report.json")).with_name("recipe.yaml")
    assert load_recipe(kept).data.labels == meaning


def test_a_recipe_with_a_separator(write_recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """What the refusal of "joy,love" advises must work from data to student; other tasks refuse the key."""
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + 'good film,"joy,love"\nbad film,anger\nfine film,joy\n' * 4)
    recipe = write_recipe(
        data={"path": {"train": str(path), "validation": str(path)}, "label_separator": ","},
        teacher={"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"max_steps": 1}},
        training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"},
    )
    assert "classes     train: joy 8, anger 4, love 4" in check(load_recipe(recipe)).splitlines()
    run(recipe)
    config = json.loads((next(tmp_path.rglob("report.json")).parent / "config.json").read_text())
    assert (list(config["id2label"].values()), config["problem_type"]) == (
        ["anger", "joy", "love"],
        "multi_label_classification",
    )
    with pytest.raises(UserError, match=r"data\.label_separator: fill-mask has no rows with several labels"):
        check(load_recipe(recipe, ["task=fill-mask", f"teacher={{name: pretrained, model: {make_model('bert-mlm')}}}"]))


def test_a_line_for_a_label_counts_with_spaces_around_it() -> None:
    """The warning shows the label without its space; who followed it got no warning any more, and a class too many."""
    found = read(["Positive ", "positive", "negative"], names={"Positive": "positive"})
    assert set(found.names or ()) == {"negative", "positive"}
    first, second = found.encode(["Positive ", "positive"])
    assert first == second
