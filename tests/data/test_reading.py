"""Every row that is in a file is read: each form, on every road, against what csv, json and pyarrow say."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.data import check_data, load_splits, peek
from hf_distill.data.section import Data
from hf_distill.errors import UserError

CLASSIFY = {"text": True, "text_pair": False, "label": False}
WORDS = {"tokens": True, "tags": False}
ANSWER = {"question": True, "context": True, "answers": False}
ROWS = [("good", "joy"), ("null", "None"), ("NA", "joy"), ('a "quoted" one', "nan"), ("tab\there", "None")]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def table(rows: list[tuple[str, Any]], **dialect: Any) -> str:
    """Return rows as Python's own csv writes them."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", **dialect).writerows([("text", "label"), *rows])
    return file.getvalue()


def read(path: Any, roles: dict[str, bool] = CLASSIFY, **data: Any) -> list[tuple[Any, ...]]:
    """Return the rows of the train split; a path alone is both splits."""
    data = {"path": path if isinstance(path, dict) else {"train": path, "eval": path}, **data}
    train = load_splits(Data(**data), roles)["train"]
    return list(zip(*(train[role][:] for role in train.column_names), strict=True))


def refused(path: Any, roles: dict[str, bool] = CLASSIFY, **data: Any) -> str:
    """Return the line that a run refuses the data with, which is also that of a check."""
    lines = []
    for load in (load_splits, peek):
        with pytest.raises(UserError) as caught:
            load(Data(path=path if isinstance(path, dict) else {"train": path, "eval": path}, **data), roles)
        lines.append(str(caught.value))
    assert lines[0] == lines[1], "--check says what the run says"
    assert "\n" not in lines[0]
    return lines[0]


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_distill")]


