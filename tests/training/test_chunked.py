"""Losses over chunks of rows: parts of one's own, models that change, and gradients taken ahead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch
from invariants.cached import parts, trainer
from invariants.cases import (
    Collator,
    NotingTrainer,
    arguments,
    largest_difference,
    make_models,
    make_rows,
    split,
    train,
)
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.models.heads import OutputHead
from hf_distill.objectives import Attention, Comparison, KLDivergence, Labels, Objective, RowObjective
from hf_distill.objectives.base import Term
from hf_distill.rows.base import Rows
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.chunked import rows as head_rows
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.chunked.rows import HeadRows, Side

BOTH: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3))


@pytest.fixture(autouse=True)
def small_pieces(pieces: Any) -> None:
    """Chunks of five rows in blocks of two."""
    pieces(40, 5, 2)


def language(path: Path, terms: Any = BOTH, **settings: Any) -> NotingTrainer:
    """Return a trainer of a language model, all of its parts to be replaced."""
    student, teacher = make_models("causal-lm")
    given: dict[str, Any] = {
        "model": student,
        "teacher": teacher,
        "objectives": terms,
        "train_dataset": datasets.Dataset.from_list(make_rows("causal-lm")),
        "data_collator": Collator(),
        "args": arguments(path, max_steps=2, **split(4)),
        **settings,
    }
    return NotingTrainer(**given)


def difference(make: Callable[[], NotingTrainer]) -> float:
    """Return by how much the gradients differ from those of all logits."""
    chunked, plain = make(), make()
    plain._heads = None
    return largest_difference(train(chunked), train(plain))


def batch(count: int = 4) -> dict[str, Tensor]:
    return Collator()([{key: row[key] for key in ("input_ids", "labels")} for row in make_rows("causal-lm")[:count]])


@component
class ByLength(KLDivergence):
    """`kl`, of long examples only."""

    name: ClassVar[str] = "by_length"

    def per_example(self, comparison: Comparison) -> Tensor:
        long = comparison.inputs["attention_mask"].sum(-1) > 6
        return super().per_example(comparison) * long


class Twice(Term):
    """Twice the objective."""

    def forward(self, comparison: Comparison) -> Tensor:
        return 2 * self.objective.per_example(comparison)


@component
class Prepared(KLDivergence):
    """`kl` with a term of its own."""

    name: ClassVar[str] = "prepared"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        return Twice(self)


@pytest.mark.parametrize("objective", [ByLength(), Prepared()], ids=lambda one: str(one.name))
def test_an_objective_with_its_own_sums(objective: Objective, tmp_path: Path) -> None:
    """Sums in chunks know of `rows` alone: an overridden `per_example`, or a term of one's own, was passed over
    without a word, and another loss trained."""
    assert difference(lambda: language(tmp_path, (objective,))) < 1e-9


@dataclass(frozen=True)
class Halved(TokenRows):
    """Logits halved."""

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Any) -> Rows:
        rows = super().select(student, teacher, inputs)
        return replace(rows, student=0.5 * rows.student)


def test_a_layout_with_its_own_rows(tmp_path: Path) -> None:
    """An overridden `select` was passed over as well."""
    assert difference(lambda: language(tmp_path, layout=Halved(shift=True))) < 1e-9


@component
class Rare(RowObjective):
    """Of rare tokens only."""

    name: ClassVar[str] = "rare"

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        rare = labels > 30
        if not rare.any():
            return student.new_zeros(len(student))
        return torch.where(rare, (student - self.dense(teacher)).abs().mean(-1), 0.0)


def test_a_block_in_which_nothing_counts(tmp_path: Path) -> None:
    """A constant for rows that do not count is right for a batch, and a block of a few rows may hold no other: the
    training died of "does not require grad"."""
    assert difference(lambda: language(tmp_path, (Rare(),))) < 1e-9


def test_model_init(tmp_path: Path) -> None:
    """`Trainer.train` makes the student anew: the head taken apart was that of the one before, and an assertion
    failed in the first step."""
    made = language(tmp_path, model=None, model_init=lambda: make_models("causal-lm")[0])
    given = language(tmp_path, model=make_models("causal-lm")[0])
    assert largest_difference(train(made), train(given)) < 1e-9
    assert made._heads is not None


def test_model_init_with_an_objective_that_looks_into_the_models(tmp_path: Path) -> None:
    """Attention was switched to 'eager' in the student that is trained no more."""
    made = language(tmp_path, (Attention(),), model=None, model_init=lambda: make_models("causal-lm")[0])
    given = language(tmp_path, (Attention(),), model=make_models("causal-lm")[0])
    assert largest_difference(train(made), train(given)) < 1e-9


def test_another_teacher_later(tmp_path: Path) -> None:
    """`trainer.teacher = ...` between two trainings met the same assertion."""
    one = language(tmp_path)
    one.train()
    one.teacher = make_models("causal-lm")[1].eval().requires_grad_(False)
    one.train()
    assert len(one.record.losses) == 4


def test_a_hook_on_the_head(tmp_path: Path) -> None:
    """A hook that changes logits has no part in chunks: the trial went through it on both sides and saw nothing."""

    def make() -> NotingTrainer:
        student, _ = make_models("causal-lm")
        student.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
        return language(tmp_path, model=student)

    assert difference(make) < 1e-9


def test_a_head_that_both_models_share(tmp_path: Path) -> None:
    """A student that is given the teacher's frozen head has its input taken for the teacher's."""

    def make() -> NotingTrainer:
        student, teacher = make_models("causal-lm")
        student.lm_head = teacher.lm_head.requires_grad_(False)
        return language(tmp_path, model=student, teacher=teacher)

    assert difference(make) < 1e-9


def test_a_second_backward_pass(tmp_path: Path) -> None:
    """The gradient was scaled in place: with retain_graph the second pass gave the product of both scales, silently.
    It is there once, and whoever wants it again is told."""
    one = language(tmp_path)
    loss = one.compute_loss(one.model, batch())
    torch.autograd.grad(2 * loss, one.model.lm_head.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(5 * loss, one.model.lm_head.weight)


def test_the_gradient_of_a_head_is_not_copied(tmp_path: Path) -> None:
    """What the graph still holds is copied into `.grad`: one more tensor as large as the head, at the peak."""
    one = language(tmp_path)
    loss = one.compute_loss(one.model, batch())
    (made_by,) = {node for node in _nodes(loss.grad_fn) if type(node).__name__ == "ChunkedSumsBackward"}
    made = made_by.gradients[1].data_ptr()
    loss.backward()
    assert one.model.lm_head.weight.grad.data_ptr() == made


def _nodes(node: Any) -> set[Any]:
    return {node} | {one for after, _ in node.next_functions if after is not None for one in _nodes(after)}


def test_no_gradient_is_taken_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under no_grad a subclass that asks for the loss paid for its gradient, two of three matrix products."""
    carried: list[int] = []
    monkeypatch.setattr(head_rows._ChunkedPass, "_carry_back", lambda *_: carried.append(1))
    one = language(tmp_path)
    with torch.no_grad():
        one.compute_loss(one.model, batch())
    assert not carried


