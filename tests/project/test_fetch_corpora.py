"""scripts/fetch_corpora.py: which rows go where, without fetching anything."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path
from types import ModuleType

import pytest

DATA = """  1 This software and database is being provided to you
00001740 {group:02d} n 02 dark_matter 0 stuff 0 001 @ 00001930 n 0000 | a hidden {number}; more of it; "an example"
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    module = importlib.import_module("fetch_corpora")
    monkeypatch.setattr(module, "TOPIC_ROWS", (12, 4))
    monkeypatch.setattr(module, "DEFINITION_ROWS", (12, 4))
    monkeypatch.setattr(module, "SENTENCES", (6, 2))
    return module


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_definition_is_read_without_its_examples_and_with_its_group(script: ModuleType) -> None:
    """An example names the word, so a model could read the group off it; a wrong number would shuffle the classes."""
    (noun,) = script.read_nouns(DATA.format(group=18, number=7))
    assert (noun.word, noun.group, noun.definition) == ("dark matter", "person", "a hidden 7; more of it")


def test_no_definition_is_on_both_sides(script: ModuleType) -> None:
    """A definition in both splits would be evaluated after it was trained on."""
    nouns = [script.Noun(f"word{index}", "act", f"definition {index}") for index in range(20)]
    for contents, column in ((script.topics(nouns), "definition"), (script.definitions(nouns), "word")):
        train, held_out = (read(text) for text in contents.values())
        assert (len(train), len(held_out)) == (12, 4)
        assert not {row[column] for row in train} & {row[column] for row in held_out}


def test_a_pair_says_whether_the_definition_is_the_words_own(script: ModuleType) -> None:
    """A definition drawn for `no` that is the word's own would be a wrong label; so would one from the other split."""
    nouns = [script.Noun(f"word{index}", "act", f"definition {index}") for index in range(20)]
    for text in script.definitions(nouns).values():
        rows = read(text)
        assert {row["fits"] for row in rows} == {"yes", "no"}
        words = {row["word"].removeprefix("word") for row in rows}
        for row in rows:
            own = row["definition"].removeprefix("definition ")
            assert (own == row["word"].removeprefix("word")) == (row["fits"] == "yes")
            assert own in words


def test_the_sentences_of_a_text_are_on_one_side(script: ModuleType) -> None:
    """The words of a text come back in it: held-out sentences of a text that was trained on would score too well."""
    texts = {f"ca{index:02d}": f"A{index}/at b/nn c/vbz ./.\n" * 3 for index in range(16)}
    train, held_out = ([json.loads(line) for line in text.splitlines()] for text in script.sentences(texts).values())
    assert (len(train), len(held_out)) == (6, 2)
    assert not {row["words"][0] for row in train} & {row["words"][0] for row in held_out}
    assert train[0]["parts"] == ["determiner", "noun", "verb", "punctuation"]


@pytest.mark.parametrize(
    ("tag", "part"),
    [
        ("nn-tl", "noun"),
        ("np$", "noun"),
        ("nrs", "noun"),
        ("ppss+bem", "pronoun"),
        ("wps", "pronoun"),
        ("*", "adverb"),
        ("ql", "adverb"),
        ("wdt", "determiner"),
        ("od", "adjective"),
        ("to", "particle"),
        ("``", "punctuation"),
        ("--", "punctuation"),
        ("fw-nn", "other"),
        ("nil", "other"),
    ],
)
def test_tags_of_the_corpus_are_named(script: ModuleType, tag: str, part: str) -> None:
    """The first pattern that fits counts: a new one placed too early would take over the tags of another class."""
    assert script.part_of_speech(tag) == part