# ---- Roads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "csv.gz", "JSONL", "zip"])
def test_every_road_to_a_file_gives_the_same_rows(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class called "None" was a class in named files and a missing label in the same files as a directory."""
    content: dict[str, str | bytes] = {
        "csv": table(ROWS),
        "tsv": table(ROWS, delimiter="\t"),
        "jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS),
    }
    content |= {"JSONL": content["jsonl"], "csv.gz": gzip.compress(table(ROWS).encode())}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inside/rows.tsv", content["tsv"])
        archive.writestr("__MACOSX/inside/._rows.tsv", b"\0\0")
    content["zip"] = packed.getvalue()
    folder = tmp_path / "some_rows"
    for split in ("train", "validation"):
        write(folder / f"{split}.{form}", content[form])
    write(folder / "README.md", "Made by hand.\n")
    write(folder / "__init__.py", "")
    write(tmp_path / "card" / "README.md", f"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n"
          f"    path: x.{form}\n  - split: validation\n    path: x.{form}\n---\n")  # fmt: skip
    write(tmp_path / "card" / f"x.{form}", content[form])
    monkeypatch.syspath_prepend(str(tmp_path))
    one = str(folder / f"train.{form}")
    roads: dict[str, Any] = {
        "named": {"train": one, "validation": one},
        "a pattern": {"train": str(folder / "tr*"), "validation": one},
        "a directory": str(folder),
        "a package": "package:some_rows",
        "a data card": str(tmp_path / "card"),
    }
    if form.isupper():  # which a data card cannot name
        del roads["a data card"]
    for road, path in roads.items():
        splits = load_splits(Data(path=path), CLASSIFY)
        for split in splits.values():
            assert list(zip(split["text"][:], split["label"][:], strict=True)) == ROWS, road


@pytest.mark.parametrize("name", ["[2024] data", "a #1 50%?*", "spaces  and (1)", "ünïcode", "a::b", "{x}"])
def test_a_path_that_is_there_is_no_pattern(name: str, tmp_path: Path) -> None:
    """`datasets` takes brackets for a pattern and finds nothing, or other files than the one that was named."""
    write(tmp_path / name / "train [1].csv", table(ROWS))
    write(tmp_path / name / "validation.csv", table(ROWS[:1]))
    write(tmp_path / "2" / "train 1.csv", table(ROWS[:2]))  # what the brackets would match
    assert read(str(tmp_path / name / "train [1].csv")) == ROWS
    whole = load_splits(Data(path=str(tmp_path / name)), CLASSIFY)["train"]
    assert list(zip(whole["text"][:], whole["label"][:], strict=True)) == ROWS


def test_a_pattern_still_finds_all_files(tmp_path: Path) -> None:
    """A path with brackets that is not there is a pattern."""
    for number in range(3):
        write(tmp_path / f"part{number}.csv", table([(f"t{number}", "a")]))
    assert read(str(tmp_path / "part[12].csv")) == [("t1", "a"), ("t2", "a")]


def test_directories_with_splits_in_folders_and_kinds_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`datasets` reads the commonest kind of file in a directory and leaves out the others without a word."""
    write(tmp_path / "a" / "data" / "train" / "0.csv", table(ROWS[:2]))
    write(tmp_path / "a" / "data" / "train" / "1.csv", table(ROWS[2:]))
    write(tmp_path / "a" / "data" / "test" / "0.jsonl", '{"text": "x", "label": "joy"}\n')
    for name in ("NOTES.md", "LICENSE", "more.md", ".hidden.csv"):
        write(tmp_path / "a" / name, "not data")
    splits = load_splits(Data(path=str(tmp_path / "a"), splits={"eval": "test"}), CLASSIFY)
    assert list(zip(splits["train"]["text"][:], splits["train"]["label"][:], strict=True)) == ROWS
    assert splits["eval"]["text"][:] == ["x"]
    assert not notes(caplog)
    write(tmp_path / "b" / "train.csv", table(ROWS))
    write(tmp_path / "b" / "test.csv", table(ROWS))
    write(tmp_path / "b" / "extra.csv", table(ROWS))
    with caplog.at_level(logging.WARNING):
        load_splits(Data(path=str(tmp_path / "b"), splits={"eval": "test"}), CLASSIFY)
    assert any("extra.csv" in line and "1 of the 3" in line for line in notes(caplog))


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    """The cache of `datasets` looks at the time of a file alone, which copying and version control set back."""
    path = write(tmp_path / "a.csv", "text,label\ngood,1\n")
    assert read(path) == [("good", 1)]
    before = os.stat(path)
    write(tmp_path / "a.csv", "text,label\nevil,0\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path) == [("evil", 0)]
    write(tmp_path / "a.csv", "text,label\nevil,x\n")
    assert read(path, columns={"text": 0, "label": 1}) == [("text", "label"), ("evil", "x")], "options count too"


# ---- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("text;label\ngood, really;1\nbad;0\n", [("good, really", 1), ("bad", 0)]),
        ("text|label\ngood|1\n", [("good", 1)]),
        ('"text";"label"\n"good, ""really""";"1"\n', [('good, "really"', 1)]),
        ("text,label\r\ngood,1\r\nbad,0\r\n", [("good", 1), ("bad", 0)]),
        ("text,label\rgood,1\r", [("good", 1)]),
        ("text,label\ngood,1\nbad,0", [("good", 1), ("bad", 0)]),
        ("\n\ntext,label\n\ngood,1\n\n\nbad,0\n\n", [("good", 1), ("bad", 0)]),
        ("text,label,\ngood,1,\nbad,0,\n", [("good", 1), ("bad", 0)]),
        ('text,label\n"two\nlines, yes",1\n"a ""b"" c",0\n', [("two\nlines, yes", 1), ('a "b" c', 0)]),
        ('text,label\n5" disk,1\n', [('5" disk', 1)]),
        ("text,label\na,1\nb,\nc,0\n", [("a", 1), ("b", None), ("c", 0)]),
        ("text,label\na,01\nb,02\n", [("a", "01"), ("b", "02")]),
        ("text,label\na,1\nb,0.5\nc,-2e3\nd, +1\n", [("a", 1.0), ("b", 0.5), ("c", -2000.0), ("d", 1.0)]),
        ("text,label\na,1\nb,None\n", [("a", "1"), ("b", "None")]),
        ("text,label\na,0\n" + "b,1\n" * 12_000 + "c,x\n", [("a", "0"), *[("b", "1")] * 12_000, ("c", "x")]),
        ("text,label\na,12345678901234567890\n", [("a", "12345678901234567890")]),
        ("text,label\na,2024-01-01\n", [("a", "2024-01-01")]),
        (f"text,label\n{'x' * 300_000},1\n", [("x" * 300_000, 1)]),
        ('text\ngood\n""\nbad\n', [("good",), (None,), ("bad",)]),
        (b"\xef\xbb\xbftext,label\ngood,1\n", [("good", 1)]),
        ("text,label\ngöod,1\n".encode("utf-16"), [("göod", 1)]),
        ("text,label\ngöod,1\n".encode("utf-32"), [("göod", 1)]),
    ],
)
def test_csv_as_people_have_it(content: str | bytes, rows: list[Any], tmp_path: Path) -> None:
    """pandas reads numbers with a gap as floats, guesses types block by block, and drops what it takes for missing."""
    assert read(write(tmp_path / "a.csv", content)) == rows


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('text,label\n"good,1\nbad,0\n', "opens a text in line 2 is never closed"),
        ('text,label\na,1\n"b"c,0\n', "line 3 goes on after its closing quotation mark"),
        ('text,label\n"he said \\"no\\"",1\n', "line 2 goes on after its closing"),
        ("text,label\ngood\nbad,0\n", "line 2 has 1 field, the lines above it 2"),
        ("text,label\n1,good,0\n2,bad,1\n", "line 2 has 3 fields"),
        ("text,label\ngo\0od,1\n", "line 2 has NUL bytes"),
        ("text,label\ngood,1\n".encode("utf-16-le"), "UTF-16"),
        ("text,label\na,1\ncafé,0\n".encode("latin-1"), "line 3 is not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read_as_it_stands(content: str | bytes, says: str, tmp_path: Path) -> None:
    """pandas glues lines on stray quotes, fills short rows with gaps and takes a first column too many for an index."""
    assert says in refused(write(tmp_path / "a.csv", content))


def test_lines_that_look_glued_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two stray marks make a legal text of two lines: nobody can know, so it is said, also by the second run."""
    path = write(tmp_path / "a.csv", 'text,label\n"good,1\nbad",0\nfine,1\n')
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(read(path)) == 2
        assert any("lines 2 to 3" in line for line in notes(caplog))


def test_files_of_one_split_agree_on_types(tmp_path: Path) -> None:
    """A part whose texts all look like numbers would be refused, or turned into floats that the file does not hold."""
    one, two = write(tmp_path / "a.csv", "text,label\n12,1\n"), write(tmp_path / "b.csv", "label,text\n0.5,good\n")
    three = write(tmp_path / "c.jsonl", '{"label": 2, "text": "x"}\n')
    assert read({"train": [one, two, three], "eval": one}) == [("12", 1.0), ("good", 0.5), ("x", 2.0)]


def test_columns_by_number(tmp_path: Path) -> None:
    """A file without a header loses its first example, whose cells become the names."""
    path = write(tmp_path / "a.csv", "1,good\n0,bad\n")
    assert read(path, columns={"text": 1, "label": 0}) == [("good", 1), ("bad", 0)]
    assert read(path, columns={"text": -1}) == [("good",), ("bad",)]
    assert "2 columns" in refused(path, columns={"text": 2})
    named = write(tmp_path / "b.csv", "text,label\ngood,1\nbad,0\n")
    assert "looks like a header" in refused(named, columns={"text": 0, "label": 1})
    lines = write(tmp_path / "c.jsonl", '{"text": "a"}\n')
    assert "numbers only in CoNLL" in refused(lines, columns={"text": 0})


# ---- TSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [(0,), (0, 2), (0, 1, 2), (3,)])
@pytest.mark.parametrize("mark", ['"{}', '{}"', '"{}" and "more"'])
def test_stray_marks_in_tsv_glue_no_lines(marked: tuple[int, ...], mark: str, tmp_path: Path) -> None:
    """SST-2, QQP and QNLI have texts that begin with a quotation mark: 18 of 48 rows were lost without a word."""
    rows = [(mark.format(f"t{i}") if i in marked else f"t{i}", i % 2) for i in range(4)]
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    assert read(path) == rows


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("rows", [ROWS, [("a", "b"), ('say "no"', "c")], [("two\nlines", "x"), ("one", "y")]])
def test_tsv_that_follows_the_rule_of_csv(quoting: int, rows: list[Any], tmp_path: Path) -> None:
    """pandas and spreadsheets quote TSV: read as it stands, marks and line ends would become part of the data."""
    assert read(write(tmp_path / "a.tsv", table(rows, delimiter="\t", quoting=quoting))) == rows


def test_a_tsv_that_could_be_either_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text between marks that needs none: the marks are kept, and the user hears of it."""
    with caplog.at_level(logging.WARNING):
        assert read(write(tmp_path / "a.tsv", 'text\tlabel\n"good"\t1\nbad\t0\n')) == [('"good"', 1), ("bad", 0)]
    assert any("quotation marks" in line and "line 2" in line for line in notes(caplog))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        lines = read(write(tmp_path / "d.tsv", 'text\tlabel\n"good\t1\nbad"\t0\nfine\t1\n'))
    assert lines == [('"good', 1), ('bad"', 0), ("fine", 1)]
    assert any("every line is read as a row, 3 in all" in line and "has 2 rows" in line for line in notes(caplog))
    ruled = write(tmp_path / "e.tsv", table([("\t\n", "y"), ("x", "z")], delimiter="\t", quoting=csv.QUOTE_ALL))
    assert read(ruled) == [("\t\n", "y"), ("x", "z")]
    assert "cannot tell" in refused(write(tmp_path / "b.tsv", 'text\n"good\nbad"\n'))
    assert "line 3 has 3 fields" in refused(write(tmp_path / "c.tsv", "text\tlabel\na\t1\nb\t0\tx\n"))


# ---- JSON ------------------------------------------------------------------------------------------------------------

RECORDS = [{"text": "a", "label": 1}, {"text": "2024-01-01", "label": 0}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "".join(json.dumps(one) + "\n\n" for one in RECORDS)),
        ("a.json", "".join(json.dumps(one) + "\n" for one in RECORDS)),
        ("a.json", json.dumps(RECORDS)),
        ("a.jsonl", json.dumps(RECORDS, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": RECORDS})),
        ("a.json", json.dumps({"rows": RECORDS}, indent=1)),
        ("a.json", json.dumps({"text": ["a", "2024-01-01"], "label": [1, 0]})),
        ("a.json", json.dumps({"text": {"0": "a", "1": "2024-01-01"}, "label": {"0": 1, "1": 0}})),
        ("a.ndjson", json.dumps(RECORDS[0]) + "\n" + json.dumps(RECORDS[1])),
        ("a.jsonl", ("\n".join(map(json.dumps, RECORDS))).encode("utf-16")),
    ],
)
def test_json_in_its_forms(name: str, content: str | bytes, tmp_path: Path) -> None:
    """A text that looks like a date must stay text, and a blank line is not a row."""
    assert read(write(tmp_path / name, content)) == [("a", 1), ("2024-01-01", 0)]


def test_json_lists_of_texts(tmp_path: Path) -> None:
    """A list of texts is the plainest form of an unlabelled set."""
    assert read(write(tmp_path / "a.json", '["a", "b"]')) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n3\n', "line 2 holds a number"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2: 'text' has half of a character"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "a"}]}', "under 'train', 'test'"),
        ("a.json", '{"text": ["a", "b"], "label": [1]}', "2 under 'text', 1 under 'label'"),
        ("a.json", "[[1, 2]]", "row 0 (counted from 0) holds a list"),
        ("a.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_refused(name: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    """Each was a traceback or a message about Arrow's columns."""
    assert says in refused(write(tmp_path / name, content))


def test_types_are_those_of_all_rows(tmp_path: Path) -> None:
    """Types from the first block alone refuse, or lose, what comes 12,000 rows later."""
    many = '{"text": "a", "label": 1}\n' * 12_000
    assert read(write(tmp_path / "a.jsonl", many + '{"text": "b", "label": 0.5}\n'))[-1] == ("b", 0.5)
    late = write(tmp_path / "b.jsonl", '{"text": "a"}\n' * 12_000 + '{"text": "b", "label": "x"}\n')
    assert Counter(label for _, label in read(late)) == {None: 12_000, "x": 1}
    mixed = write(tmp_path / "c.jsonl", many + '{"text": "b", "label": "x"}\n')
    assert Counter(label for _, label in read(mixed)) == {1: 12_000, "x": 1}


def test_messages_keep_their_own_keys(tmp_path: Path) -> None:
    """Arrow fills mappings with different keys up with None, which a chat template would print."""
    one = [{"role": "user", "content": "x"}, {"role": "tool", "content": "y", "name": "z"}]
    other = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    lines = "".join(json.dumps({"messages": some}) + "\n" for some in (one, other))
    assert read(write(tmp_path / "a.jsonl", lines), {"messages": True}) == [(one,), (other,)]


def test_squad_s_own_json(tmp_path: Path) -> None:
    """What SQuAD's site offers for download is nested; version 2 has questions without an answer."""
    questions = [
        {"id": "1", "question": "who?", "answers": [{"text": "john", "answer_start": 0}], "is_impossible": False},
        {"id": "2", "question": "why?", "answers": [], "plausible_answers": [{"text": "x"}], "is_impossible": True},
    ]
    document = {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": "john works", "qas": questions}]}],
    }
    for indent in (None, 1):
        path = write(tmp_path / f"{indent}.json", json.dumps(document, indent=indent))
        assert read(path, ANSWER) == [
            ("who?", "john works", {"text": ["john"], "answer_start": [0]}),
            ("why?", "john works", {"text": [], "answer_start": []}),
        ]


# ---- CoNLL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.txt", "-DOCSTART- -X- -X- O\n\njohn NNP B-NP B-PER\nworks VBZ B-VP O\n\n\n\nmary NNP B-NP B-PER", {}),
        ("a.conll", "B-PER john\r\nO works\r\n\r\nB-PER mary\r\n", {"tokens": 1, "tags": 0}),
        ("a.iob", "# id 1\njohn\tB-PER\nworks\tO\n\n# id 2\nmary\tB-PER\n\n", {"tokens": 0, "tags": -1}),
        ("a.tsv", "john\tx\tB-PER\nworks\ty\tO\n \nmary\t\tB-PER\n", {}),
        (
            "a.conllu",
            "# text = john works\n1-2\tjw\t_\n1\tjohn\tB-PER\n2\tworks\tO\n2.1\te\tO\n\n1\tmary\tB-PER\n",
            {"tokens": 1, "tags": 2},
        ),
    ],
)
def test_conll_s_columns(name: str, content: str, columns: dict[str, int], tmp_path: Path) -> None:
    """Read as plain text or as a table, a sentence would be a word."""
    path = write(tmp_path / name, content)
    assert read(path, WORDS, columns=columns) == [(["john", "works"], ["B-PER", "O"]), (["mary"], ["B-PER"])]


