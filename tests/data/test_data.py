"""Reading examples: every format, every place, every way a file can be wrong."""

from __future__ import annotations

import errno
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_distill.data import check_data, column, load_splits, peek
from hf_distill.data.section import Data
from hf_distill.errors import UserError

ROLES = {"text": True, "text_pair": False, "label": False}
ROWS = [("good", 1), ("bad", 0), ("fine", 1), ("awful", 0)]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
JSONL = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
CUT = {"train": "train[:3]", "eval": "train[3:]"}


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def mistake(data: Data, roles: dict[str, bool] = ROLES) -> tuple[str, str]:
    """Return key and text of the one line that `data` is refused with."""
    with pytest.raises(UserError) as caught:
        load_splits(data, roles)
    assert len(caught.value.mistakes) == 1
    line = caught.value.mistakes[0]
    assert "\n" not in line
    assert len(line) < 420
    for jargon in ("Traceback", "DatasetGenerationError", "generating the dataset", "data_files", "ArrowInvalid"):
        assert jargon not in line
    return caught.value.key, line


# ---- What is read ----------------------------------------------------------------------------------------------------


def parquet(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}), path)
    return str(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "A.CSV"])
def test_every_kind_of_file_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    """A format read with the wrong delimiter or builder would train on other text than the file holds."""
    content: dict[str, str | bytes] = {
        ".csv": CSV,
        ".tsv": CSV.replace(",", "\t"),
        ".jsonl": JSONL,
        ".json": json.dumps([{"text": text, "label": label} for text, label in ROWS]),
        ".gz": gzip.compress(CSV.encode()),
    }
    file = tmp_path / name
    path = parquet(file) if file.suffix == ".parquet" else write(file, content[file.suffix.lower()])
    splits = load_splits(Data(path=path, splits=CUT), ROLES)
    assert [(row["text"], row["label"]) for split in ("train", "eval") for row in splits[split]] == ROWS
    assert len(splits["train"]) == 3


def test_a_text_file_has_a_line_an_example(tmp_path: Path) -> None:
    """Plain text is the natural form of an unlabelled transfer set."""
    path = write(tmp_path / "lines.txt", "one\ntwo\nthree\n")
    splits = load_splits(Data(path=path, splits={"train": "train[:2]", "eval": "train[2:]"}), ROLES)
    assert splits["train"]["text"][:] == ["one", "two"]
    assert splits["train"].column_names == ["text"]


def test_words_that_pandas_takes_for_gaps_are_kept(tmp_path: Path) -> None:
    """pandas reads "None", "NA" and "null" as missing: texts would be refused, a class called None silently dropped."""
    path = write(tmp_path / "a.csv", 'text,label\nnull,None\nNA,joy\nnan,\n"",joy\n')
    split = load_splits(Data(path=path, splits={"train": "train[:3]", "eval": "train[3:]"}), ROLES)
    assert split["train"]["text"][:] == ["null", "NA", "nan"]
    assert split["train"]["label"][:] == ["None", "joy", None]
    assert split["eval"]["text"][:] == [None]


def test_files_by_split_may_have_different_columns(tmp_path: Path) -> None:
    """`datasets` wants all files of one call to be alike; an eval split without labels is legal here."""
    train, dev = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", "text,id\nx,7\n")
    data = Data(path={"train": train, "validation": dev})
    splits = load_splits(data, ROLES)
    assert splits["train"].column_names == ["text", "label"]
    assert splits["eval"].column_names == ["text"]


def test_several_files_and_patterns_make_one_split(tmp_path: Path) -> None:
    """A pattern that missed a shard, or read them in another order, would change the data without a word."""
    for index, (text, label) in enumerate(ROWS):
        write(tmp_path / f"part-{index}.csv", f"text,label\n{text},{label}\n")
    listed = [str(tmp_path / f"part-{index}.csv") for index in range(4)]
    for path in ({"train": listed, "eval": listed[0]}, {"train": str(tmp_path / "part-*.csv"), "eval": listed[0]}):
        assert load_splits(Data(path=path), ROLES)["train"]["text"][:] == [text for text, _ in ROWS]
    assert len(load_splits(Data(path=str(tmp_path / "*.csv"), splits=CUT), ROLES)["train"]) == 3


