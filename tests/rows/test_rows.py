"""Rows: what counts is counted once, belongs to its example, and is never padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.rows.base import UNITS, RowLayout, Rows
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.tokens import TokenRows

NAN = float("nan")
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])  # padded right, and left
LABELS = torch.tensor([[-100, 4, -100, 2, 1], [3, 0, 4, -100, -100], [-100, -100, 1, -100, 2]])
TOKENS = {"input_ids": torch.ones_like(MASK), "attention_mask": MASK}
TEXTS = {"input_ids": torch.ones(3, 7, dtype=torch.long)}

CASES: dict[str, tuple[RowLayout, dict[str, Tensor], tuple[int, ...]]] = {
    "classes": (ExampleRows(width=4), TEXTS | {"labels": torch.tensor([3, -100, 0])}, (3, 4)),
    "classes, no labels": (ExampleRows(width=4), TEXTS, (3, 4)),
    "binary": (
        ExampleRows(kind="binary", width=2),
        TEXTS | {"labels": torch.tensor([[0.0, 1.0], [NAN, NAN], [1.0, 1.0]])},
        (3, 2),
    ),
    "binary, no labels": (ExampleRows(kind="binary", width=2), TEXTS, (3, 2)),
    "value": (ExampleRows(kind="values", width=1), TEXTS | {"labels": torch.tensor([0.5, NAN, 2.0])}, (3, 1)),
    "values": (
        ExampleRows(kind="values", width=2),
        TEXTS | {"labels": torch.tensor([[0.5, 1.0], [NAN, 1.0], [2.0, 3.0]])},
        (3, 2),
    ),
    "values, no labels": (ExampleRows(kind="values", width=2), TEXTS, (3, 2)),
    "tokens": (TokenRows(), TOKENS | {"labels": LABELS}, (3, 5, 6)),
    "tokens, no labels": (TokenRows(), TOKENS, (3, 5, 6)),
    "tokens, no mask": (TokenRows(), {"input_ids": torch.ones_like(MASK)}, (3, 5, 6)),
    "shifted": (TokenRows(shift=True), TOKENS | {"labels": LABELS}, (3, 5, 6)),
    "shifted, no labels": (TokenRows(shift=True), TOKENS, (3, 5, 6)),
    "padded vocabulary": (TokenRows(shift=True, classes=5), TOKENS | {"labels": LABELS}, (3, 5, 8)),
}


def select(name: str) -> tuple[Rows, dict[Any, Tensor]]:
    layout, inputs, shape = CASES[name]
    torch.manual_seed(0)
    return layout.select(torch.randn(shape), torch.randn(shape), inputs), layout.units(inputs)


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_rows(name: str) -> None:
    """The loss is divided by counts made without a forward pass: one row more or less and it is scaled wrongly."""
    rows, counts = select(name)
    missing = rows.labels.isnan() if rows.labels.is_floating_point() else rows.labels == IGNORED
    ones = torch.ones(len(rows.labels))
    assert tuple(counts) == UNITS
    assert torch.equal(counts["row"], rows.sum_by_example(ones))
    assert torch.equal(counts["label"], rows.sum_by_example(torch.where(missing, 0.0, ones)))
    assert torch.equal(counts["example"], torch.ones(rows.examples))
    assert all(count.shape == (rows.examples,) for count in counts.values())
    assert len(rows.student) == len(rows.labels) == len(rows.example)
    assert rows.teacher is not None
    assert rows.teacher.shape == rows.student.shape


def test_tokens_are_the_labelled_ones() -> None:
    """Off by one, a token classifier learns its neighbour's label."""
    logits = torch.arange(15.0).reshape(3, 5, 1)
    rows = TokenRows().select(logits, None, TOKENS | {"labels": LABELS})
    assert rows.student[:, 0].tolist() == [1, 3, 4, 5, 6, 7, 12, 14]
    assert rows.labels.tolist() == [4, 2, 1, 3, 0, 4, 1, 2]
    assert rows.example.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_shifted_logits_predict_the_next_token() -> None:
    """Unshifted, a causal student learns to repeat its input: the loss falls faster and the model is worthless."""
    logits = torch.arange(15.0).reshape(3, 5, 1)
    rows = TokenRows(shift=True).select(logits, None, TOKENS | {"labels": LABELS})
    assert rows.student[:, 0].tolist() == [0, 2, 3, 5, 6, 13]
    assert rows.labels.tolist() == [4, 2, 1, 0, 4, 2]
    assert rows.example.tolist() == [0, 0, 0, 1, 1, 2]


def test_padding_predicts_nothing() -> None:
    """Padded on the left, the first token would be predicted from padding: noise in every text but the longest."""
    labels = torch.where(MASK != 0, 1, IGNORED)
    logits = torch.arange(15.0).reshape(3, 5, 1)
    for inputs in (TOKENS | {"labels": labels}, TOKENS):
        assert TokenRows(shift=True).select(logits, None, inputs).student[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 12, 13]


def test_tokens_without_labels_are_those_attended_to() -> None:
    """Without labels padding must not become rows: it would be most of a batch with one long text."""
    rows = TokenRows().select(torch.arange(15.0).reshape(3, 5, 1), None, TOKENS)
    assert rows.student[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14]
    assert set(rows.labels.tolist()) == {IGNORED}


