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
STUDENT = 23  # the vocabulary


def model(vocabulary: int, seed: int) -> Any:
    torch.manual_seed(seed)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, pad_token_id=0, **SIZES))
    with torch.no_grad():
        made.lm_head.weight.mul_(40)
    return made.eval()


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


@pytest.mark.parametrize("objective", [Span(), Span(loss="alm"), Span(loss="alm", tau=1.0)])
def test_span_against_numpy(objective: Span, tmp_path: Any) -> None:
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