def test_a_mapping_with_the_run_s_own_names_needs_no_splits(tmp_path: Path) -> None:
    """`path: {train: ..., eval: ...}` says all there is to say; asking for `validation` would be pedantry."""
    train, dev = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", "text,label\nx,1\n")
    assert load_splits(Data(path={"train": train, "eval": dev}), ROLES)["eval"]["text"][:] == ["x"]
    # What the recipe says goes first.
    other = write(tmp_path / "c.csv", "text,label\ny,1\n")
    named = Data(path={"train": train, "eval": dev, "validation": other})
    assert load_splits(named, ROLES)["eval"]["text"][:] == ["y"]


def test_a_directory_of_files(tmp_path: Path) -> None:
    """A local directory is read as a Hub dataset is, split by split."""
    write(tmp_path / "data" / "train.csv", CSV)
    write(tmp_path / "data" / "test.csv", "text,label\nx,1\n")
    data = Data(path=str(tmp_path / "data"), splits={"train": "train", "eval": "test"})
    assert load_splits(data, ROLES)["eval"]["text"][:] == ["x"]


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    """`load_dataset` refuses such a directory, or reads caches that `map` left in it as examples."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    whole = Dataset.from_dict({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}, features)
    DatasetDict(train=whole, validation=whole.select([0])).save_to_disk(tmp_path / "both")
    whole.save_to_disk(tmp_path / "one")
    write(tmp_path / "both" / "train" / "cache-123.arrow", (tmp_path / "one/data-00000-of-00001.arrow").read_bytes())
    before = sorted(tmp_path.rglob("*"))

    both = load_splits(Data(path=str(tmp_path / "both"), splits={"train": "train[:2]", "eval": "validation"}), ROLES)
    assert both["train"]["text"][:] == ["good", "bad"]
    assert len(both["eval"]) == 1
    assert both["train"].features["label"].names == ["negative", "positive"]
    one = load_splits(Data(path=str(tmp_path / "one"), splits=CUT), ROLES)
    assert [len(one["train"]), len(one["eval"])] == [3, 1]
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written beside the user's data"

    (tmp_path / "one" / "state.json").write_text("{}")
    key, line = mistake(Data(path=str(tmp_path / "one"), splits=CUT))
    assert key == "path"
    assert "save_to_disk" in line


def test_a_file_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places without Hub access get their data as packages; the package must not be imported for it."""
    write(tmp_path / "some_data" / "__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "some_data" / "files" / "a.csv", CSV)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load_splits(Data(path="package:some_data/files/a.csv", splits=CUT), ROLES)["train"]) == 3


# ---- Columns ---------------------------------------------------------------------------------------------------------


def test_columns_are_renamed_to_roles_and_the_rest_is_dropped(tmp_path: Path) -> None:
    """A leftover column called `text` must not take the place of the one the recipe names."""
    path = write(tmp_path / "a.csv", "text,body,stars\nold,new,1\nold,newer,2\n")
    columns = {"text": "body", "label": "stars"}
    splits = load_splits(Data(path=path, columns=columns, splits={"train": "train[:1]", "eval": "train[1:]"}), ROLES)
    assert splits["train"][0] == {"text": "new", "label": 1}
    swapped = Data(path=path, columns={"text": "body", "text_pair": "text"}, splits=splits_of(1))
    assert load_splits(swapped, ROLES)["train"][0] == {"text": "new", "text_pair": "old"}


def splits_of(rows: int) -> dict[str, str]:
    return {"train": f"train[:{rows}]", "eval": f"train[{rows}:]"}


def test_two_columns_may_swap_their_names(tmp_path: Path) -> None:
    """A file whose pair is the wrong way round is renamed both ways at once."""
    path = write(tmp_path / "a.csv", "text,text_pair\na,b\nc,d\n")
    data = Data(path=path, columns={"text": "text_pair", "text_pair": "text"}, splits=splits_of(1))
    assert load_splits(data, ROLES)["train"][0] == {"text": "b", "text_pair": "a"}


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        ({"text": "sentense"}, "columns.text", "Did you mean 'sentence'?"),
        ({}, "columns", "the train split has no column 'text' for the role 'text'."),
        ({"text": "sentence", "label": "lable"}, "columns.label", "Did you mean 'label'?"),
        ({"text": "sentence", "label": "sentence"}, "columns.label", "is already the column of the role 'text'"),
        ({"text": "sentence", "lable": "label"}, "columns.lable", "Did you mean 'label'?"),
    ],
)
def test_columns_that_are_not_there(columns: dict[str, str], key: str, says: str, tmp_path: Path) -> None:
    """A misspelt optional column would silently turn a labelled set into an unlabelled one."""
    path = write(tmp_path / "a.csv", CSV.replace("text", "sentence"))
    found, line = mistake(Data(path=path, columns=columns, splits=CUT))
    assert found == key
    assert says in line


