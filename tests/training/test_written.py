"""Probabilities of the tokens of a text: the loss on spans, through the trainer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import Span
from hf_distill.objectives.divergences import binary_kl
from hf_distill.rows.tokens import TokenRows

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
STUDENT, TEACHER = 23, 37  # their vocabularies


def model(vocabulary: int, seed: int) -> Any:
    torch.manual_seed(seed)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, pad_token_id=0, **SIZES))
    with torch.no_grad():
        made.lm_head.weight.mul_(40)
    return made.eval()


def two_tokenizers() -> dict[str, Tensor]:
    """Return a batch whose spans have 1 to 3 tokens of each model: the first begins after two tokens of prompt."""
    torch.manual_seed(3)
    spans = torch.tensor([[-1, -1, 0, 1, 1, 2, 3, 3, 3], [-1, -1, 0, 0, 1, 2, -1, -1, -1]])
    theirs = torch.tensor([[-1, 0, 0, 1, 2, 2, 3], [-1, 0, 1, 1, 1, 2, -1]])
    ids, own = torch.randint(1, STUDENT, spans.shape), torch.randint(1, TEACHER, theirs.shape)
    mask, own_mask = torch.ones_like(ids), torch.ones_like(own)
    mask[1, 6:], own_mask[1, 6:] = 0, 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(spans < 0, IGNORED),
        "aligned_at": torch.tensor([[-1, -1, -1, 2, -1, -1, 5, -1, -1], [-1, -1, -1, -1, -1, 4, -1, -1, -1]]),
        "span": spans,
        "teacher_input_ids": own,
        "teacher_attention_mask": own_mask,
        "teacher_span": theirs,
    }


def one_tokenizer() -> dict[str, Tensor]:
    torch.manual_seed(4)
    ids = torch.randint(1, STUDENT, (4, 8))
    mask = torch.ones_like(ids)
    mask[1, 5:], mask[3, 3:] = 0, 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[0, :4] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer(path: Any, teacher: Any, student: Any, objectives: Any, **args: Any) -> DistillationTrainer:
    return DistillationTrainer(
        model=student,
        teacher=teacher,
        objectives=objectives,
        layout=TokenRows(shift=True, classes=STUDENT),
        args=DistillationArguments(output_dir=str(path), report_to=[], use_cpu=True, **args),
    )


def log_softmax(logits: Any) -> Any:
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


def by_hand(model: Any, ids: Tensor, mask: Tensor, spans: Tensor) -> list[dict[int, float]]:
    """Return span -> log-probability of every example."""
    with torch.no_grad():
        logs = log_softmax(model(input_ids=ids, attention_mask=mask).logits.numpy())
    found: list[dict[int, float]] = []
    for row, (tokens, numbers) in enumerate(zip(ids.tolist(), spans.tolist(), strict=True)):
        found.append({})
        for place, (token, number) in enumerate(zip(tokens, numbers, strict=True)):
            if number >= 0:
                found[-1][number] = found[-1].get(number, 0.0) + logs[row, place - 1, token]
    return found


def squares(batch: dict[str, Tensor], student: Any, teacher: Any) -> list[float]:
    ours = by_hand(student, batch["input_ids"], batch["attention_mask"], batch["span"])
    theirs = by_hand(teacher, batch["teacher_input_ids"], batch["teacher_attention_mask"], batch["teacher_span"])
    return [sum((one[number] - other[number]) ** 2 for number in one) for one, other in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "whole"])
def test_span_against_numpy(chunked: bool, tmp_path: Any) -> None:
    """Shifted by one token, or with a token of a span left out, the student learns another text's probability, and the
    loss falls all the same."""
    student, teacher, batch = model(STUDENT, 0), model(TEACHER, 1), two_tokenizers()
    own = trainer(tmp_path, teacher, student, [Span()])
    if not chunked:
        own._heads = None
    assert (own._heads is not None) == chunked
    wanted = squares(batch, student, teacher)
    sums, _ = own.evaluate_batch(student, dict(batch))
    np.testing.assert_allclose(sums[:, 0], wanted, rtol=1e-5)
    assert TokenRows(shift=True).units(batch)["span"].tolist() == [4, 3]
    loss = own.compute_loss(student, dict(batch))
    assert math.isclose(loss.item(), sum(wanted) / 7, rel_tol=1e-5)


def test_a_teacher_that_reads_another_prompt_by_hand(tmp_path: Any) -> None:
    """Taken at the student's positions, the teacher's probabilities would be those of tokens of its prompt."""
    student, teacher, batch = model(STUDENT, 0), model(STUDENT, 1), one_tokenizer()
    prompt = torch.tensor([[3, 5]]).expand(4, 2)
    batch["teacher_input_ids"] = torch.cat((prompt, batch["input_ids"]), -1)
    batch["teacher_attention_mask"] = torch.cat((torch.ones_like(prompt), batch["attention_mask"]), -1)
    places = torch.arange(8).expand(4, 8)
    known = (batch["labels"] != IGNORED) & (places > 0) & (places != 6)  # one label is not compared
    aligned = torch.where(known, places + 1, -1)
    own = trainer(tmp_path, teacher, student, [Span()])
    sums, _ = own.evaluate_batch(student, {**batch, "aligned_at": aligned})
    spans = torch.where(known, places, -1)
    theirs = torch.cat((torch.full((4, 2), -1), spans), -1)
    wanted = squares({**batch, "span": spans, "teacher_span": theirs}, student, teacher)
    np.testing.assert_allclose(sums[:, 0], wanted, rtol=1e-5)
    counted = TokenRows(shift=True).units({**batch, "aligned_at": aligned})["span"]
    assert counted.tolist() == [
        len(row) for row in by_hand(student, batch["input_ids"], batch["attention_mask"], spans)
    ]


def test_chunks_have_the_gradient_of_the_whole(tmp_path: Any, pieces: Any) -> None:
    """Logits are computed again in the backward pass: of other rows, or of a head that lost its part of the gradient,
    they would train it wrongly."""
    pieces(2, STUDENT, 3)
    gradients = []
    for chunked in (True, False):
        student, teacher = model(STUDENT, 0), model(TEACHER, 1)
        own = trainer(tmp_path, teacher, student, [Span(loss="alm", tau=2.0)])
        if not chunked:
            own._heads = None
        own.compute_loss(student, two_tokenizers()).backward()
        assert all(one.grad is None for one in teacher.parameters())
        gradients.append({name: one.grad for name, one in student.named_parameters()})
    for name, wanted in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], wanted, rtol=1e-4, atol=1e-6)
        assert wanted.any(), name


@pytest.mark.parametrize("objective", [Span(), Span(loss="alm"), Span(loss="alm", tau=1.0)])
def test_with_one_tokenizer_every_token_is_a_span(objective: Span, tmp_path: Any) -> None:
    """The same text in the same tokens must give the loss token by token, whatever way it is split into batches."""
    student, teacher, batch = model(STUDENT, 0), model(STUDENT, 1), one_tokenizer()
    own = trainer(tmp_path, teacher, student, [objective])
    logs = []
    for one in (teacher, student):
        with torch.no_grad():
            whole = log_softmax(
                one(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
            )
        logs.append(whole)
    wanted = []
    for row, labels in enumerate(batch["labels"].tolist()):
        places = [place for place, label in enumerate(labels) if place and label != IGNORED]
        p, q = (np.array([one[row, place - 1, labels[place]] for place in places]) for one in logs)
        if objective.loss == "chain":
            wanted.append(((p - q) ** 2).sum())
        else:
            t, x, y = objective.tau, np.exp(p / objective.tau), np.exp(q / objective.tau)
            wanted.append((t * (x * np.log(x / y) + (1 - x) * np.log((1 - x) / (1 - y)))).sum())
    sums, _ = own.evaluate_batch(student, dict(batch))
    np.testing.assert_allclose(sums[:, 0], wanted, rtol=1e-4)
    parts = [{name: value[where] for name, value in batch.items()} for where in (slice(0, 1), slice(1, 4))]
    split = torch.cat([own.evaluate_batch(student, part)[0] for part in parts])
    torch.testing.assert_close(split, sums, rtol=1e-5, atol=1e-6)
    units = TokenRows(shift=True).units(batch)
    assert torch.equal(units["span"], units["row"])


def test_published_numbers_of_alm() -> None:
    """The factor tau left out, the weight of the term would depend on it a hundredfold."""
    p, q = torch.tensor(0.3, dtype=torch.float64).log(), torch.tensor(0.2, dtype=torch.float64).log()
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert binary_kl(p, q).item() == pytest.approx(0.02817, abs=5e-6)
    assert binary_kl(p, q).item() + entropy == pytest.approx(0.63903, abs=5e-6)
    assert binary_kl(p / 100, q / 100).item() == pytest.approx(5.567e-4, abs=5e-8)
    assert 100 * binary_kl(p / 100, q / 100).item() == pytest.approx(0.05567, abs=5e-6)
    s, t = -q.item(), -p.item()
    assert 1e6 * binary_kl(p / 1e6, q / 1e6).item() == pytest.approx(s - t + t * math.log(t / s), rel=1e-3)
    # In float32, and where one of the models is certain.
    assert 100 * binary_kl(p.float() / 100, q.float() / 100).item() == pytest.approx(0.05567, rel=1e-3)
    certain = torch.tensor([0.0, 0.0, -1.0, -900.0], requires_grad=True)
    values = binary_kl(torch.tensor([0.0, -0.1, 0.0, -800.0]), certain)
    values.sum().backward()
    assert values.isfinite().all()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
