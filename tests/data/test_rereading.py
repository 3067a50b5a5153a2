"""What a teacher with another tokenizer reads of what the student has written, and where the two are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data.test_token_bytes import byte_fallback, byte_level

from hf_distill.completions.sampling import Completion
from hf_distill.data.alignment import TwoTokenizers
from hf_distill.data.rereading import Rereading
from hf_distill.data.token_bytes import joined
from hf_distill.models.loading import open_tokenizer
from hf_distill.rows.tokens import TokenRows
from hf_distill.tasks.aligned_texts import mapping_of
from hf_distill.training.rollouts import with_completion


def two(student: Any, teacher: Any, **settings: Any) -> Rereading:
    ends = frozenset([student.eos_token_id]), frozenset([teacher.eos_token_id])
    return Rereading(TwoTokenizers(student, teacher, *ends), teacher.eos_token_id, **settings)


@pytest.fixture(scope="module")
def both() -> Rereading:
    return two(byte_level(), byte_fallback())


def written(reading: Rereading, text: str) -> list[int]:
    found: list[int] = reading.both.student(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("text", ["the the t", "thé", "北京 th", "👍🏽t", " th"])
def test_the_teacher_reads_the_bytes_that_the_student_wrote(text: str, both: Rereading) -> None:
    """A row after other bytes, or one that is off by one, teaches the token of another text."""
    # Byte by byte, as no tokenizer would split it: what was drawn is the truth.
    letters = [both.both.student.convert_tokens_to_ids(one) for one in both.both.student.tokenize(text)]
    ids = [*letters, both.both.student.eos_token_id]
    read = both(ids, 3)
    known, theirs = both.both.texts
    assert joined(theirs, read.ids[:-1]) == text.encode()
    compared = [(place, at - 3 + 1) for place, at in enumerate(read.at) if at >= 0]
    assert compared[-1] == (len(ids) - 1, len(read.ids) - 1)  # the ends, by their role
    for mine, other in compared:
        assert known[ids[mine]] == theirs[read.ids[other]]
        assert joined(known, ids[:mine]) == joined(theirs, read.ids[:other])


@pytest.mark.parametrize(("text", "kept"), [("th👍", 3), ("th北", 2), ("👍", 2)])
def test_a_character_that_was_cut_is_not_compared(text: str, kept: int, both: Rereading) -> None:
    """Read as U+FFFD, it is another text than the student's, and so are all tokens after it."""
    ids = written(both, text)
    start = len(written(both, text[:-1]))
    cut = [*ids[: start + kept], *written(both, " th"), both.both.student.eos_token_id]
    read = both(cut, 1)
    assert joined(both.both.texts[1], read.ids) == text[:-1].encode()
    assert [at >= 0 for at in read.at] == [True] * start + [False] * (len(cut) - start)


def test_what_cannot_be_read_is_not_compared(both: Rereading) -> None:
    """Without its prompt, or past what it can read, a teacher's rows are those of another text."""
    ids = written(both, "t h t")
    assert both(ids, 0).at == [-1] * len(ids)
    short = two(both.both.student, both.both.teacher, limit=4)(ids, 2)
    assert len(short.ids) == 2
    assert [at >= 0 for at in short.at] == [True, True] + [False] * (len(ids) - 2)


def test_no_space_is_put_before_what_the_teacher_reads(make_model: Any) -> None:
    """Some tokenizers begin every text with a space: after a prompt the teacher would read a text that nobody wrote."""
    teacher = open_tokenizer(str(make_model("llama-lm")))
    reading = two(byte_level(), teacher)
    read = reading(written(reading, " film"), 2)
    assert joined(reading.both.texts[1], read.ids) == b" film"


@pytest.mark.parametrize("same", [False, True])
def test_the_loss_by_hand(same: bool, both: Rereading) -> None:
    """Nothing else shows that a row of the teacher stands beside another one of the student."""
    reading = two(byte_level(), byte_level()) if same else both
    ids = [*written(reading, "thé th"), reading.both.student.eos_token_id]
    example = {
        "input_ids": [5, 6, 7],
        "labels": [-100] * 3,
        "prompt_length": 3,
        "teacher_input_ids": [5, 6],
        "teacher_prompt_length": 2,
    }
    made = with_completion(example, Completion(tuple(ids), ended=True), rereading=reading)
    names = ("input_ids", "labels", "teacher_input_ids", "aligned_at")
    batch = {name: torch.tensor([made[name]]) for name in names}
    sizes = [len(one) for one in reading.both.texts]
    torch.manual_seed(1)
    student, teacher = (
        torch.randn(1, len(made[name]), size, dtype=torch.float64)
        for name, size in zip(("input_ids", "teacher_input_ids"), sizes, strict=True)
    )
    layout = TokenRows(shift=True, classes=sizes[0], mapping=mapping_of(reading.both), rereading=reading)
    rows = layout.select(student, teacher, batch).at(1.0)
    assert isinstance(rows.teacher, torch.Tensor)
    q, p = rows.student.log_softmax(-1), rows.teacher.log_softmax(-1)
    found = float((q.exp() * (q - p)).sum())

    expected, count = 0.0, 0
    for place, at in enumerate(made["aligned_at"]):
        if at < 0:
            continue
        count += 1
        both_ = student[0, place - 1].softmax(-1), teacher[0, at].softmax(-1)
        sums: list[dict[bytes, float]] = [{}, {}]
        for side, (known, probabilities) in enumerate(zip(reading.both.vocabularies, both_, strict=True)):
            other = set(reading.both.vocabularies[1 - side])
            for text, one in zip(known, probabilities.tolist(), strict=True):
                key = text if text and text in other else b"rest of all"
                sums[side][key] = sums[side].get(key, 0.0) + one
        keys = set(sums[0])
        total = sum(sums[1].get(key, 0.0) for key in keys)
        expected += float(
            sum(
                sums[0][key] * (torch.tensor(sums[0][key]).log() - torch.tensor(sums[1][key] / total).log())
                for key in keys
                if key in sums[1]
            )
        )
    assert count == len(rows.student) == (len(ids) if same else count)
    assert float(layout.counts(batch)["row"]) == count
    assert found == pytest.approx(expected, rel=1e-5)
    if same:  # as with one tokenizer
        logs = student[0, 2:-1].log_softmax(-1), teacher[0, 1:-1].log_softmax(-1)
        assert found == pytest.approx(float((logs[0].exp() * (logs[0] - logs[1])).sum()), abs=1e-6)