def test_all_wrong_columns_are_told_at_once(tmp_path: Path) -> None:
    """A line a start means as many starts as mistakes, each after a minute of imports; and each has its own key."""
    path = write(tmp_path / "a.csv", CSV.replace("text", "sentence"))
    for read in (load_splits, peek):
        with pytest.raises(UserError) as caught:
            read(Data(path=path, columns={"text": "sentense", "label": "lable"}, splits=CUT), ROLES)
        assert caught.value.keys == ("columns.text", "columns.label")
        assert ["'sentence'?" in line for line in caught.value.mistakes] == [True, False]
        assert ["'label'?" in line for line in caught.value.mistakes] == [False, True]
    with pytest.raises(UserError) as caught:
        check_data(Data(path=path, columns={"txt": "sentence", "lable": "label"}, splits={"trian": "train"}), ROLES)
    assert caught.value.keys == ("columns.txt", "columns.lable", "splits.trian")


def test_a_wrong_delimiter_is_named(tmp_path: Path) -> None:
    """One column called `text;label` is a riddle unless the line says what it means."""
    path = write(tmp_path / "a.tsv", CSV.replace(",", ";"))
    assert "delimiter seems to be ';'" in mistake(Data(path=path, splits=CUT))[1]
    both = Data(path=path, columns={"text": "text", "label": "label"}, splits=CUT)
    assert "delimiter seems to be ';'" in mistake(both)[1]  # once


def test_a_named_label_missing_in_one_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An eval split without the label column is legal, but a report without accuracy must not come as a surprise."""
    train = write(tmp_path / "a.csv", CSV.replace("label", "gold"))
    dev = write(tmp_path / "b.csv", "text\nx\n")
    with caplog.at_level(logging.WARNING, "hf_distill"):
        splits = load_splits(Data(path={"train": train, "eval": dev}, columns={"label": "gold"}), ROLES)
    assert splits["eval"].column_names == ["text"]
    assert [record.getMessage() for record in caplog.records] == [
        "the eval split has no column 'gold' and goes without label"
    ]


@pytest.mark.parametrize(
    ("train", "judged", "shared"),
    [
        ("train", "train", 4),
        ("train", "train[3:]", 1),
        ("train[:75%]", "train[50%:]", 1),
        ("train[:3]", "train[3:]", 0),
        ("train[:1]+train[2:]", "train[:3]", 2),
        ("train[-1:]", "train[:-1]", 0),
    ],
)
def test_the_same_rows_to_train_and_to_judge_are_said(
    train: str, judged: str, shared: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report on rows that were trained on flatters the student."""
    with caplog.at_level(logging.WARNING, "hf_distill"):
        load_splits(Data(path=write(tmp_path / "a.csv", CSV), splits={"train": train, "eval": judged}), ROLES)
    said = [record.getMessage() for record in caplog.records]
    assert bool(said) == bool(shared)
    assert all(
        line.startswith(f"{shared} of ") and f"eval split ('{judged}') are also in train" in line for line in said
    )