def test_a_hash_may_be_a_word_and_a_short_line_is_a_mistake(tmp_path: Path) -> None:
    """Tweets have `#` and quotation marks as words; a line without its tag would shift tags to other words."""
    path = write(tmp_path / "a.tsv", '@x\tO\n#\tO\n"\tO\n')
    assert read(path, WORDS) == [(["@x", "#", '"'], ["O", "O", "O"])]
    assert "line 2 has 1 column, the others have 2" in refused(write(tmp_path / "a.conll", "a O\nb\nc O\n"), WORDS)


def test_a_comment_with_as_many_columns_as_a_word(tmp_path: Path) -> None:
    """MultiCoNER's comments have four columns, as its words have: each became a word `#` with a class of its own."""
    content = "# id 5239d808 domain=en\njohn _ _ B-PER\n# _ _ O\nworks _ _ O\n\n# id 7c5b domain=en\nmary _ _ B-PER\n"
    words = [(["john", "#", "works"], ["B-PER", "O", "O"]), (["mary"], ["B-PER"])]
    assert read(write(tmp_path / "a.conll", content), WORDS) == words
    # The Wall Street Journal has `#` for pounds, with a tag of its own.
    path = write(tmp_path / "b.conll", "for IN\n# #\n2 CD\n\n# #\n3 CD\n")
    assert read(path, WORDS) == [(["for", "#", "2"], ["IN", "#", "CD"]), (["#", "3"], ["#", "CD"])]


