"""The contrastive objective: InfoNCE and CRD with a memory of earlier examples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import two_processes
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hf_distill.objectives.base import Comparison
from hf_distill.objectives.contrastive import Contrastive, ContrastiveTerm
from hf_distill.parallel import gathered_rows
from hf_distill.rows.examples import ExampleRows

WIDTHS = 5, 7
LOSSES = ["info_nce", "crd"]


def term_of(loss: Any = "info_nce", *, memory: int = 6, width: int = 4) -> ContrastiveTerm:
    torch.manual_seed(0)
    objective = Contrastive(loss=loss, memory=memory, width=width, temperature=0.5)
    return ContrastiveTerm(objective, *WIDTHS).double()


def batch_of(seed: int, size: int = 3, *, texts: int = 1) -> tuple[Tensor, Tensor]:
    """Return what the two models make of some texts, `(texts * size, width)`."""
    chance = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(texts * size, width, generator=chance, dtype=torch.float64) for width in WIDTHS)
    return first, second


def comparison(ours: Tensor, theirs: Tensor, texts: int = 1) -> Comparison:
    """Return a batch of texts of one token, whose hidden states these are."""
    inputs = {"input_ids": torch.ones(len(ours) // texts, 1, dtype=torch.long)}
    logits = torch.zeros(len(ours) // texts, 2, dtype=torch.float64)
    rows = ExampleRows().select(logits, logits, inputs)
    student, teacher = ({"hidden_states": (one.unsqueeze(1),)} for one in (ours, theirs))
    return Comparison(rows, student, teacher, inputs, torch.ones(len(ours), 1, dtype=torch.bool))


def losses(term: ContrastiveTerm, ours: Tensor, theirs: Tensor, texts: int = 1) -> Tensor:
    found: Tensor = term(comparison(ours, theirs, texts))
    return found


def projected(head: nn.Linear, vectors: Tensor) -> np.ndarray:
    found = vectors.detach().numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    scaled: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return scaled


# --- the published values ---------------------------------------------------------------------------------------------


def test_info_nce_against_the_memory() -> None:
    """The oldest must go first, the teacher's entries be projected as of now, and an example be its own positive."""
    term = term_of()
    batches = [batch_of(seed) for seed in range(4)]
    for ours, theirs in batches[:3]:  # nine examples through a memory of six
        losses(term, ours, theirs)
    nn.init.normal_(term.teacher_head.weight)  # as a step of the optimiser does
    ours, theirs = batches[3]
    found = losses(term, ours, theirs)
    student, teacher = projected(term.student_head, ours), projected(term.teacher_head, theirs)
    held = projected(term.teacher_head, torch.cat([batches[1][1], batches[2][1]]))
    for example in range(3):
        others = [teacher[other] for other in range(3) if other != example] + list(held)
        positive = np.exp(student[example] @ teacher[example] / 0.5)
        negatives = sum(np.exp(student[example] @ other / 0.5) for other in others)
        assert len(others) == 8
        assert found[example].item() == pytest.approx(-np.log(positive / (positive + negatives)), rel=1e-10)


def authors_crd(positive: np.ndarray, negatives: np.ndarray, mean: float, data: int) -> np.ndarray:
    """RepDistiller's `ContrastLoss` of every example, in its own words.

    Args:
        positive: `exp(v . w / T)` of every example, `(n,)`.
        negatives: `(n, K)`.
        mean: Of the first batch's scores; the constant Z is it times `data`.
        data: Number of examples in the data.
    """
    constant = mean * data
    m, noise, eps = negatives.shape[1], 1 / data, 1e-7
    p, n = positive / constant, negatives / constant
    log_d1 = np.log(p / (p + m * noise + eps))
    log_d0 = np.log(m * noise / (n + m * noise + eps))
    value: np.ndarray = -(log_d1 + log_d0.sum(1))
    return value