# ---- Splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "key", "says"),
    [
        (
            {"train": "train", "eval": "validation"},
            "splits.eval",
            "There is only 'train'. Hold out a part of it: splits: {eval: 0.1}",
        ),
        ({"train": "train[:3]", "eval": "train[9:]"}, "splits.eval", "'train[9:]' is empty: no example to eval on"),
        ({"train": "train[:x]", "eval": "train"}, "splits.train", "cannot read 'train[:x]' as a split"),
        ({"train": "train[50%:10%]", "eval": "train"}, "splits.train", "is empty: no example to train on"),
        ({"train": "train", "eval": "train", "test": "train"}, "splits.test", "Wanted: train and eval"),
    ],
)
def test_splits_that_are_not_there(splits: dict[str, str], key: str, says: str, tmp_path: Path) -> None:
    """An empty eval split gives a report full of NaN after hours of training."""
    found, line = mistake(Data(path=write(tmp_path / "a.csv", CSV), splits=splits))
    assert found == key
    assert says in line


def test_an_unknown_split_of_a_mapping_or_a_directory(tmp_path: Path) -> None:
    """The same mistake reads the same whether the splits are the recipe's or found by `datasets`."""
    write(tmp_path / "d" / "train.csv", CSV)
    write(tmp_path / "d" / "test.csv", CSV)
    mapping = {"train": str(tmp_path / "d/train.csv"), "test": str(tmp_path / "d/test.csv")}
    for path in (mapping, str(tmp_path / "d")):
        key, line = mistake(Data(path=path, splits={"train": "train", "eval": "tests[:10]"}))
        assert (key, line) == ("splits.eval", "the data has no split 'tests'. Did you mean 'test'?")


def test_a_header_and_nothing_else(tmp_path: Path) -> None:
    """An export that went wrong leaves a header; `datasets` calls it an instruction without data."""
    key, line = mistake(Data(path={"train": write(tmp_path / "a.csv", "text,label\n"), "eval": __file__}))
    assert key == "path.eval"
    assert "Wanted a name that ends in .csv" in line
    path = {"train": str(tmp_path / "a.csv"), "eval": write(tmp_path / "b.csv", CSV)}
    assert mistake(Data(path=path)) == ("splits.train", "the split 'train' is empty: no example to train on.")