# ---- Tables ----------------------------------------------------------------------------------------------------------


def test_arrow_s_types(tmp_path: Path) -> None:
    """Polars writes views, pandas categories, databases decimals: `datasets` knows the first not at all."""
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["good", None, "bad"]
    columns = {
        "views": pa.array(texts, pa.string_view()),
        "large": pa.array(texts, pa.large_string()),
        "categories": pa.array(texts).dictionary_encode(),
    }
    for name, column in columns.items():
        pq.write_table(
            pa.table({"text": column, "label": pa.array([1, 0, 1], pa.int8())}), tmp_path / f"{name}.parquet"
        )
        assert read(str(tmp_path / f"{name}.parquet")) == list(zip(texts, [1, 0, 1], strict=True)), name
    numbers = [decimal.Decimal("0.25"), decimal.Decimal("1.50")]
    whole = pa.table({"text": ["a", "b"], "label": pa.array(numbers, pa.decimal128(5, 2))})
    pq.write_table(whole, tmp_path / "d.parquet")
    assert read(str(tmp_path / "d.parquet")) == [("a", 0.25), ("b", 1.5)]
    with pa.OSFile(str(tmp_path / "f.feather"), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)
    assert read(str(tmp_path / "f.feather")) == [("a", 0.25), ("b", 1.5)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xlsx", b"PK", "save it as CSV"),
        ("a.tar", b"x", "unpack it"),
        ("a.parquet.gz", b"x", "Unpack it"),
        ("a.csv.gz", gzip.compress(b"text,label\n" + b"a,1\n" * 5000, mtime=0)[:-20], "cut off or damaged"),
        ("a.csv.gz", b"text,label\n", "cut off or damaged"),
        ("a.zip", b"text,label\n", "cannot unpack"),
        ("a" * 300 + ".csv", b"", "255"),
    ],
)
def test_other_files_are_told_with_the_way_out(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """Each was a traceback, or a list of endings."""
    path = str(tmp_path / name) if not content else write(tmp_path / name, content)
    assert says in refused(path)


def test_an_archive_of_several_splits(tmp_path: Path) -> None:
    """An archive as one split would train on the test rows that lie in it."""
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("train.csv", table(ROWS))
        archive.writestr("test.csv", table(ROWS[:1]))
    path = str(tmp_path / "both.zip")
    splits = load_splits(Data(path=path, splits={"eval": "test"}), CLASSIFY)
    assert [len(split) for split in splits.values()] == [len(ROWS), 1]
    assert "several splits (test, train)" in refused(path)


# ---- A held-out eval split -------------------------------------------------------------------------------------------


def labelled(count: int, classes: int = 3, repeat: int = 4) -> list[tuple[str, Any]]:
    """Return rows of uneven classes in which every text comes several times."""
    return [
        (f"text {i // repeat}", f"class {(i // repeat) % classes if (i // repeat) % 7 else 0}") for i in range(count)
    ]


@pytest.mark.parametrize("size", [0.1, 0.25, 60, 1])
def test_a_part_of_train_is_held_out(size: float, tmp_path: Path) -> None:
    """An eval text that is also in train, or a class that eval lacks, makes the report say what is not so."""
    rows = labelled(400)
    path = write(tmp_path / "a.csv", table(rows))
    splits = load_splits(Data(path={"train": path}, splits={"eval": size}), CLASSIFY)
    train, held = ([*zip(split["text"][:], split["label"][:], strict=True)] for split in splits.values())
    wanted = round(size * len(rows)) if size < 1 else size
    assert Counter(train) + Counter(held) == Counter(rows)
    assert not {text for text, _ in train} & {text for text, _ in held}
    if size != 1:  # four rows have each text
        assert abs(len(held) - wanted) <= 3 * 3
        share = {label: count / len(rows) for label, count in Counter(label for _, label in rows).items()}
        found = Counter(label for _, label in held)
        assert all(abs(found[label] - part * len(held)) <= 8 for label, part in share.items())
        assert set(found) == set(share)


def test_what_is_held_out_depends_on_the_rows_alone(tmp_path: Path) -> None:
    """Another order of the file, another process or seed must not turn eval texts into train texts."""
    rows = labelled(200)
    held = []
    for name, some in (("a", rows), ("b", rows[::-1])):
        path = write(tmp_path / f"{name}.csv", table(some))
        splits = load_splits(Data(path=path, splits={"eval": 0.2}), CLASSIFY)
        held.append(Counter(splits["eval"]["text"][:]))
    assert held[0] == held[1]


def test_sizes_that_cannot_be_held_out(tmp_path: Path) -> None:
    """Told before anything is read, where the size alone tells."""
    path = write(tmp_path / "a.csv", table(labelled(8, repeat=8)))
    for size in (0, -1, 1.5, 2.0):
        with pytest.raises(UserError, match="cannot hold out") as caught:
            check_data(Data(path=path, splits={"eval": size}), CLASSIFY)
        assert caught.value.key == "splits.eval"
    with pytest.raises(UserError, match="none would be left"):
        load_splits(Data(path=path, splits={"eval": 8}), CLASSIFY)
    with pytest.raises(UserError, match="same 'text'"):
        load_splits(Data(path=path, splits={"eval": 0.5}), CLASSIFY)
    with pytest.raises(UserError, match="Only eval"):
        check_data(Data(path=path, splits={"train": 0.9, "eval": "train"}), CLASSIFY)


def test_labels_of_other_kinds_are_cut_too(tmp_path: Path) -> None:
    """Scores are no classes, and a question's context decides its side."""
    path = write(tmp_path / "a.csv", table([(f"t{i}", i / 7) for i in range(50)]))
    splits = load_splits(Data(path=path, splits={"eval": 0.2}), CLASSIFY)
    assert [len(split) for split in splits.values()] == [40, 10]
    records = [{"question": f"q{i}", "context": f"c{i // 5}"} for i in range(50)]
    path = write(tmp_path / "b.jsonl", "".join(json.dumps(one) + "\n" for one in records))
    splits = load_splits(Data(path=path, splits={"eval": 0.2}), ANSWER)
    assert not set(splits["train"]["context"][:]) & set(splits["eval"]["context"][:])
    lists = [{"text": f"t{i}", "label": [i % 2, 3]} for i in range(20)]
    path = write(tmp_path / "c.jsonl", "".join(json.dumps(one) + "\n" for one in lists))
    assert len(load_splits(Data(path=path, splits={"eval": 4}), CLASSIFY)["eval"]) == 4


def test_a_run_holds_out_and_says_so(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The number stays in the recipe that is written, so that the same command goes on with the same rows."""
    path = write(tmp_path / "a.csv", table([(f"good {i}" if i % 2 else f"bad {i}", i % 2) for i in range(40)]))
    data = {"path": {"train": path}, "splits": {"train": "train", "eval": 0.25}}
    recipe = write_recipe(data=data, training={"max_steps": 2, "output_dir": str(tmp_path / "out")})
    report = run(recipe)
    assert report.eval_rows == 10
    assert "eval: 0.25" in (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    held = [
        load_splits(load_recipe(one).data, CLASSIFY)["eval"]["text"][:]
        for one in (recipe, tmp_path / "out" / "recipe.yaml")
    ]
    assert held[0] == held[1]
