"""The script that hides labels: which rows keep theirs, and that no row is in both files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from runs import REPO

from hf_distill.errors import UserError


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import hide_labels

    return hide_labels


def test_every_row_is_in_one_file(script: Any, tmp_path: Path) -> None:
    """A sorted file cut in two would have one class on each side; a row on both sides is private and public."""
    source = tmp_path / "all.csv"
    rows = [(f'text {at}, "quoted"\nand more', ("no", "yes")[at // 50]) for at in range(100)]
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    script.hide_labels(source, 40, tmp_path / "out")
    found = {}
    for name in ("labelled", "unlabelled"):
        with (tmp_path / "out" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            found[name] = list(csv.reader(file))
    assert (found["labelled"][0], found["unlabelled"][0]) == (["text", "label"], ["text"])
    labelled, unlabelled = found["labelled"][1:], found["unlabelled"][1:]
    assert sorted([text for text, _ in labelled] + [text for (text,) in unlabelled]) == sorted(text for text, _ in rows)
    assert set(map(tuple, labelled)) <= set(rows)
    assert 10 < sum(label == "yes" for _, label in labelled) < 30
    before = (tmp_path / "out" / "labelled.csv").read_bytes()
    script.hide_labels(source, 40, tmp_path / "out")
    assert (tmp_path / "out" / "labelled.csv").read_bytes() == before
    with pytest.raises(UserError, match="between 1 and 99"):
        script.hide_labels(source, 100, tmp_path / "out")
    with pytest.raises(UserError, match="no column 'tag'"):
        script.hide_labels(source, 10, tmp_path / "out", label="tag")
