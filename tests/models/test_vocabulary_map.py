"""Two vocabularies as one: the same text under any number, duplicates summed, the rest one class."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from invariants.cases import (
    VOCABULARY,
    Collator,
    NotingTrainer,
    Record,
    arguments,
    largest_difference,
    make_models,
    make_rows,
    split,
    train,
)

from hf_distill.models.target_rows import SparseRows
from hf_distill.models.vocabulary_map import VocabularyMap
from hf_distill.objectives import (
    Attention,
    JensenShannon,
    KLDivergence,
    Labels,
    NearestTokens,
    Objective,
    ReverseKL,
    UniversalLogit,
)
from hf_distill.rows.base import Rows
from hf_distill.rows.tokens import TokenRows

OURS = [b"a", b"b", b"a", None, b"only ours", b"c"]
THEIRS = [b"c", b"b", b"only theirs", b"a", b"b", None, b"b", b"more"]


def known(student: list[bytes | None], teacher: list[bytes | None]) -> VocabularyMap:
    made = VocabularyMap.of(student, teacher)
    assert made is not None
    return made


def by_hand(logits: Any, vocabulary: list[bytes | None], temperature: float) -> dict[bytes, float]:
    """Return the probability of each text that both have, in plain Python; the rest under an empty name."""
    weights = [math.exp(one / temperature) for one in logits]
    shared = {one for one in OURS if one} & {one for one in THEIRS if one}
    found = dict.fromkeys([*sorted(shared), b""], 0.0)
    for text, weight in zip(vocabulary, weights, strict=True):
        found[text if text in shared else b""] += weight / sum(weights)  # type: ignore[index]
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_row_by_hand(temperature: float) -> None:
    """Softened after it was summed, or with one of two equal tokens lost, the teacher's distribution is another."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, len(OURS), dtype=torch.float64), torch.randn(3, len(THEIRS), dtype=torch.float64)
    rows = Rows(student, teacher, torch.tensor([4, 2, 5]), torch.arange(3), 3, mapping=known(OURS, THEIRS))
    at = rows.at(temperature)
    assert isinstance(at.teacher, torch.Tensor)
    for name, logits, vocabulary, found in (("s", student, OURS, at.student), ("t", teacher, THEIRS, at.teacher)):
        made = (found / temperature).softmax(-1)
        for row, one in zip(logits.tolist(), made, strict=True):
            wanted = by_hand(row, vocabulary, temperature)
            order = [b"a", b"b", b"c", b""]  # in the order of the student's ids
            np.testing.assert_allclose(one, [wanted[text] for text in order], rtol=1e-12, err_msg=name)
    assert at.labels.tolist() == [-100, 0, 2]


def test_duplicates_are_summed() -> None:
    """p(`&`) = .3 and p(`<0x26>`) = .1 against q(`&`) = .4 is no difference; with one of them lost it is -.0863."""
    mapping = known([b"&", b"x"], [b"&", b"x", b"&"])
    student, teacher = torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.3, 0.6, 0.1]]).log()
    rows = Rows(student, teacher, torch.tensor([0]), torch.tensor([0]), 1, mapping=mapping)
    assert KLDivergence().sums(rows).item() == pytest.approx(0.0, abs=1e-7)
    assert not mapping.has_rest


def test_masses_without_a_counterpart() -> None:
    """A class that only one model has would make a divergence infinite, or be lost without a word."""
    nothing = known([b"a", b"x"], [b"a"])  # the teacher has no other token
    rows = Rows(torch.zeros(1, 2), torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0]), 1, mapping=nothing)
    assert KLDivergence().sums(rows).item() == pytest.approx(math.log(2), rel=1e-5)
    assert math.isfinite(ReverseKL().sums(rows).item())
    assert VocabularyMap.of([b"a", None], [b"b", None]) is None


def test_the_likeliest_text_agrees() -> None:
    """The rest of both models may be likeliest and need not be one token: counted, agreement would be invented."""
    mapping = known([b"a", b"x", b"b"], [b"b", b"a", b"y"])
    student = torch.tensor([[3.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 4.0]])
    teacher = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 9.0], [0.0, 4.0, 0.0]])
    rows = Rows(student, teacher, torch.zeros(3, dtype=torch.long), torch.arange(3), 3, mapping=mapping)
    assert rows.agreement().tolist() == [1, 0, 0]


TERMS: tuple[Objective, ...] = (
    KLDivergence(weight=0.4, temperature=2.0),
    ReverseKL(weight=0.3),
    JensenShannon(weight=0.1),
    Labels(weight=0.2),
)


def trained(folder: Path, shuffled: bool, terms: tuple[Objective, ...] = TERMS, **settings: Any) -> Record:
    """Return a step; `shuffled`: the teacher has the same tokens under other numbers."""
    student, teacher = make_models("causal-lm", dtype=torch.float64)
    rows, layout = make_rows("causal-lm"), TokenRows(shift=True, classes=VOCABULARY)
    if shuffled:
        order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(5))
        for weight in (teacher.model.embed_tokens.weight, teacher.lm_head.weight):
            weight.data = weight.data[order]
        number = {int(old): new for new, old in enumerate(order)}
        rows = [
            {
                **row,
                "teacher_input_ids": [number[token] for token in row["input_ids"]],
                "aligned_at": [-1, *range(len(row["input_ids"]) - 1)],
            }
            for row in rows
        ]
        texts: list[bytes | None] = [f"text {one}".encode() for one in range(VOCABULARY)]
        layout = TokenRows(shift=True, classes=VOCABULARY, mapping=known(texts, [texts[int(one)] for one in order]))
    trainer = NotingTrainer(
        student,
        arguments(folder, max_steps=1, train_sampling_strategy="sequential", **settings),
        teacher=teacher,
        objectives=terms,
        layout=layout,
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=Collator(),
    )
    assert (trainer._heads is None) == any(isinstance(one, Attention) for one in terms)
    return train(trainer)


