"""`data.transfer`: texts without labels become the last rows of train, for every task with labels."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_distill.data import load_splits, peek
from hf_distill.data.section import Data
from hf_distill.data.transfer import Transfer
from hf_distill.data.transfer_rows import append_transfer, counting_from
from hf_distill.errors import UserError

ROLES = {"text": True, "text_pair": False, "label": False}


@pytest.fixture
def labelled(tmp_path: Path) -> dict[str, Any]:
    """A `data` section with three labelled rows, and a directory for the transfer rows."""
    path = tmp_path / "train.csv"
    path.write_text("sentence,stars\ngood,1\nbad,0\nfine,1\n")
    (tmp_path / "eval.csv").write_text("sentence,stars\nseen,1\nnew,0\n")
    return {
        "path": {"train": str(path), "validation": str(tmp_path / "eval.csv")},
        "columns": {"text": "sentence", "label": "stars"},
    }


def joined(data: dict[str, Any], **transfer: Any) -> Any:
    return append_transfer(load_splits(Data(**data, transfer=Transfer(**transfer)), ROLES), "label")["train"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sentence,stars\none,1\ntwo,0\n"),  # labels are not read
        ("a.csv", "id,sentence\n7,one\n8,two\n"),
        ("a.txt", "one\ntwo\n"),  # its only column is `text`
        ("a.jsonl", '{"sentence": "one"}\n{"sentence": "two"}\n'),
    ],
)
def test_transfer_rows_are_the_last_of_train_without_a_label(
    name: str, content: str, labelled: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the labels of its file a transfer row would be learned like any other, and the few labels be many."""
    path = tmp_path / name
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        train = joined(labelled, path=str(path))
    assert train["text"][:] == ["good", "bad", "fine", "one", "two"]
    assert train["label"][:] == [1, 0, 1, None, None]
    assert ("'stars'" in caplog.text) == ("stars" in content)
    assert train._fingerprint == joined(labelled, path=str(path))._fingerprint


def test_where_transfer_rows_may_be(labelled: dict[str, Any], tmp_path: Path) -> None:
    """A slice or a list of files that is passed over would teach other texts than those named."""
    for name, texts in (("a.txt", "one\ntwo\n"), ("b.txt", "three\n")):
        (tmp_path / name).write_text(texts)
    both = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert joined(labelled, path=both)["text"][3:] == ["one", "two", "three"]
    assert joined(labelled, path=str(tmp_path / "[ab].txt"), split="train[1:]")["text"][3:] == ["two", "three"]
    (tmp_path / "c.csv").write_text("sentence,body\nno,yes\n")
    assert joined(labelled, path=str(tmp_path / "c.csv"), columns={"text": "body"})["text"][3:] == ["yes"]
    assert joined({**labelled, "splits": {"eval": 1}}, path=both[1])["text"][-1] == "three"


@pytest.mark.parametrize(
    ("content", "transfer", "key", "words"),
    [
        ("body\none\n", {}, "transfer.columns.text", "the transfer split has no column 'sentence'"),
        ("sentence\none\n", {"columns": {"label": "stars"}}, "transfer.columns.label", "they have none"),
        ("sentence\none\n", {"columns": {"tokens": "x"}}, "transfer.columns.tokens", "no such role"),
        ("", {}, "transfer.path", "is empty"),
        ("sentence\n", {}, "transfer.split", "no example to learn from"),
        ("sentence\none\n", {"split": "train[1:]"}, "transfer.split", "is empty"),
        ("sentence\none\n", {"split": "unlabelled"}, "transfer.split", "no split 'unlabelled'"),
        ("sentence,other\none,1\n,2\n", {}, "transfer.columns.text", "1 of 2 transfer rows have no text"),
        ("sentence\n1\n", {}, "transfer.columns.text", "holds whole numbers"),
        ("sentence,text_pair\none,two\n", {}, "transfer.columns.text_pair", "the train rows have none"),
        (None, {}, "transfer.path", "no such file"),
    ],
)
def test_what_is_wrong_with_transfer_rows_is_said_of_them(
    content: str | None, transfer: dict[str, Any], key: str, words: str, labelled: dict[str, Any], tmp_path: Path
) -> None:
    """A mistake told of the train split, or by a row of both, is looked for in the wrong file."""
    path = tmp_path / "more.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        joined(labelled, path=[str(path)], **transfer)
    assert error.value.keys == (key,)