def test_padded_vocabulary_columns_take_no_part() -> None:
    """Rows that round an embedding up are no tokens; left in, they take probability from those that are."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 5), torch.randn(3, 5, 5)
    inputs = TOKENS | {"labels": LABELS}
    plain = TokenRows(classes=5).select(student, teacher, inputs)
    wide = TokenRows(classes=5).select(
        torch.cat([student, torch.full((3, 5, 3), 99.0)], -1), torch.cat([teacher, torch.randn(3, 5, 1)], -1), inputs
    )
    assert wide.teacher is not None
    assert plain.teacher is not None
    assert torch.equal(wide.student, plain.student)
    assert torch.equal(wide.teacher, plain.teacher)


@pytest.mark.parametrize("kind", ["classes", "binary"])
def test_teacher_columns_follow_the_students_labels(kind: Any) -> None:
    """Two heads with the same labels in another order: unpermuted, the teacher teaches `positive` as `negative`."""
    teacher = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    layout = ExampleRows(kind=kind, width=3, teacher_columns=(2, 0, 1))
    rows = layout.select(torch.zeros(2, 3), teacher, {"input_ids": torch.ones(2, 4)})
    assert rows.teacher is not None
    found = rows.teacher if kind == "classes" else rows.teacher[:, 1].reshape(2, 3)
    assert found.tolist() == [[30.0, 10.0, 20.0], [60.0, 40.0, 50.0]]


def test_binary_rows_are_sigmoids() -> None:
    """Every objective on classes is its multi-label form only if the softmax of a row is the label's probability."""
    logits = torch.randn(3, 2, dtype=torch.float64)
    rows = ExampleRows(kind="binary", width=2).select(logits, None, TEXTS)
    torch.testing.assert_close(rows.student.softmax(-1)[:, 1], logits.sigmoid().reshape(-1))
    assert rows.example.tolist() == [0, 0, 1, 1, 2, 2]


def test_as_many_rows_as_examples_by_coincidence() -> None:
    """Three tokens in a batch of three that all belong to one text: summed by position they count for other texts."""
    labels = torch.full((3, 5), IGNORED)
    labels[1, :3] = 1
    layout = TokenRows()
    inputs = TOKENS | {"labels": labels}
    rows = layout.select(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2), inputs)
    assert len(rows.labels) == rows.examples == 3
    assert rows.sum_by_example(torch.tensor([1.0, 2.0, 4.0])).tolist() == [0.0, 7.0, 0.0]
    assert rows.agreement().tolist() == layout.counts(inputs)["row"].tolist() == [0.0, 3.0, 0.0]


@pytest.mark.parametrize("layout", [TokenRows(), TokenRows(shift=True), TokenRows(classes=2)])
def test_no_rows_give_zeros(layout: TokenRows) -> None:
    """A micro-batch in which nothing counts must add 0 to the step, with a gradient, not NaN: DDP waits for it."""
    student = torch.randn(2, 4, 3, requires_grad=True)
    inputs = {"input_ids": torch.ones(2, 4), "labels": torch.full((2, 4), IGNORED)}
    rows = layout.select(student, student.detach(), inputs)
    sums = rows.sum_by_example(rows.student.square().sum(-1))
    assert sums.tolist() == rows.agreement().tolist() == layout.counts(inputs)["row"].tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_agreement_is_counted_by_example() -> None:
    """Agreement is logged beside the loss and reported: it must compare the rows that count, and no values."""
    student = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 9.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 1.0]]])
    labels = torch.tensor([[0, 0], [1, IGNORED]])
    assert TokenRows().select(student, teacher, {"labels": labels}).agreement().tolist() == [1.0, 1.0]
    assert TokenRows().select(student, None, {"labels": labels}).agreement().tolist() == [0.0, 0.0]
    values = ExampleRows(kind="values", width=1)
    assert not values.has_classes
    assert values.select(torch.ones(2, 1), torch.ones(2, 1), TEXTS).agreement().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_upcast(name: str, dtype: torch.dtype, wanted: torch.dtype) -> None:
    """A softmax over 150,000 tokens in bfloat16 loses most of the tail that a student is to learn from."""
    layout, inputs, shape = CASES[name]
    rows = layout.select(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), inputs)
    assert rows.teacher is not None
    assert rows.student.dtype == rows.teacher.dtype == wanted


@pytest.mark.parametrize("name", CASES)
def test_the_teacher_is_detached(name: str) -> None:
    """With a gradient into the teacher its whole graph is kept in memory, and it may even be trained."""
    layout, inputs, shape = CASES[name]
    rows = layout.select(torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True), inputs)
    assert rows.teacher is not None
    assert rows.student.requires_grad
    assert not rows.teacher.requires_grad


def test_tokens_that_count_without_a_label() -> None:
    """Taken for class -1, or left out, an unlabelled word is either an error far away or lost to the teacher."""
    labels = torch.tensor([[-100, 1, -1, -100], [-1, -100, -1, 0]])
    layout = TokenRows()
    rows = layout.select(torch.arange(24.0).reshape(2, 4, 3), None, {"labels": labels})
    assert rows.labels.tolist() == [1, IGNORED, IGNORED, IGNORED, 0]
    assert rows.student[:, 0].tolist() == [3.0, 6.0, 12.0, 18.0, 21.0]
    counts = layout.counts({"labels": labels})
    assert (counts["row"].tolist(), counts["label"].tolist()) == ([2, 3], [1, 1])
    shifted = TokenRows(shift=True).counts({"labels": labels})
    assert (shifted["row"].tolist(), shifted["label"].tolist()) == ([2, 2], [1, 1])


def test_tokens_of_a_teacher_in_another_order() -> None:
    """Of the teacher alone: permuting both, or neither, compares different classes."""
    logits = torch.randn(2, 4, 3)
    inputs = {"labels": torch.zeros(2, 4, dtype=torch.long)}
    rows = TokenRows(teacher_columns=(2, 0, 1)).select(logits, logits[..., [1, 2, 0]], inputs)
    assert torch.equal(rows.student, logits.reshape(8, 3))
    assert torch.equal(rows.student, rows.teacher)  # type: ignore[arg-type]
