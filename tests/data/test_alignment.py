"""Tokens of two tokenizers that stand for the same text: rows that are compared, and those that must not be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from data.test_token_bytes import byte_fallback, byte_level

from hf_distill.data.alignment import TwoTokenizers, whole
from hf_distill.data.token_bytes import is_space, joined


@pytest.fixture(scope="module")
def both() -> TwoTokenizers:
    student, teacher = byte_level(), byte_fallback()
    return TwoTokenizers(student, teacher, frozenset([student.eos_token_id]), frozenset([teacher.eos_token_id]))


def read(both: TwoTokenizers, text: str, before: str = "") -> tuple[list[int], list[int], Any]:
    """Return the tokens of a text with its end, the teacher's after some others; and how they are aligned."""
    ours = [*both.student(text, add_special_tokens=False)["input_ids"], both.student.eos_token_id]
    first = both.teacher(before, add_special_tokens=False)["input_ids"] if before else []
    theirs = [*first, *both.teacher(text, add_special_tokens=False)["input_ids"], both.teacher.eos_token_id]
    made = both.align(ours, theirs, [(0, len(ours))], [(len(first), len(theirs))])
    return ours, theirs, made


@pytest.mark.parametrize("text", ["the the t", "thé", "北京 th", "👍🏽t", "e\u0301t", "a\n\n  b", "\ufffdth"])
def test_compared_rows_predict_the_same_text(text: str, both: TwoTokenizers) -> None:
    """A row of another text teaches the wrong token, in the scripts that only few read in the logs."""
    ours, theirs, made = read(both, text, "ht ")
    known, their_known = both.texts
    compared = [place for place, at in enumerate(made.at) if at >= 0]
    assert compared
    start = len(both.teacher("ht ", add_special_tokens=False)["input_ids"])
    for place in compared:
        at = made.at[place]
        assert known[ours[place]] == their_known[theirs[at + 1]]  # the tokens that both predict
        before, their_before = joined(known, ours[:place]), joined(their_known, theirs[start : at + 1])
        assert before == their_before
    assert made.at[-1] == len(theirs) - 2  # the ends, whatever they are called
    assert made.at[0] == -1  # nothing predicts the first token


def test_tokens_that_are_split_otherwise_are_spans(both: TwoTokenizers) -> None:
    """`é` is two tokens here and one there: as a row, half a character would be compared with a whole one."""
    ours, theirs, made = read(both, "the é")
    assert [both.student.convert_ids_to_tokens(one) for one in ours[2:5]] == ["Ġ", "Ã", "©"]
    assert made.at[3:5] == [-1, -1]
    assert made.span[3] == made.span[4] == made.their_span[theirs.index(both.teacher.convert_tokens_to_ids("é"))]


def test_a_text_that_differs_is_aligned_up_to_there(both: TwoTokenizers) -> None:
    """A character that was cut is written as U+FFFD: all rows after it are those of another text."""
    ours = both.student("tht", add_special_tokens=False)["input_ids"]
    cut = [*ours, *both.student("👍", add_special_tokens=False)["input_ids"][:2]]
    theirs = both.teacher("tht\ufffd", add_special_tokens=False)["input_ids"]
    made = both.align(cut, theirs, [(0, len(cut))], [(0, len(theirs))])
    assert made.at == [-1, 0, -1, -1]
    assert made.span[-2:] == [-1, -1]


def test_white_space_that_a_template_removes(both: TwoTokenizers) -> None:
    """A template that strips what the assistant says moves all ends by one: not a single row would be compared."""
    ours = both.student(" t tt", add_special_tokens=False)["input_ids"]
    theirs = (
        both.teacher("ht tt", add_special_tokens=False)["input_ids"][:1]
        + both.teacher("t tt", add_special_tokens=False)["input_ids"]
    )
    made = both.align(ours, theirs, [(0, len(ours))], [(1, len(theirs))])
    assert [both.student.convert_ids_to_tokens(one) for one in ours] == ["Ġt", "Ġt", "t"]
    assert made.at[0] == -1  # `Ġt` is not `t`
    assert all(at >= 0 for at in made.at[1:])


def test_special_tokens_are_no_text(both: TwoTokenizers) -> None:
    """A start of text before one model's tokens moved all of its ends, or was compared with a word."""
    assert whole(both.texts[0], [both.student.eos_token_id, 5, 6], both.student.all_special_ids) == [(1, 3)]
    ours, theirs = both.vocabularies
    assert ours[both.student.eos_token_id] == theirs[both.teacher.eos_token_id]
    assert theirs[both.teacher.unk_token_id] not in ours


def test_rows_by_prefix_begin_together(both: TwoTokenizers) -> None:
    """A row inside of a span predicts other bytes; a row of white space alone broke the code that students wrote."""
    prefix = replace(both, prefix=True)
    for text in ("the é th", "th\n\n  tht", "北京 th"):
        ours, theirs, made = read(prefix, text)
        known, their_known = both.texts
        compared = [place for place, at in enumerate(made.at) if at >= 0]
        assert set(compared) >= {
            place for place, at in enumerate(read(both, text)[2].at) if at >= 0 and not is_space(known[ours[place]])
        }
        for place in compared:
            at = made.at[place]
            assert joined(known, ours[:place]) == joined(their_known, theirs[: at + 1])
            assert not is_space(known[ours[place]])
            assert not is_space(their_known[theirs[at + 1]])
        firsts = {group: place for place, group in reversed([*enumerate(made.span)]) if group >= 0}
        assert set(compared) <= set(firsts.values())
    ours, theirs, made = read(prefix, "théth")
    assert made.at[1:3] == [0, -1]  # the first half of the character, whose row is that of the whole one