def test_fp16_of_the_launcher(tmp_path: Path) -> None:
    """`accelerate launch --mixed_precision fp16` scales the loss as `fp16: true` does, and a float16 gradient taken
    ahead misses that scale: most of it is 0."""
    one = language(tmp_path)
    assert one._open_heads() is not None
    one.args.mixed_precision = "fp16"  # what TrainingArguments make of the launcher's variable
    assert one.args.fp16 is False
    assert one._open_heads() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks added up in bfloat16 lose what is small beside the sum: of 1024 chunks 6 % of the gradient were wrong,
    where all logits at once lose 0.4 %."""
    torch.manual_seed(0)
    rows, classes, width = 1024, 200, 16
    monkeypatch.setitem(head_rows.CHUNK_BYTES, "cpu", classes * 4 * 2)
    inputs = [torch.randn(rows, width), torch.randn(rows, width)]
    weights = [torch.randn(classes, width), torch.randn(classes, width)]
    labels, example = torch.randint(classes, (rows,)), torch.zeros(rows, dtype=torch.long)
    coefficients = torch.tensor([0.5, 0.5], dtype=torch.float64) / rows

    def gradient(dtype: torch.dtype, in_chunks: bool) -> Tensor:
        sides = []
        for hidden, weight in zip(inputs, weights, strict=True):
            linear = nn.Linear(width, classes, bias=False, dtype=dtype)
            linear.weight.data.copy_(weight)
            sides.append(Side(OutputHead(linear), hidden.to(dtype), dtype))
        student, teacher = sides
        made = HeadRows(student, teacher, labels, example, 1)
        terms = (KLDivergence(), Labels())
        if in_chunks:
            sums = made.sums_in_chunks(terms, coefficients)
        else:
            plain = Rows(student.logits(), teacher.logits().detach(), labels, example, 1)
            sums = torch.stack([term.sums(plain) for term in terms], -1)
        (sums.sum(0) * coefficients).sum().backward()
        found = student.head.linear.weight.grad
        assert found is not None
        assert found.dtype == dtype
        return found.double()

    exact = gradient(torch.float64, False)
    chunked, plain = (float((gradient(dtype, in_chunks) - exact).norm() / exact.norm()) for in_chunks in (True, False))
    assert chunked < 1.5 * plain


def test_prompt_tuning(tmp_path: Path) -> None:
    """Its virtual tokens come before the others, and so do their logits: every row was compared with the teacher's of
    another position, in silence."""
    import peft

    student, teacher = make_models("causal-lm")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(student, config).double()
    one = language(tmp_path, model=tuned, teacher=teacher)
    with pytest.raises(ValueError, match="positions"):
        one.compute_loss(one.model, batch())


def test_numbers_of_this_file(tmp_path: Path) -> None:
    """The comparison that the tests above rest on notices a difference, and none where there is none."""
    assert difference(lambda: language(tmp_path)) < 1e-12
    chunked, plain = language(tmp_path), language(tmp_path, (KLDivergence(weight=0.6, temperature=2.0), BOTH[1]))
    assert largest_difference(train(chunked), train(plain)) > 1e-3
    assert math.isfinite(trainer(*parts("causal-lm"), tmp_path, BOTH).evaluate()["eval_loss"])
    student, teacher = make_models("causal-lm")
    assert Heads.open(student, {"teacher": teacher}) is not None