def test_crd_is_the_authors_formula() -> None:
    """Its constants (number of examples, Z, K) decide how strongly negatives push; the number of examples cancels."""
    term = term_of("crd")
    batches = [batch_of(seed) for seed in range(3)]
    sides: list[tuple[np.ndarray, np.ndarray, float]] = []
    first: list[float] = []
    for step, (ours, theirs) in enumerate(batches):
        student, teacher = projected(term.student_head, ours), projected(term.teacher_head, theirs)
        held = [projected(head, torch.cat([batch[side] for batch in batches[:step]])) if step else np.zeros((0, 4))
                for head, side in ((term.student_head, 0), (term.teacher_head, 1))]  # fmt: skip
        sides = []
        for anchors, others, memory in ((student, teacher, held[1]), (teacher, student, held[0])):
            scores = np.exp(anchors @ np.concatenate([others, memory]).T / 0.5)
            positive = np.diagonal(scores)
            keep = np.eye(*scores.shape) == 0
            sides.append((positive, scores[keep].reshape(3, -1), scores.mean()))
        first = first or [mean for _, _, mean in sides]
        found = losses(term, ours, theirs)
        for data in (3, 50_000):
            expected = sum(authors_crd(*side[:2], mean, data) for side, mean in zip(sides, first, strict=True))
            # Their eps, 1e-7, is beside K / data.
            assert found.tolist() == pytest.approx(np.asarray(expected).tolist(), rel=1e-2 if data > 3 else 1e-6)
    assert sides[0][1].shape == (3, 8)
    assert first != pytest.approx([mean for _, _, mean in sides], rel=1e-3)  # the first batch's it is


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_that_of_the_value(loss: str) -> None:
    """What trains must be the slope of what is logged, with a memory too."""
    term = term_of(loss)
    losses(term, *batch_of(0))
    term.eval()
    ours, theirs = batch_of(1)
    assert torch.autograd.gradcheck(lambda vectors: losses(term, vectors, theirs), ours.requires_grad_())


# --- the memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_remembers_nothing(loss: str) -> None:
    """Eval examples as negatives of training would leak, and make two evaluations of one model differ."""
    term = term_of(loss)
    losses(term, *batch_of(0))
    before = copy.deepcopy(term.state_dict())
    term.eval()
    values = [losses(term, *batch_of(1)) for _ in range(2)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    for name, value in term.state_dict().items():
        assert torch.equal(value, before[name]), name
    term.train()
    losses(term, *batch_of(1))
    assert term.seen == 6


@pytest.mark.parametrize("loss", LOSSES)
def test_state_goes_on_where_it_was(loss: str) -> None:
    """Resumed with an empty memory, a training would be another one, easier for a while."""
    term, other = term_of(loss), term_of(loss)
    for seed in range(3):
        losses(term, *batch_of(seed))
    other.load_state_dict(term.state_dict())
    torch.testing.assert_close(losses(other, *batch_of(9)), losses(term, *batch_of(9)), rtol=0, atol=0)
    assert torch.equal(other.teacher_memory, term.teacher_memory)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [6, 8])
def test_batches_as_large_as_the_memory(loss: str, size: int) -> None:
    """More examples than places: written in one go, two of them fall on the same place, in no order."""
    term = term_of(loss)
    losses(term, *batch_of(0, 2))
    _, theirs = batch_of(1, size)
    losses(term, *batch_of(1, size))
    held = {tuple(row) for row in term.teacher_memory.tolist()}
    assert held == {tuple(row) for row in theirs[-6:].tolist()}
    losses(term, *batch_of(2, 1))
    held = {tuple(row) for row in term.teacher_memory.tolist()}
    assert held == {tuple(row) for row in (*theirs[-5:].tolist(), *batch_of(2, 1)[1].tolist())}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_text_again_is_no_negative(loss: str) -> None:
    """In a data set smaller than the memory an example would be pushed away from itself, and the loss have a floor."""
    ours, theirs = batch_of(0)
    again = theirs * (1 + 1e-3 * torch.linspace(-1, 1, 7, dtype=torch.float64))  # other padding, fewer digits
    term, fresh = term_of(loss), term_of(loss)
    losses(term, *batch_of(0))
    fresh.load_state_dict({**fresh.state_dict(), **{k: v for k, v in term.state_dict().items() if k == "log_mean"}})
    value = losses(term.eval(), ours[:1], again[:1])
    # Two negatives are in the memory, the third entry is the text itself.
    fresh.teacher_memory[:2], fresh.seen[...] = theirs[1:], 2
    if loss == "crd":
        fresh.student_memory[:2] = term.student_memory[1:3]
    torch.testing.assert_close(value, losses(fresh.eval(), ours[:1], again[:1]))
    assert value > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_tell_apart_costs_nothing(loss: str, *, training: bool) -> None:
    """A single example before anything is remembered has no negative: -log 1, not the logarithm of an empty sum."""
    term = term_of(loss).train(training)
    ours, theirs = batch_of(0, 1)
    value = losses(term, ours.requires_grad_(), theirs)
    assert value.tolist() == [0.0]
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert not ours.grad.any()
    assert all(not bool(one.grad.isnan().any()) for one in term.parameters() if one.grad is not None)
    later = losses(term, *batch_of(1))
    assert later.isfinite().all()
    assert (later > 0).all()