def test_a_further_column_of_another_type_is_left_out(
    labelled: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt reads all columns: ids that are numbers here and texts there would end the run with a traceback."""
    (tmp_path / "more.csv").write_text("sentence,id,score\none,x7,1\n")
    (tmp_path / "train.csv").write_text("sentence,stars,id,score\ngood,1,7,0.5\nbad,0,8,1.5\n")
    data = Data(**labelled, transfer=Transfer(path=str(tmp_path / "more.csv")))
    train = append_transfer(load_splits(data, ROLES, ("*",)), "label")["train"]
    assert train["beside/score"][:] == [0.5, 1.5, 1.0]
    assert "beside/id" not in train.column_names
    assert "'id' holds text in data.transfer and whole numbers in train" in caplog.text


def test_rows_that_are_also_elsewhere_are_counted(
    labelled: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A transfer file with the eval rows raises the scores; one with the labelled rows makes them count twice."""
    path = tmp_path / "all.txt"
    path.write_text("good\nseen\nbad\nother\n")
    with caplog.at_level(logging.WARNING):
        joined(labelled, path=str(path))
    evaluated, trained = (record.getMessage() for record in caplog.records)
    assert "1 of 2 rows of the eval split are also in data.transfer" in evaluated
    assert "2 of 4 transfer rows are also in train" in trained


def test_check_reads_the_first_rows_of_a_large_transfer_file(labelled: dict[str, Any], tmp_path: Path) -> None:
    """`--check` would otherwise read gigabytes; and a small train file is still checked whole."""
    path = tmp_path / "large.jsonl"
    path.write_text("".join(json.dumps({"sentence": f"text {row}"}) + "\n" for row in range(21_000)))
    sample = peek(Data(**labelled, transfer=Transfer(path=str(path))), ROLES)
    assert sample is not None
    assert (sample.whole, sample.whole_transfer, len(sample.splits["transfer"])) == (True, False, 1_000)
    hub = peek(Data(**labelled, transfer=Transfer(path="someone/texts")), ROLES)
    assert hub is not None
    assert (set(hub.splits), hub.whole_transfer) == ({"train", "eval"}, False)


def test_a_mistake_in_a_transfer_row_names_its_row() -> None:
    """Counted from the first row of train, it is looked for in the wrong file, at a row that may not be there."""
    text = "row 5 (counted from 0) of the train split is empty: drop it."
    for first, told, key in (
        (3, "row 2 (counted from 0) of data.transfer is empty", "transfer.columns.text"),
        (6, text, "columns.text"),
    ):
        with pytest.raises(UserError) as error, counting_from(first):
            raise UserError(text, key="columns.text")
        assert str(error.value).startswith(told)
        assert error.value.key == key


def test_labels_in_a_numbered_column_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CoNLL's columns have no names: the tags of transfer rows would be dropped without a word."""
    for name in ("train", "more"):
        (tmp_path / f"{name}.conll").write_text("Anna B-PER\nsings O\n\nBob B-PER\n")
    data = Data(
        path={"train": str(tmp_path / "train.conll")},
        splits={"eval": 1},
        transfer=Transfer(path=str(tmp_path / "more.conll"), split="train[:1]"),
    )
    with caplog.at_level(logging.WARNING):
        splits = load_splits(data, {"tokens": True, "tags": False}, label="tags")
    assert splits["transfer"][:] == {"tokens": [["Anna", "sings"]]}
    assert "data.transfer has labels (column '1')" in caplog.text
