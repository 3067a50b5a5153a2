"""What is stored of a row of logits, and under which hash."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch

from hf_distill.cache.example_hashes import example_hashes
from hf_distill.cache.format import Kept
from hf_distill.cache.recorder import sparse_rows
from hf_distill.cache.replay import Replay
from hf_distill.objectives import KLDivergence
from hf_distill.rows.base import SparseRows


def replayed(found: SparseRows, kept: Kept) -> SparseRows:
    columns = {"indices": found.indices, "log_probabilities": found.log_probabilities, "remaining": found.remaining}
    rows = Replay(None, kept, "key").targets({f"cached_{name}": value for name, value in columns.items()}).rows
    assert rows is not None
    return rows


@pytest.mark.parametrize(("top", "tail"), [(11, 2), (10, 8), (4, 90)])
def test_a_tail_that_covers_all_classes(top: int, tail: int) -> None:
    """Where every class was kept or drawn (few classes: characters, bytes) the mass of the others is 0, and its
    softmax was 0 / 0: a NaN for the weights."""
    torch.manual_seed(0)
    kept = Kept(top=top, tail=tail, temperature=1.0, classes=12, precision="float64")
    teacher, student = (torch.randn(6, 12, dtype=torch.float64) for _ in range(2))
    found = sparse_rows(teacher, kept, torch.Generator().manual_seed(0))
    teaching = replayed(found, kept)
    assert any(len(set(row)) == 12 for row in teaching.indices.tolist())
    student.requires_grad_()
    values = KLDivergence().rows(student, teaching, torch.zeros(6, dtype=torch.long))
    log_p = teaching.log_probabilities.log_softmax(-1)
    wanted = (log_p.exp() * (log_p - student.log_softmax(-1).gather(-1, teaching.indices))).sum(-1)
    torch.testing.assert_close(values, wanted)
    (found_gradient,) = torch.autograd.grad(values.sum(), student)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), student)
    torch.testing.assert_close(found_gradient, wanted_gradient)


def test_agreement_with_a_drawn_tail() -> None:
    """A class that was drawn stands for its share of all others, often more than the likeliest class has: it was taken
    for the teacher's answer, and the logged agreement was that of chance."""
    torch.manual_seed(0)
    teacher = 3 * torch.randn(100, 2000)
    kept = Kept(top=12, tail=6, temperature=1.0, classes=2000, precision="float32")
    rows = replayed(sparse_rows(teacher, kept, torch.Generator().manual_seed(0)), kept)
    assert torch.equal(rows.top_class(), teacher.argmax(-1))
    assert torch.equal(rows[3:7].top_class(), teacher[3:7].argmax(-1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"score": [1, 2]}, {"score": [1, 2, None]}),
        ({"ids": [[1, 2], []]}, {"ids": [[1, 2], [], None]}),
        ({"weights": [[1.0], [2.0]]}, {"weights": [[1.0], [2.0], [None]]}),
    ],
)
def test_a_hash_does_not_depend_on_neighbours(one: dict[str, Any], other: dict[str, Any]) -> None:
    """One value that is missing, thousands of rows further on, changed the hash of every example around it: a shuffled
    split did not find its own cache."""
    names = list(one)
    whole = example_hashes(datasets.Dataset.from_dict(other), names)
    assert (example_hashes(datasets.Dataset.from_dict(one), names) == whole[:-1]).all()
    assert (whole[-1] != whole[:-1]).any(-1).all()