# ---- Files that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,label\ncafé,1\n".encode("latin-1"), "not UTF-8 (byte 0xe9). Convert it, for example: iconv"),
        ("a.txt", "café\n".encode("latin-1"), "not UTF-8 (byte 0xe9)"),
        ("a.csv", "text,label\na,1\nb,0,more\n", "line 3 has 3 fields, the lines above it 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
        ("a.parquet", "text,label\n", "not a parquet file"),
        ("a.arrow", "text,label\n", "cannot read"),
        ("a.csv", "", "is empty"),
        ("a.json", "", "is empty"),
    ],
)
def test_broken_files(name: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    """What pandas, pyarrow and json make of a broken file is a traceback of four exceptions; a user needs one line."""
    path = write(tmp_path / name, content)
    key, line = mistake(Data(path={"train": path, "eval": path}))
    assert key == "path.train"
    assert path in line
    assert says in line


def test_files_of_one_split_with_different_columns(tmp_path: Path) -> None:
    """The cause must survive: `datasets` hides it in the middle of three paragraphs."""
    paths = [write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", CSV.replace("label", "gold"))]
    key, line = mistake(Data(path={"train": paths, "eval": paths[0]}))
    assert key == "path.train"
    assert "b.csv' lacks label and has gold instead" in line


@pytest.mark.parametrize(
    ("path", "key", "says"),
    [
        ("data/trian.csv", "path", "no such file or directory: 'data/trian.csv' (looked from"),
        ("./nowhere", "path", "no such file or directory"),
        ("*.csv", "path", "no file matches '*.csv'"),
        ({"train": "x.csv", "eval": "y.csv"}, "path.train", "no such file or directory: 'x.csv'"),
        ({"train": [], "eval": []}, "path.train", "no file named"),
        ({}, "path", "no file named"),
        ("package:no_such_package/x.csv", "path", "no Python package 'no_such_package'"),
        ("some-user/some-dataset", "path", "'some-user/some-dataset', which is not a file or directory here"),
    ],
)
def test_paths_that_are_not_there(
    path: Any, key: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt file must not be looked for on the Hub, where somebody may have a dataset of that name."""
    monkeypatch.chdir(tmp_path)
    found, line = mistake(Data(path=path))
    assert found == key
    assert says in line


def test_kinds_and_places_that_make_no_sense(tmp_path: Path) -> None:
    """Each of these would otherwise be ignored, or fail somewhere inside a builder."""
    table = write(tmp_path / "a.csv", CSV)
    key, line = mistake(Data(path=table, name="sst2", splits=CUT))
    assert (key, line) == ("name", "a file has no configurations. Leave 'name' out.")
    key, line = mistake(Data(path={"train": str(tmp_path), "eval": table}))
    assert key == "path.train"
    assert "is a directory; wanted files" in line
    (tmp_path / "empty").mkdir()
    assert "no data files" in mistake(Data(path=str(tmp_path / "empty")))[1]
    write(tmp_path / "script" / "script.py", "import datasets\n")
    assert "no data files" in mistake(Data(path=str(tmp_path / "script")))[1]


def test_a_full_disk_is_no_fault_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes a copy to its cache; a disk that fills up meanwhile must not be blamed on the file."""
    import datasets

    from hf_distill.data.rows import FileRows

    def full(*_: Any, **__: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(FileRows, "download_and_prepare", full)
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load_splits(Data(path=write(tmp_path / "a.csv", CSV), splits=CUT), ROLES)


# ---- Without reading -------------------------------------------------------------------------------------------------


def test_checking_reads_nothing(tmp_path: Path) -> None:
    """`--check` of a recipe on 100 GB of files must be instant, and still find a missing file or split."""
    path = write(tmp_path / "a.parquet", "not read, so not missed")
    check_data(Data(path=path, splits=CUT), ROLES)
    with pytest.raises(UserError) as caught:
        check_data(Data(path=path), ROLES)
    assert caught.value.key == "splits.eval"


def test_peek_shows_the_first_row_of_each_split(tmp_path: Path) -> None:
    """`--check` shows what the models would be fed; it must be the columns that a run takes."""
    path = write(tmp_path / "a.csv", CSV.replace("text", "sentence"))
    data = Data(path=path, columns={"text": "sentence"}, splits=CUT)
    peeked = peek(data, ROLES)
    assert peeked is not None
    assert peeked.whole
    assert [len(rows) for rows in peeked.splits.values()] == [3, 1], "slices are followed"
    assert {split: rows[0] for split, rows in peeked.splits.items()} == {
        "train": {"text": "good", "label": 1},
        "eval": {"text": "awful", "label": 0},
    }
    assert peek(Data(path="some-user/some-dataset"), ROLES) is None
    with pytest.raises(UserError, match="Did you mean 'sentence'"):
        peek(Data(path=path, columns={"text": "sentense"}, splits=CUT), ROLES)
    latin = write(tmp_path / "b.csv", "text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        peek(Data(path=latin, splits=CUT), ROLES)


def test_a_column_is_read_without_python_objects() -> None:
    """A list of a million texts takes seconds and gigabytes; rows chosen by `select` must still be the right ones."""
    import pyarrow as pa
    from datasets import Dataset

    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "other": [1, 2, 3]})
    assert isinstance(column(dataset, "text"), pa.ChunkedArray)
    assert column(dataset.select([2, 0]), "text").to_pylist() == ["c", "a"]
