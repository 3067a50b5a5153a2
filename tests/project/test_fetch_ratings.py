"""scripts/fetch_ratings.py: which rows go where, without fetching anything."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("fetch_ratings")


def read(text: str) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in csv.DictReader(io.StringIO(text))]


def test_every_row_is_on_one_side_whatever_the_order(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence in both splits would be evaluated after it was trained on; one by position would change figures."""
    monkeypatch.setattr(script, "HELD_OUT", 7)
    rows = [(f"sentence {index // 2}", float(index), "tweet") for index in range(30)]
    train, held_out = (read(text) for text in script.split(rows))
    assert sorted((*train, *held_out)) == sorted((text, str(value), source) for text, value, source in rows)
    assert not {row[0] for row in train} & {row[0] for row in held_out}
    again = script.split(rows[::-1])
    assert [set(read(text)) for text in again] == [set(train), set(held_out)]


def test_movie_sentences_are_not_those_that_the_quickstart_holds_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both recipes evaluate on the same file: a sentence of it among the train rows would be seen twice."""
    quickstart = importlib.import_module("fetch_quickstart")
    for module, name, value in (
        (script, "HELD_OUT_MOVIES", 5),
        (script, "MOVIES_TO_TRAIN_ON", 6),
        (quickstart, "HELD_OUT", 5),
        (quickstart, "LABELLED", 2),
    ):
        monkeypatch.setattr(module, name, value)
    rows = [(f"sentence {index}", "negative" if index < 10 else "positive") for index in range(20)]
    held_out = {row[0] for row in read(quickstart.split(rows)[1])}
    ours = [row[0] for row in read(script.movies(rows))]
    assert len(ours) == 6
    assert not held_out & set(ours)