def test_without_a_memory_only_the_batch_counts() -> None:
    """`memory: 0` is the plain in-batch loss, with nothing kept from one batch to the next."""
    term = term_of(memory=0)
    first = losses(term, *batch_of(0))
    losses(term, *batch_of(1))
    torch.testing.assert_close(losses(term, *batch_of(0)), first, rtol=0, atol=0)
    student, teacher = (
        projected(head, one) for head, one in zip((term.student_head, term.teacher_head), batch_of(0), strict=True)
    )
    scores = torch.tensor(student @ teacher.T / 0.5)
    torch.testing.assert_close(first.detach(), nn.functional.cross_entropy(scores, torch.arange(3), reduction="none"))


def test_several_texts_an_example_are_averaged() -> None:
    """The unit is the example: a sum over its two texts would double the weight of the term."""
    ours, theirs = batch_of(0, 3, texts=2)
    pairs = losses(term_of(), ours, theirs, texts=2)
    singles = losses(term_of(), ours, theirs)
    torch.testing.assert_close(pairs, (singles[:3] + singles[3:]) / 2)


# --- in a training ----------------------------------------------------------------------------------------------------


def classifier(width: int, seed: int) -> Any:
    import transformers  # not at the top: every process of the last test would wait for it

    torch.manual_seed(seed)
    config: Any = transformers.BertConfig(
        vocab_size=30, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_learns_to_tell_examples_apart(loss: Any, tmp_path: Path) -> None:
    """Projections that are not in the optimiser, or a memory that is not attached, show in no error, only here."""
    from hf_distill import DistillationArguments, DistillationTrainer

    chance = torch.Generator().manual_seed(0)
    examples = [
        {"input_ids": torch.randint(3, 30, (5,), generator=chance), "attention_mask": torch.ones(5, dtype=torch.long),
         "labels": torch.tensor(0)}
        for _ in range(16)
    ]  # fmt: skip
    student, teacher = classifier(8, 1), classifier(12, 2)
    arguments = DistillationArguments(
        output_dir=str(tmp_path), num_train_epochs=12, per_device_train_batch_size=4, logging_steps=4,
        learning_rate=1e-2, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        lr_scheduler_type="constant",
    )  # fmt: skip
    objective = Contrastive(loss=loss, memory=12, width=8)
    trainer = DistillationTrainer(
        student, arguments, teacher=teacher, objectives=[objective], train_dataset=examples
    )  # fmt: skip
    (term,) = trainer.terms
    assert isinstance(term, ContrastiveTerm)
    start = [head.weight.detach().clone() for head in (term.student_head, term.teacher_head)]
    trainer.train()
    logged = [entry["objective/contrastive"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.8 * logged[1]  # the memory is not full in the first epoch
    assert term.seen == 12 * 16
    for before, head in zip(start, (term.student_head, term.teacher_head), strict=True):
        assert not torch.allclose(before, head.weight)


# --- several processes ------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A term in the place of a student, so that DDP wraps it."""

    def __init__(self, term: ContrastiveTerm) -> None:
        super().__init__()
        self.term = term

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return losses(self.term, ours, theirs)


def remember() -> dict[str, Tensor]:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    uneven = gathered_rows(torch.full((2 + rank, 1), float(rank)))
    term = term_of("crd", memory=8)
    model = DistributedDataParallel(Wrapped(term))
    for step in range(2):
        model(*batch_of(10 * step + rank, 2)).sum().backward()
    return {"uneven": uneven, **term.state_dict()}


def test_two_processes_remember_the_examples_of_both(tmp_path: Path) -> None:
    """DDP copies the first process's buffers to all: what only the others had seen would silently be forgotten."""
    first, second = two_processes(remember, tmp_path)
    assert first["uneven"].flatten().tolist() == [0, 0, 1, 1, 1]
    for name in ("seen", "teacher_memory", "student_memory", "log_mean"):
        assert torch.equal(first[name], second[name]), name
    expected = torch.cat([batch_of(10 * step + rank, 2)[1] for step in range(2) for rank in range(2)])
    torch.testing.assert_close(first["teacher_memory"], expected)
