"""scripts/group_by_length.py: every row keeps its cells and gets its group."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from hf_distill.errors import UserError


def test_rows_get_their_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that goes to another row, or a cell cut at its comma, would be a wrong report on real data."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    script = importlib.import_module("group_by_length")
    source = tmp_path / "train.csv"
    rows = [("dull, but short", "negative"), ("word " * 26, "positive"), ('"quoted"\n' + "word " * 10, "positive")]
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), *rows])
    script.group_by_length([source], tmp_path / "out")
    with (tmp_path / "out" / "train.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [
        ["sentence", "label", "length"],
        *([*row, group] for row, group in zip(rows, ("short", "long", "medium"), strict=True)),
    ]
    with pytest.raises(UserError, match="has a column 'length' already"):
        script.group_by_length([tmp_path / "out" / "train.csv"], tmp_path / "again")
    with pytest.raises(UserError, match="no column 'text'"):
        script.group_by_length([source], tmp_path / "again", column="text")
    assert not (tmp_path / "again").exists()