def test_a_shuffled_vocabulary_changes_nothing(tmp_path: Path, pieces: Any) -> None:
    """A row read by the teacher's numbers teaches other tokens; in chunks its rows are made block by block."""
    pieces(VOCABULARY, 6, 3)
    wanted = trained(tmp_path, False, **split(4))
    for batch_size in (8, 2):
        found = trained(tmp_path, True, **split(batch_size))
        assert found.losses == pytest.approx(wanted.losses, rel=1e-6)
        assert largest_difference(found, wanted) < 1e-6
        assert found.logs[0]["agreement"] == pytest.approx(wanted.logs[0]["agreement"], rel=1e-6)


def test_stored_rows_are_those_of_the_texts() -> None:
    """Stored under the teacher's numbers, or compared with the student's columns, each class would be another's."""
    torch.manual_seed(1)
    mapping = known(OURS, THEIRS)
    student, teacher = torch.randn(4, len(OURS)), torch.randn(4, len(THEIRS))
    labels, example = torch.zeros(4, dtype=torch.long), torch.arange(4)
    live = Rows(student, teacher, labels, example, 4, mapping=mapping)
    stored = SparseRows.of(mapping.of_teacher(teacher, 2.0), 4, 2.0)
    cached = Rows(student, stored, labels, example, 4, mapping=mapping)
    objective = KLDivergence(temperature=2.0)
    torch.testing.assert_close(objective.sums(cached), objective.sums(live), rtol=1e-5, atol=1e-6)


PROGRAM = """
from hf_distill.models.vocabulary_map import VocabularyMap
texts = {f"text {one}".encode() for one in range(300)}  # a set: in another order in every process
ours = sorted(texts)
theirs = [one for one in texts for _ in range(2)]
made = VocabularyMap.of(ours, sorted(theirs, reverse=True))
print(made.student.group.tolist(), made.teacher.group.tolist())
"""


@pytest.mark.slow
def test_every_process_makes_the_same_map() -> None:
    """By the order of a dictionary, two processes would train on two losses."""
    made = {
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(made) == 1


def test_prefixes_of_the_published_example() -> None:
    """Left in the rest, what the student spells in other pieces is all mass that it is pushed away from."""
    student = [b"a", b"ab", b"b", b"z", None]
    made = VocabularyMap.of(student, [b"a", b"ab", b"abc", b"b", b"\xff", b"\xff<end>"], prefix=True)
    assert made is not None
    p = torch.tensor([[0.1, 0.3, 0.2, 0.25, 0.1, 0.05]]).double().log()
    for temperature in (1.0, 2.0):
        logits = made.of_teacher(p, temperature) / temperature
        softened = (p / temperature).softmax(-1)[0]
        wanted = [softened[0], softened[1] + softened[2], softened[3], softened[4] + softened[5]]
        torch.testing.assert_close(logits.softmax(-1)[0], torch.stack(wanted))
    plain = VocabularyMap.of(student, [b"a", b"ab", b"abc", b"b", b"\xff"])
    assert plain is not None
    assert plain.of_teacher(p[:, :5]).exp()[0].tolist() == pytest.approx([0.1, 0.3, 0.25, 0.3])
    # The name of a special token is no text that begins with a byte, and identical vocabularies stay as they are.
    special = VocabularyMap.of([b"a", b"\xff"], [b"a", b"\xff<end>"], prefix=True)
    assert special is not None
    assert special.teacher.group.tolist() == [0, 1]
    same = VocabularyMap.of(student, student, prefix=True)
    assert same is not None
    assert same.teacher.group.tolist() == same.student.group.tolist() == [0, 1, 2, 3, 4]


def test_nearest_tokens_by_hand() -> None:
    """The likeliest of several counts, and what is near to none is left out: with a sum, or at the first, it is not the
    loss of the papers."""
    made = VocabularyMap.of([b"cat", b"dog", b"zebra"], [b"cat", b"hat", b"dog", b"cats", b"xyzzy"])
    assert made is not None
    logits = torch.tensor([[0.5, 2.0, 1.0, 1.5, 9.0]])
    found = made.by_nearest(logits)
    assert found[0, :2].tolist() == [2.0, 1.0]
    assert found.softmax(-1)[0, 2].item() == 0
    student = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    rows = Rows(student, logits, torch.tensor([0]), torch.tensor([0]), 1, mapping=made)
    p, q = np.exp([2.0, 1.0]), np.exp([0.3, -0.2, 0.1])
    p, q = p / p.sum(), q / q.sum()
    loss = NearestTokens().sums(rows)
    assert loss.item() == pytest.approx((p * np.log(p / q[:2])).sum(), rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert UniversalLogit().sums(rows).item() == pytest.approx(
        np.abs(np.sort(q)[::-1] - np.sort(np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum())[::-1][:3]).sum()
        + np.sort(np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum())[:2].sum(),
        rel=1e-5,
    )


def test_many_tokens_of_one_prefix() -> None:
    """Thousands of tokens may begin like one: put together one after the other they would take all the time."""
    made = VocabularyMap.of(
        [b"a", b"b", b"z"], [b"b", *(b"a" + bytes([97 + place]) for place in range(9)), b"x"], prefix=True
    )
    assert made is not None
    logits = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = np.exp(logits.numpy() / 2)
    p /= p.sum(-1, keepdims=True)
    wanted = np.stack((p[:, 1:10].sum(-1), p[:, 0], p[:, 10]), -1)
    np.testing.assert_allclose(
        (made.of_teacher(logits, 2.0) / 2).exp() / (logits / 2).exp().sum(-1, keepdim=True), wanted
    )
